"""Images in object stores: the rows are those of a disk, whatever their keys are called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiqa_trt.errors import FiqaError, InputError, RunError, UsageError
from fiqa_trt.inputs.listing import walk
from fiqa_trt.inputs.source import Source, list_inputs
from fiqa_trt.libraries import require
from fiqa_trt.outcomes import ImageError
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scorer import Scorer
from fiqa_trt.storage import clients
from fiqa_trt.storage.base import FileChanged
from fiqa_trt.storage.objects import ObjectStore
from fiqa_trt.storage.registry import store_of
from tests.helpers import invoke, mean_executor, tar
from tests.storage.buckets import BUCKET, READER, Proxy
from tests.storage.conftest import sign_in, upload

Row = dict[str, Any]


def scored(source: Source, output: Path, start: str = "") -> list[Row]:
    """Rows with paths from `start` on, and without times, which are those of the upload."""
    score_dataset(source, output, mean_executor, Options(unit_rows=4, restart=True))
    found = pq.read_table(output).drop_columns(["modified"]).to_pylist()
    assert all(row["path"].startswith(start) for row in found)
    return [{**row, "path": row["path"].removeprefix(start)} for row in found]


def told(*words: str | Path) -> tuple[int, str]:
    """The exit code of a command, and what it says."""
    done = invoke(*words)
    if isinstance(done.exception, FiqaError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.output


def status(path: str) -> str:
    blob = store_of(path).read(path).blob
    return blob.outcome.status.value if isinstance(blob, ImageError) else "ok"


def _zip(crops: Path) -> Path:
    import zipfile

    with zipfile.ZipFile(crops.parent / "t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(crops.rglob("*.jpg")):
            archive.write(path, path.name)
    return crops.parent / "t.zip"


def _images(crops: Path) -> pa.Table:
    return pa.table({"image": [path.read_bytes() for path in sorted(crops.rglob("*.jpg"))]})


def _parquet(crops: Path) -> Path:
    pq.write_table(_images(crops), crops.parent / "t.parquet", row_group_size=3)
    return crops.parent / "t.parquet"


def _arrow(crops: Path) -> Path:
    table = _images(crops)
    with pa.OSFile(str(crops.parent / "t.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return crops.parent / "t.arrow"


def _tar(crops: Path) -> Path:
    return tar(crops.parent / "t.tar", [(path.name, path.read_bytes()) for path in sorted(crops.rglob("*.jpg"))])


@pytest.mark.parametrize("made", [lambda crops: crops, _tar, _zip, _parquet, _arrow])
def test_the_rows_are_those_of_a_disk(
    uploaded: str, crops: Path, store: Any, tmp_path: Path, made: Callable[[Path], Path]
) -> None:
    local = made(crops)
    upload(store, local)
    remote = uploaded.removesuffix(crops.name)
    of_disk = scored(Source((str(local),)), tmp_path / "a.parquet", f"{tmp_path}/")
    assert len({row["status"] for row in of_disk}) == 3
    assert scored(Source((remote + local.name,)), tmp_path / "b.parquet", remote) == of_disk
    mixed = scored(Source((str(local), remote + local.name)), tmp_path / "c.parquet")
    assert [row["score"] for row in mixed] == [row["score"] for row in of_disk] * 2


def test_lists_may_name_objects(uploaded: str, crops: Path, store: Any, tmp_path: Path) -> None:
    upload(store, _tar(crops))
    root = uploaded.removesuffix(crops.name)
    paths = [f"{uploaded}/a/0.jpg", str(crops / "b" / "1.jpg"), f"{root}t.tar::2.jpg", f"{uploaded}/gone.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(paths))
    found = scored(Source(list_file=str(tmp_path / "list.txt")), tmp_path / "o.parquet")
    assert [row["path"] for row in found] == paths
    assert [row["status"] for row in found] == ["ok", "ok", "ok", "missing"]


def test_an_output_is_updated_and_retried(uploaded: str, crops: Path, store: Any, tmp_path: Path) -> None:
    output = tmp_path / "o.parquet"
    before = scored(Source((uploaded,)), output)
    (crops / "a" / "bad.jpg").write_bytes((crops / "a" / "0.jpg").read_bytes())
    upload(store, crops / "a" / "0.jpg")  # at the top, where it is no input
    import obstore

    obstore.put(store, "crops/a/bad.jpg", (crops / "a" / "bad.jpg").read_bytes())
    code, said = told("score", "--retry-failed", output, "--quiet")
    assert (code, "there now" in said) == (2, False)  # as of another engine
    from fiqa_trt.runs.update import update_dataset

    update_dataset(Source((uploaded,)), output, mean_executor)
    after = pq.read_table(output).drop_columns(["modified"]).to_pylist()
    assert [row["path"] for row in after if row not in before] == [f"{uploaded}/a/bad.jpg"]


_NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\"), min_size=1, max_size=20
).filter(lambda name: name.strip(". ") == name)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(st.one_of(_NAMES, st.tuples(_NAMES, _NAMES).map("/".join)), min_size=1, max_size=4))
def test_keys_of_any_characters(name: str, store: Any, proxy: Proxy, names: set[str]) -> None:
    import obstore

    folder = f"s3://{name}/{len(proxy.requests)}"
    keys = {f"{key}.jpg" for key in names}
    for key in keys:
        obstore.put(store, f"{len(proxy.requests)}/{key}", key.encode())
    found = list(walk(folder, all_files=True))
    assert set(found) == {f"{folder}/{key}" for key in keys}
    for path in found:
        assert ObjectStore().read(path).blob == path.removeprefix(f"{folder}/").encode()


KEYS = ["a b", "a%20b", "a%b", "a#b", "a?b", "a+b", "é中😀", "e\u0301", "a&b=c", "a::b", ":", "*", "~", "{a}|[b]", '"']


@pytest.mark.parametrize("key", KEYS)
def test_keys_that_addresses_would_escape(name: str, store: Any, proxy: Proxy, tmp_path: Path, key: str) -> None:
    import obstore

    obstore.put(store, f"f/{key}.jpg", key.encode())
    path = f"s3://{name}/f/{key}.jpg"
    assert [row["path"] for row in scored(Source((f"s3://{name}",)), tmp_path / "o.parquet")] == [path]
    assert ObjectStore().read(path).blob == key.encode()
    assert list(walk(f"s3://{name}/f/")) == [path]


@pytest.mark.parametrize("key", ["a\nb.jpg", "/a.jpg", "a//b.jpg", "a/../b.jpg", "./a.jpg", "a\x7f.jpg", "", "a/"])
def test_keys_that_cannot_be_asked_for_have_rows(name: str, proxy: Proxy, key: str) -> None:
    assert status(f"s3://{name}/{key}") == "unsupported"


@pytest.mark.parametrize("path", [f"s3://{BUCKET}", f"s3://{BUCKET}/", "s3://", "s3:///a.jpg", "https:///a.jpg"])
def test_an_address_without_a_name_has_a_row(proxy: Proxy, path: str) -> None:
    assert status(path) == "unsupported"


def test_a_key_may_be_the_beginning_of_others(name: str, store: Any, proxy: Proxy, crops: Path) -> None:
    import obstore

    for key in ("x.jpg", "x.jpg/y.jpg", "xx.jpg"):
        obstore.put(store, key, (crops / "a" / "0.jpg").read_bytes())
    root = f"s3://{name}"

    def listed(given: str) -> list[str]:
        return [path for batch in list_inputs(Source((given,))) for path in batch.column(0).to_pylist()]

    assert listed(root) == [f"{root}/x.jpg", f"{root}/x.jpg/y.jpg", f"{root}/xx.jpg"]
    assert listed(f"{root}/x.jpg") == [f"{root}/x.jpg"]
    assert listed(f"{root}/x.jpg/") == [f"{root}/x.jpg/y.jpg"]
    with pytest.raises(InputError, match="no such object, and none below it"):
        listed(f"{root}/x")


def test_what_marks_a_folder_is_no_object_in_it(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"last_modified": None, "size": 0, "e_tag": None, "version": None}
    found = {"common_prefixes": ["f/g"], "objects": [{"path": "f", **entry}, {"path": "f/x.jpg", **entry}]}
    monkeypatch.setattr("obstore.list_with_delimiter", lambda store, prefix: found)
    entries = list(ObjectStore().entries("s3://b/f"))
    assert [(each.path, each.name, each.is_dir()) for each in entries] == [
        ("s3://b/f/x.jpg", "x.jpg", False),
        ("s3://b/f/g/", "g", True),
    ]


def test_a_file_is_read_ahead_and_is_one_object(name: str, store: Any, proxy: Proxy) -> None:
    import obstore

    data = bytes(range(256)) * 40_000
    obstore.put(store, "x.tar", data)
    with ObjectStore().open(f"s3://{name}/x.tar") as file:
        assert b"".join(file.read_at(at, 1000) for at in range(0, file.size, 1000)) == data
        assert len(proxy.requests) < 12
        assert file.raw.read() == data
        assert (file.raw.seek(-5, 2), file.raw.read(9)) == (len(data) - 5, data[-5:])
        assert file.read_at(len(data), 5) == b""
        obstore.put(store, "x.tar", b"y" * len(data))
        with pytest.raises(FileChanged):
            file.read_at(100, 5)


def test_signed_addresses_are_read_and_not_written_down(uploaded: str, crops: Path, store: Any, tmp_path: Path) -> None:
    import obstore

    keys = [f"crops/a/{index}.jpg" for index in (0, 2, 4)]
    signed = [obstore.sign(store, "GET", key, timedelta(minutes=5)) for key in keys]
    (tmp_path / "list.txt").write_text("\n".join(signed))
    found = scored(Source(list_file=str(tmp_path / "list.txt")), tmp_path / "o.parquet")
    assert [row["status"] for row in found] == ["ok"] * 3
    assert [row["path"] for row in found] == [url.partition("?")[0] for url in signed]
    assert not any(b"X-Amz" in path.read_bytes() for path in tmp_path.glob("o.*"))
    with pytest.raises(RunError, match="access denied") as caught:
        ObjectStore().read(signed[0].replace("Signature=", "Signature=0"))
    assert "X-Amz" not in str(caught.value)
    shard = obstore.sign(store, "GET", "x.tar", timedelta(minutes=5))
    with pytest.raises(InputError, match=r"x\.tar: what is in a container behind a query") as refused:
        scored(Source((shard,)), tmp_path / "o.parquet")
    assert "X-Amz" not in str(refused.value)


def test_web_addresses_are_percent_encoded(
    name: str, store: Any, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[str, str]]()

    def get(client: Any, key: str) -> None:
        asked.append((client.url, key))
        raise ZeroDivisionError

    monkeypatch.setattr("obstore.get", get)
    for path in ("/d/a%20b%23.jpg", "/é.jpg", "/a.jpg?size=2&x=%20"):
        with pytest.raises(ZeroDivisionError):
            ObjectStore().read(f"http://h.invalid:80{path}")
    assert asked == [
        ("http://h.invalid/", "d/a b#.jpg"),
        ("http://h.invalid/", "é.jpg"),
        ("http://h.invalid/?size=2&x=%20", "a.jpg"),
    ]


def test_scorer_and_show_take_objects(uploaded: str, mean_engine: Any) -> None:
    with Scorer() as scorer:
        good, bad = scorer.score([f"{uploaded}/a/0.jpg", f"{uploaded}/a/bad.jpg"])
    assert (good.status, bad.status) == ("ok", "not_an_image")
    code, said = told("show", f"{uploaded}/a/0.jpg")
    assert (code, f"{uploaded}/a/0.jpg" in said) == (0, True)


def test_what_is_not_read_or_written_there_is_refused(uploaded: str, tmp_path: Path) -> None:
    output = tmp_path / "o.parquet"
    cases = [
        (("score", uploaded, "-o", "https://b/o.parquet"), "outputs are not written there"),
        (("score", "--list", f"{uploaded}/l.txt", "-o", str(output)), "there is no such object"),
        (("report", f"{uploaded}/s.parquet", "-o", str(tmp_path / "r.html")), "there is no such object"),
        (("show", f"{uploaded}/a/0.jpg", "--explain"), "-o says where else"),
        (("score", "hdfs://datasets/x", "-o", str(output)), "an address of a kind that is not read"),
        (
            ("score", uploaded, "-o", f"{uploaded}//o.parquet"),
            "o.parquet: obstore, which reads it, takes no empty name",
        ),
        (("score", uploaded, "-o", f"{uploaded}/../o.parquet"), "o.parquet: obstore, which reads it, takes no"),
        (("score", uploaded, "-o", "s3:///o.parquet"), "cannot write s3:///o.parquet: the address names no bucket"),
        (("score", "s3:///a.jpg", "-o", str(output)), "cannot read s3:///a.jpg: the address names no bucket"),
    ]
    for words, why in cases:
        code, said = told(*words)
        assert (code, why in said) == (2, True), said


def test_what_works_with_scores_of_objects(uploaded: str, tmp_path: Path) -> None:
    output = tmp_path / "o.parquet"
    assert scored(Source((uploaded,)), output)
    assert told("report", output, "-o", tmp_path / "r.html")[0] == 0
    assert (tmp_path / "r.html").read_text().count("data:image/jpeg") > 5
    assert told("filter", output, "-o", tmp_path / "kept.tar", "--top", "3")[0] == 0
    assert told("filter", output, "-o", tmp_path / "kept.csv", "--top", "3")[0] == 0


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    require.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'fiqa-trt\[cloud\]'"):
        store_of("s3://bucket/a.jpg")
    (tmp_path / "l.txt").write_text("s3://bucket/a.jpg\n")
    code, said = told("score", "--list", tmp_path / "l.txt", "-o", tmp_path / "o.parquet")
    assert (code, said.count("fiqa-trt[cloud]")) == (2, 1), said


def test_reading_needs_no_permission_to_list(uploaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_in(monkeypatch, *READER)
    (tmp_path / "l.txt").write_text(f"{uploaded}/a/0.jpg\n{uploaded}/gone.jpg\n")
    found = scored(Source(list_file=str(tmp_path / "l.txt")), tmp_path / "o.parquet")
    assert [row["status"] for row in found] == ["ok", "missing"]
    with pytest.raises(RunError, match=r"cannot read s3://.*: access denied \(403 Forbidden, AccessDenied\)"):
        list(walk(uploaded))


def test_a_dead_server_says_the_same_each_time() -> None:
    said = "Generic HTTP error: Error performing GET http://h.test/ in 5.2ms, after 3 retries - HTTP error: sending"
    assert str(clients.failure("http://h.test/a.jpg", OSError(said))).count("ms") == 0
