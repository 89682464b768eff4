"""The Hub: a small server that speaks its endpoints for files, trees and ranges stands in for it."""

from __future__ import annotations

import hashlib
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiqa_trt.errors import FiqaError, OutputError, StoreError, UsageError
from fiqa_trt.inputs.source import Source
from fiqa_trt.libraries import require
from fiqa_trt.outcomes import ImageError
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.storage import hub
from fiqa_trt.storage.registry import store_of, writer_of
from tests.helpers import mean_executor, tar

pytest.importorskip("huggingface_hub")
COMMIT = "a" * 40
REPOSITORY = "hf://datasets/org/faces"


class Hub(http.server.ThreadingHTTPServer):
    """One data set, from a folder."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.requests, self.short, self.busy = folder, list[str](), 0, 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are none."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.server.requests.append(f"{self.command} {url.path}")
        if self.server.busy:
            self.server.busy -= 1
            return self._answer(429, b"", {"Retry-After": "0"})
        if parts[:4] == ["api", "datasets", "org", "faces"] and parts[4] == "tree":
            return self._tree("/".join(parts[6:]), parse_qs(url.query))
        if parts[:3] == ["datasets", "org", "faces"] and parts[3] == "resolve":
            return self._file("/".join(parts[5:]))
        return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def _tree(self, path: str, query: dict[str, list[str]]) -> None:
        top = self.server.folder / path
        if not top.exists():
            return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        deep = query.get("recursive", [""])[0].lower() == "true"
        found = top.rglob("*") if deep else top.iterdir()
        entries = [
            {"type": "directory" if each.is_dir() else "file", "path": str(each.relative_to(self.server.folder)),
             "oid": "0", "size": each.stat().st_size}
            for each in sorted(found)
        ]  # fmt: skip
        start = int(query.get("cursor", ["0"])[0])
        more = {}
        if start + 3 < len(entries):  # pages of three
            base = f"http://{self.headers['Host']}{urlsplit(self.path).path}"
            recursive = query.get("recursive", ["false"])[0]
            more = {"Link": f'<{base}?recursive={recursive}&cursor={start + 3}>; rel="next"'}
        return self._answer(200, json.dumps(entries[start : start + 3]).encode(), more)

    def _file(self, path: str) -> None:
        file = self.server.folder / path
        if not file.is_file():
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        named = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if (wanted := self.headers.get("Range")) is None:
            return self._answer(200, data, named)
        start, stop = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
        part = data[start : stop + 1]
        if self.server.short:
            self.server.short -= 1
            part = part[: len(part) // 2]
        return self._answer(206, part, named)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "repository").mkdir()
    with Hub(tmp_path / "repository") as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        hub._file.cache_clear()
        yield server
        server.shutdown()


@pytest.fixture
def filled(served: Hub, crops: Path) -> Hub:
    """Shards, a table and single files."""
    files = sorted(crops.rglob("*.jpg"))
    (served.folder / "data").mkdir()
    tar(served.folder / "data" / "b.tar", [(path.name, path.read_bytes()) for path in files])
    tar(served.folder / "data" / "a.tar", [(path.name, path.read_bytes()) for path in files[:3]])
    pq.write_table(pa.table({"image": [path.read_bytes() for path in files]}), served.folder / "t.parquet")
    (served.folder / "one.jpg").write_bytes(files[0].read_bytes())
    (served.folder / "none.jpg").write_bytes(b"")
    (served.folder / "README.md").write_text("x")
    return served


def rows(source: Source, output: Path, start: str) -> list[dict[str, Any]]:
    score_dataset(source, output, mean_executor, Options(unit_rows=4, restart=True))
    found = pq.read_table(output).drop_columns(["modified"]).to_pylist()
    return [{**row, "path": row["path"].removeprefix(start)} for row in found]


@pytest.mark.parametrize("given", ["", "/data", "/data/b.tar", "/t.parquet", "@main/data/b.tar", "/one.jpg"])
def test_the_rows_are_those_of_a_disk(given: str, filled: Hub, tmp_path: Path) -> None:
    local = filled.folder / given.removeprefix("@main").lstrip("/")
    column = "image" if given.endswith("parquet") else None
    root = REPOSITORY + ("@main" if given.startswith("@") else "")
    of_hub = rows(Source((f"{REPOSITORY}{given}",), image_column=column), tmp_path / "a.parquet", root)
    of_disk = rows(Source((str(local),), image_column=column), tmp_path / "b.parquet", str(filled.folder))
    assert sorted(map(str, of_hub)) == sorted(map(str, of_disk))


def test_a_list_may_name_files(filled: Hub, tmp_path: Path) -> None:
    paths = [f"{REPOSITORY}/{name}" for name in ("one.jpg", "gone.jpg", "none.jpg", "data/a.tar::0.jpg")]
    (filled.folder / "list.txt").write_text("\n".join(paths))
    found = rows(Source(list_file=f"{REPOSITORY}/list.txt"), tmp_path / "o.parquet", "")
    assert [row["status"] for row in found] == ["ok", "missing", "empty", "ok"]


def test_what_is_busy_or_breaks_off_is_asked_again(filled: Hub) -> None:
    filled.busy, filled.short = 1, 2
    assert store_of(REPOSITORY).read(f"{REPOSITORY}/one.jpg").blob == (filled.folder / "one.jpg").read_bytes()
    hub._file.cache_clear()
    filled.short = 9
    with pytest.raises(StoreError, match="bytes came of"):
        store_of(REPOSITORY).read(f"{REPOSITORY}/one.jpg")


def test_a_file_is_read_at_one_commit(filled: Hub) -> None:
    with store_of(REPOSITORY).open(f"{REPOSITORY}/data/b.tar") as file:
        assert file.read_at(512, 9) == (filled.folder / "data" / "b.tar").read_bytes()[512:521]
    assert f"/resolve/{COMMIT}/" in filled.requests[-1]


def test_what_is_not_there(filled: Hub, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such repository, or no access"):
        store_of(REPOSITORY).read("hf://datasets/org/other/a.jpg")
    with pytest.raises(StoreError, match="name a repository"):
        store_of(REPOSITORY).read("hf://datasets/org")
    with pytest.raises(FiqaError, match="there is no such file on the Hub"):
        score_dataset(Source((f"{REPOSITORY}/nowhere",)), tmp_path / "o.parquet", mean_executor)
    with pytest.raises(OutputError, match="outputs are not written there"):
        writer_of(f"{REPOSITORY}/o.parquet")
    assert isinstance(store_of(REPOSITORY).read(f"{REPOSITORY}/gone.jpg").blob, ImageError)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    require.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'fiqa-trt\[hf\]'"):
        store_of(REPOSITORY)
    require.cache_clear()
