"""Every command that takes a path takes the address of an object."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fiqa_trt.building.calibration import read_crops
from fiqa_trt.curation.delivery import deliver, prefix
from fiqa_trt.curation.kept import Kept
from fiqa_trt.curation.select import Rules, select
from fiqa_trt.errors import FiqaError
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.storage import objects
from fiqa_trt.storage.places import Uri, at_hand, below, entry_names
from tests.helpers import invoke, mean_executor, tar, tree
from tests.storage.buckets import Proxy
from tests.storage.conftest import upload


def told(*words: object) -> tuple[int, str]:
    done = invoke(*map(str, words))
    if isinstance(done.exception, FiqaError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.output


@pytest.fixture
def scores(uploaded: str, name: str) -> str:
    score_dataset(Source((uploaded,)), Uri(f"s3://{name}/out/scores.parquet"), mean_executor)
    return f"s3://{name}/out/scores.parquet"


def test_rows_are_filtered_from_a_store_into_one(scores: str, name: str, tmp_path: Path) -> None:
    for suffix in (".parquet", ".csv", ".jsonl", ".txt"):
        assert told("filter", scores, "-o", tmp_path / f"k{suffix}", "--top", 4)[0] == 0
        kept = f"s3://{name}/out/k{suffix}"
        assert told("filter", scores, "-o", kept, "--top", 4)[0] == 0
        assert at_hand(kept).read_bytes() == (tmp_path / f"k{suffix}").read_bytes()
        assert told("filter", scores, "-o", kept, "--top", 4)[0] == 2  # it is there
        assert told("filter", scores, "-o", kept, "--top", 4, "--restart")[0] == 0
    code, said = told("filter", scores, "-o", scores, "--top", 4)
    assert (code, "holds the scores that are being filtered" in said) == (2, True)


def test_images_of_a_store_are_packed_into_it(scores: str, name: str, crops: Path) -> None:
    shards = [f"s3://{name}/out/k-{number:06}.tar" for number in range(3)]
    assert told("filter", scores, "-o", f"s3://{name}/out/k.tar", "--top", 9, "--shard-size", 4)[0] == 0
    found = list[bytes]()
    for shard in shards:
        with tarfile.open(at_hand(shard)) as archive:
            found += [archive.extractfile(each).read() for each in archive if each.name.endswith(".jpg")]  # type: ignore[union-attr]
    assert len(found) == 9
    assert set(found) <= {path.read_bytes() for path in crops.rglob("*.jpg")}
    assert told("filter", scores, "-o", f"s3://{name}/out/k.tar", "--top", 2)[0] == 2
    assert told("filter", scores, "-o", f"s3://{name}/out/k.tar", "--top", 2, "--restart")[0] == 0
    assert not Uri(shards[1]).exists()


def test_images_of_a_store_are_copied_into_a_folder(scores: str, uploaded: str, tmp_path: Path, crops: Path) -> None:
    words = ("filter", scores, "-o", tmp_path / "kept", "--copy", "--top", 5)
    assert told(*words)[0] == 0
    kept = tree(tmp_path / "kept")
    assert len(kept) == 5
    assert all((crops / path).read_bytes() == data for path, data in kept.items())
    assert "already complete: 5 images" in told(*words)[1]
    more = (*words[:-1], 7, "--update")
    assert told(*more)[0] == 0
    assert len(tree(tmp_path / "kept")) == 7
    table = pq.read_table(tmp_path / "kept" / "fiqa_scores.parquet")
    assert all(path.startswith(uploaded) for path in table["original_path"].to_pylist())
    code, said = told("filter", scores, "-o", tmp_path / "linked", "--hardlink", "--top", 5)
    assert (code, tree(tmp_path / "linked") if (tmp_path / "linked").exists() else {}) == (3, {}), said


def test_a_root_in_a_store(scores: str, uploaded: str, tmp_path: Path) -> None:
    kept = Kept(Uri(scores), select(Uri(scores), Rules(min_score=0.1)).mask)
    done = deliver(kept, tmp_path / "kept", "copy", root=uploaded.rpartition("/")[0])
    assert done.written
    assert all(path.startswith("crops/") for path in tree(tmp_path / "kept"))


@pytest.mark.parametrize("local", [False, True])
def test_images_are_copied_below_a_prefix(local: bool, scores: str, name: str, tmp_path: Path, crops: Path) -> None:
    if local:
        score_dataset(Source((str(crops),)), tmp_path / "scores.parquet", mean_executor)
    given = tmp_path / "scores.parquet" if local else scores
    out = f"s3://{name}/kept"
    words = ("filter", given, "-o", out, "--copy", "--top", 5)
    code, said = told(*words, "--dry-run")
    assert (code, "would write 5 images" in said) == (0, True), said
    assert entry_names(Uri(out)) == []
    code, said = told(*words)
    assert (code, f"their scores: {out}/fiqa_scores.parquet" in said) == (0, True), said
    found = {e.path.removeprefix(f"{out}/"): Uri(e.path).read_bytes() for e in below(Uri(out)) if "fiqa" not in e.name}
    assert len(found) == 5
    assert all((crops / path).read_bytes() == data for path, data in found.items())
    table = pq.read_table(at_hand(f"{out}/fiqa_scores.parquet"))
    assert sorted(table["path"].to_pylist()) == sorted(f"{out}/{path}" for path in found)
    assert "already complete: 5 images" in told(*words)[1]
    Uri(f"{out}/{min(found)}").unlink()  # as if it had been stopped
    code, said = told(*words)
    assert (code, "1 written" in said, "4 were there already" in said) == (0, True, True), said
    code, said = told(*words[:-1], 6)
    assert (code, "is not empty" in said) == (2, True)
    code, said = told(*words[:-3], "--move", "--top", 5)
    assert (code, "there is only --copy" in said) == (2, True)


def test_a_copy_below_a_prefix_that_is_stopped_goes_on(scores: str, name: str, proxy: Proxy) -> None:
    out, puts = f"s3://{name}/kept", 0

    def denied(method: str, path: str) -> str | None:
        nonlocal puts
        puts += method == "PUT"
        return "403" if method == "PUT" and puts > 4 else None

    proxy.fault = denied
    words = ("filter", scores, "-o", out, "--copy", "--top", 8)
    code, said = told(*words)
    assert (code, "access denied" in said) == (1, True)
    proxy.fault = lambda method, path: None
    code, said = told(*words)
    assert (code, "3 were there already" in said) == (0, True), said


def test_a_report_of_a_store_in_one(scores: str, name: str) -> None:
    assert told("report", scores, "-o", f"s3://{name}/out/r.html")[0] == 0
    page = at_hand(f"s3://{name}/out/r.html").read_text()
    assert page.count("data:image/jpeg") > 5
    assert told("report", scores, "-o", f"s3://{name}/out/r.html")[0] == 2


def test_ratings_of_a_store_are_evaluated(scores: str, name: str, store: Any, tmp_path: Path, uploaded: str) -> None:
    import obstore

    found = pq.read_table(at_hand(scores))
    rows = [row for row in found.to_pylist() if row["score"] is not None]
    text = "path,score\n" + "".join(f"{row['path']},{row['score']}\n" for row in rows)
    obstore.put(store, "out/labels.csv", text.encode())
    code, said = told("eval", scores, "--labels", f"s3://{name}/out/labels.csv", "--json")
    assert code == 0, said


def test_lists_and_calibration_of_a_store(uploaded: str, name: str, store: Any, crops: Path) -> None:
    import obstore

    listed = "".join(f"{uploaded}/{path.relative_to(crops)}\n" for path in sorted(crops.rglob("*.jpg")))
    obstore.put(store, "out/list.txt", listed.encode())
    output = Uri(f"s3://{name}/out/listed.csv")
    score_dataset(Source(list_file=f"s3://{name}/out/list.txt"), output, mean_executor)
    assert at_hand(output).read_text().count("\n") == listed.count("\n") + 1
    upload(store, *(crops,))
    with pytest.raises(FiqaError, match="calibrating takes at least"):
        read_crops(Uri(f"s3://{name}/out/list.txt"))


def test_a_copy_stays_what_it_is_when_others_are_made(store: Any, name: str, proxy: Proxy) -> None:
    obstore = pytest.importorskip("obstore")
    addresses = [f"s3://{name}/copies/{number}.txt" for number in range(3)]
    for number in (0, 1):
        obstore.put(store, f"copies/{number}.txt", b"%d" % number)
    assert [at_hand(address).read_bytes() for address in addresses[:2]] == [b"0", b"1"]
    obstore.put(store, "copies/0.txt", b"new")
    objects._HEADS.forget_all()
    changed = at_hand(addresses[0])
    obstore.put(store, "copies/2.txt", b"2")
    assert [at_hand(address).read_bytes() for address in addresses[1:]] == [b"1", b"2"]
    assert changed.read_bytes() == b"new"


def test_of_two_that_want_one_place_the_first_gets_it(
    crops: Path, name: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [path.read_bytes() for path in sorted(crops.rglob("*.jpg"))]
    names = [(number, suffix) for number in range(12) for suffix in ("", ".jpg")]
    members = [(f"{number}{suffix}", images[number % 10 - bool(suffix)]) for number, suffix in names]
    shard = tar(tmp_path / "shard.tar", members)
    monkeypatch.setattr(prefix, "_UPLOADS", 8)
    score_dataset(Source((str(shard),), all_files=True), tmp_path / "s.parquet", mean_executor)
    out = f"s3://{name}/kept"
    assert told("filter", tmp_path / "s.parquet", "-o", tmp_path / "kept", "--copy", "--min-score", 0)[0] == 0
    assert told("filter", tmp_path / "s.parquet", "-o", out, "--copy", "--min-score", 0)[0] == 0
    found = {e.path.removeprefix(f"{out}/"): Uri(e.path).read_bytes() for e in below(Uri(out)) if "fiqa" not in e.name}
    assert len(found) == 12
    assert found == tree(tmp_path / "kept")
