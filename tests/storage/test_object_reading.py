"""How objects are listed and asked for: in the store's order, side by side, and no oftener than it takes."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiqa_trt.errors import StoreError
from fiqa_trt.executors.base import Setup
from fiqa_trt.inputs.address import Address
from fiqa_trt.inputs.listing import LeftOut, walk
from fiqa_trt.inputs.read_ahead import Reader
from fiqa_trt.inputs.source import Source
from fiqa_trt.machine.benchmark import bound_of, request_ms
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.storage import clients
from fiqa_trt.storage.base import all_unsigned, unsigned
from tests.helpers import mean_executor, tar
from tests.storage.buckets import Proxy
from tests.storage.conftest import upload

TREE = [
    "a-b/1.jpg", "a/1.jpg", "a/2.txt", "a/x.heic", "a.jpg", "b/@eaDir/1.jpg", "b/@eaDir/c/2.jpg", "b/c/@eaDir/3.jpg",
    "b/c/1.png", "b/c/._1.jpg", "fiqa_scores.parquet", "out.parquet.partial/parts/1.jpg", "z.parquet",
]  # fmt: skip


@pytest.mark.parametrize("all_files", [False, True])
def test_what_is_taken_of_a_prefix_is_what_is_taken_of_a_folder(
    all_files: bool, name: str, store: Any, proxy: Proxy, tmp_path: Path
) -> None:
    for each in TREE:
        (tmp_path / "t" / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / each).write_bytes(b"\x00\x05\x16\x07" if "._" in each else b"x")
    upload(store, tmp_path / "t")
    found, said = list[list[str]](), list[str]()
    for top in (str(tmp_path / "t"), f"s3://{name}/t"):
        left_out = LeftOut()
        exclude = (f"{top}/out.parquet", f"{top}/out.parquet.partial")
        found.append([path.removeprefix(top) for path in walk(top, all_files, exclude, left_out=left_out)])
        said.append(str(left_out).replace(top, ""))
    assert sorted(found[0]) == sorted(found[1])
    assert all(len(each) == (11 if all_files else 4) for each in found)
    assert said[0] == said[1]


def test_what_marks_a_folder_is_no_image(name: str, store: Any, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    obstore.put(store, "f/empty.jpg", b"")
    obstore.put(store, "f/full.jpg", b"x")
    entry = {"last_modified": None, "e_tag": None, "version": None}
    key = name.partition("/")[2]
    listed = [{"path": f"{key}/f/{each}", "size": size, **entry} for each, size in
              (("empty.jpg", 0), ("full.jpg", 1), ("marked.jpg", 0))]  # fmt: skip
    monkeypatch.setattr("obstore.list", lambda client, prefix=None, **more: iter([listed]))
    assert list(walk(f"s3://{name}/f")) == [f"s3://{name}/f/empty.jpg", f"s3://{name}/f/full.jpg"]


def test_a_key_that_cannot_be_listed_is_named(name: str, store: Any, proxy: Proxy) -> None:
    boto3 = pytest.importorskip("boto3")
    bucket, _, folder = name.partition("/")
    boto3.client("s3", endpoint_url=proxy.endpoint).put_object(Bucket=bucket, Key=f"{folder}/f/a\nb.jpg", Body=b"x")
    with pytest.raises(StoreError, match=r"there is an object '.*/f/a\\nb.jpg'.*rename it, or name the others"):
        list(walk(f"s3://{name}/f"))


def test_a_listing_that_breaks_off_goes_on_behind_what_came(name: str, store: Any, proxy: Proxy) -> None:
    import obstore

    for number in range(2100):
        obstore.put(store, f"f/{number:05}.jpg", b"x")
    pages = 0

    def short(method: str, path: str) -> str | None:
        nonlocal pages
        pages += "list-type" in path
        return "short" if "list-type" in path and pages in (2, 3, 5) else None

    proxy.fault = short
    found = list(walk(f"s3://{name}/f"))
    assert found == [f"s3://{name}/f/{number:05}.jpg" for number in range(2100)]
    assert pages > 5


@pytest.mark.parametrize("requests", [1, 5, 40])
def test_requests_are_side_by_side_and_no_more_than_said(
    requests: int, uploaded: str, proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "l.txt").write_text(f"{uploaded}/a/0.jpg\n" * 200)
    lock, now, most = threading.Lock(), 0, 0

    def slow(method: str, path: str) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1

    proxy.fault = slow
    reader = Reader(requests)
    address = Address(f"{uploaded}/a/0.jpg")
    chunks = [reader.submit([address] * 10) for _ in range(8)]
    assert all(isinstance(read.blob, bytes) for chunk in chunks for read in chunk.result())
    reader.close()
    assert requests // 2 < most <= requests


def test_a_chunk_that_is_not_read_to_its_end_is_none(uploaded: str, proxy: Proxy) -> None:
    reader = Reader(2)
    proxy.fault = lambda method, path: "403" if path.endswith("/2.jpg") else None
    good, bad = (
        reader.submit([Address(f"{uploaded}/a/{index}.jpg") for index in some]) for some in ((0, 4), (0, 2, 4))
    )
    assert len(good.result()) == 2
    with pytest.raises(StoreError, match="access denied"):
        bad.result()
    reader.close()


def test_the_chunks_of_a_shard_ask_for_ranges_and_hardly_for_what_it_is(
    uploaded: str, crops: Path, store: Any, proxy: Proxy, tmp_path: Path
) -> None:
    data = (crops / "a" / "0.jpg").read_bytes()
    upload(store, tar(crops.parent / "t.tar", [(f"{number}.jpg", data) for number in range(400)]))
    before = len(proxy.requests)
    given = uploaded.removesuffix(crops.name) + "t.tar"
    score_dataset(Source((given,)), tmp_path / "o.parquet", mean_executor, Options(unit_rows=100))
    asked = Counter(method for method, _ in proxy.requests[before:])
    assert pq.read_metadata(tmp_path / "o.parquet").num_rows == 400
    assert asked["GET"] <= 110  # a hundred chunks, and the index
    assert asked["HEAD"] < 20


def test_the_bound_of_a_store_is_its_own() -> None:
    stages = {"list": 5000.0, "read": 100.0, "decode": 400.0, "engine": 400.0}
    assert bound_of(stages, shared=True, afar=True) == 100
    assert bound_of({**stages, "read": 1e6, "list": 1e6}, shared=True, afar=True) == 200
    assert bound_of(stages, shared=False, afar=True) == 100


def test_only_requests_to_a_store_are_timed(uploaded: str, proxy: Proxy, crops: Path) -> None:
    proxy.fault = lambda method, path: time.sleep(0.05)
    assert request_ms([str(crops / "a" / "0.jpg")]) is None
    assert (request_ms([str(crops / "a" / "0.jpg"), f"{uploaded}/a/0.jpg"]) or 0) >= 50


def test_requests_are_a_number() -> None:
    with pytest.raises(Exception, match="requests=0"):
        Setup(requests=0)


NAMES = st.sampled_from(
    [
        "X-Amz-Signature",
        "X-Goog-Signature",
        "Signature",
        "sig",
        "token",
        "access_token",
        "key",
        "x-amz-security-token",
        "api_key",
        "apikey",
        "auth_token",
    ]
)
WORDS = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)


@given(
    WORDS, st.lists(st.tuples(WORDS, WORDS), max_size=3), NAMES, st.uuids().map(lambda one: one.hex), st.booleans(),
    st.booleans(),
    st.sampled_from(["403 Forbidden", "connection refused", "end of file"]),
)  # fmt: skip
def test_what_lets_one_in_is_in_no_message(
    path: str, more: list[tuple[str, str]], name: str, secret: str, upper: bool, user: bool, why: str
) -> None:
    query = "&".join(f"{key}={value}" for key, value in [*more, (name.upper() if upper else name, secret)])
    address = f"https://host.invalid/{path}.jpg?{query}"
    if user:
        address = f"https://me:{secret}@host.invalid/{path}.jpg"
    assert unsigned(address) == f"https://host.invalid/{path}.jpg"
    assert all_unsigned(pa.chunked_array([[address, None]])).to_pylist() == [unsigned(address), None]
    said = OSError(f"Error performing GET {address} in 2 ms: {why}\n\nDebug source: {address}")
    assert secret not in str(clients.failure(address, said))
    assert secret not in str(clients._of_web(address, said))
    assert not re.search(r"\?|=", str(clients.failure(address, said)))


def test_an_endpoint_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = OSError(
        "Generic S3 error: Error performing GET http://127.0.0.1:1/b/a.jpg: HTTP error: error sending request"
    )
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert "the store of s3:// does not answer" in str(clients.failure("s3://b/a.jpg", silent))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:secret@127.0.0.1:1")
    assert "the endpoint http://127.0.0.1:1 does not answer" in str(clients.failure("s3://b/a.jpg", silent))
