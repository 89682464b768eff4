"""A real S3 server on loopback, and a proxy before it that does what networks and servers do."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

BUCKET = "crops"  # the only one, as each takes the server several volumes
WEED = Path(sys.executable).with_name("weed")
ADMIN, READER, LISTER = (
    ("admin", "s3cret-of-admin"), ("reader", "s3cret-of-reader"), ("lister", "s3cret-of-lister")
)  # fmt: skip
_ALSO = 10_000  # a port that far up is taken as well


def _ports(count: int) -> list[int]:
    """Free ones, of which those that much further up are free as well."""
    with contextlib.ExitStack() as held:
        found = list[int]()
        for port in range(21_000 + os.getpid() * 16 % 8_000, 30_000):
            with contextlib.suppress(OSError):
                for each in (port, port + _ALSO):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", each))
                found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError("no free ports")


@contextlib.contextmanager
def served(folder: Path, volumes: int = 20) -> Iterator[str]:
    """A server with room for so many times 16 MB; its endpoint."""
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for (key, secret), actions in ((ADMIN, ["Admin"]), (READER, ["Read"]), (LISTER, ["Read", "List"]))
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = dict(zip(names, _ports(len(names)), strict=True))
    words = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-master.volumeSizeLimitMB=16"]
    words += [
        f"-volume.max={volumes}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
        *(f"-{n}={p}" for n, p in ports.items()),
    ]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([WEED, "server", *words], stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        _wait(process, endpoint)
        yield endpoint
    finally:
        process.kill()  # it takes its time to end otherwise
        process.wait()


def _wait(process: subprocess.Popen[bytes], endpoint: str) -> None:
    import obstore

    for _ in range(300):
        with contextlib.suppress(Exception):
            _make_bucket(endpoint)
            obstore.put(bucket(endpoint), "ready", b"x")
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError("the server does not start")


def bucket(endpoint: str, folder: str | None = None) -> Any:
    """The bucket, or a folder in it, by the administrator's keys."""
    from obstore.store import S3Store

    key, secret = ADMIN
    return S3Store(
        BUCKET,
        prefix=folder,
        endpoint=endpoint,
        access_key_id=key,
        secret_access_key=secret,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=5)},
    )


def _make_bucket(endpoint: str) -> None:
    import obstore

    url = obstore.sign(bucket(endpoint), "PUT", "", timedelta(minutes=1))
    urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()


Fault = Callable[[str, str], str | None]
"""Of a request's method and path: what goes wrong with it, one of `503`, `429`, `403`, `404`, `reset` and `short`."""
_SAYS = {"503": "SlowDown", "429": "SlowDown", "403": "ExpiredToken", "404": "NoSuchKey"}


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on, and lets `fault` choose what goes wrong."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream.removeprefix("http://")
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.fault: Fault = lambda method, path: None
        self.requests = list[tuple[str, str]]()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are none."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass(self) -> None:
        self.server.requests.append((self.command, self.path))
        fault = self.server.fault(self.command, self.path)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if fault in _SAYS:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b"" if self.command == "HEAD" else f"<Error><Code>{_SAYS[fault]}</Code></Error>".encode()
            self._answer(int(fault), {"Content-Length": str(len(body))}, body)
            return
        upstream = http.client.HTTPConnection(self.server.upstream)
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upstream.request(self.command, self.path, sent, dict(self.headers))  # the name of the host is signed
        answer = upstream.getresponse()
        body = answer.read()
        upstream.close()
        short = fault == "short" and len(body) > 1 and self.command == "GET"
        self._answer(answer.status, dict(answer.getheaders()), body[: len(body) // 2] if short else body)
        self.close_connection = self.close_connection or short

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


@contextlib.contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """A proxy that runs."""
    with Proxy(upstream) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        yield proxy
        proxy.shutdown()
