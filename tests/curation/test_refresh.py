"""`filter --update`: a filled folder is brought up to date with its scores, and nothing is lost by it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiqa_trt.curation import delivery
from fiqa_trt.curation.delivery import fill_folder, undo_move
from fiqa_trt.curation.delivery.companions import Wish
from fiqa_trt.curation.kept import Kept
from fiqa_trt.errors import FiqaError
from fiqa_trt.inputs.marks import TABLE
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.score import score_dataset
from tests.helpers import Stop, call_filter, mean_executor, only, tar, tree


def again(crops: Path, scores: Path) -> None:
    scores.unlink()
    score_dataset(Source((str(crops),)), scores, mean_executor)


def names_in(table: Path, column: str, start: Path) -> list[str]:
    return [os.path.relpath(path, start) for path in pq.read_table(table)[column].to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["copy", "hardlink", "symlink"])
def test_a_filled_folder_is_brought_up_to_date(scores: Path, mask: Any, crops: Path, tmp_path: Path, way: str) -> None:
    """Of nine images one is not kept any more, one is another now, one is gone, one was edited, and one is new."""
    (crops / "a" / "2.txt").write_text("caption")
    (crops / "a" / "4.txt").write_text("caption")
    out, first = tmp_path / "out", (crops / "a" / "0.jpg").read_bytes()
    fill_folder(Kept(scores, mask), out, way, companions=Wish())
    (out / "a" / "8.jpg").unlink()
    (out / "a" / "8.jpg").write_bytes(b"edited")
    gone = (crops / "b" / "3.jpg").read_bytes()
    (crops / "b" / "3.jpg").unlink()
    (crops / "b" / "5.jpg").unlink()  # a new file: the old one may be linked to
    (crops / "b" / "5.jpg").write_bytes(first)
    shutil.copy(crops / "a" / "0.jpg", crops / "new.jpg")
    again(crops, scores)
    keep = ~only(scores, "a/0.jpg", "a/2.jpg", "a/8.jpg", "bad.jpg")
    with pytest.raises(FiqaError, match="--update makes it what this one keeps"):
        fill_folder(Kept(scores, keep), out, way, companions=Wish())
    before = tree(out)
    stays = 1 if way == "symlink" else 2  # a link that leads nowhere holds nothing
    dry = delivery.deliver(Kept(scores, keep), out, way, companions="auto", update=True, dry_run=True)
    assert tree(out) == before
    done = fill_folder(Kept(scores, keep), out, way, companions=Wish(), update=True)
    for found in (dry, done):
        assert (found.written, found.already) == (2, 5)
        assert (found.removed, found.staying) == (5 - 1 - stays, stays)
        assert found.skipped == {"changed since it was delivered, so it was left where it is": 1}
    expected = {name: data for name, data in tree(crops).items() if name.endswith(("4.txt", ".jpg"))}
    for name in ("a/0.jpg", "a/2.jpg", "a/bad.jpg"):
        del expected[name]
    expected |= {"a/8.jpg": b"edited"} if way == "symlink" else {"a/8.jpg": b"edited", "b/3.jpg": gone}
    assert tree(out) == expected
    assert sorted(names_in(out / TABLE, "path", out)) == sorted(name for name in expected if name.endswith(".jpg"))
    assert names_in(out / TABLE, "path", out) == names_in(out / TABLE, "original_path", crops)
    repeated = fill_folder(Kept(scores, keep), out, way, companions=Wish())
    assert (repeated.written, repeated.already, repeated.staying) == (0, 7, stays)
    assert (tree(out), pq.read_table(out / TABLE).num_rows) == (expected, 7 + stays)


@pytest.mark.parametrize("place", ["unlink", "copy2"])
def test_an_update_that_was_stopped_goes_on(
    scores: Path, mask: Any, crops: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, out = (os if place == "unlink" else shutil), tmp_path / "out"
    fill_folder(Kept(scores, mask), out, "copy")
    shutil.copy(crops / "a" / "0.jpg", crops / "a" / "2.jpg")
    os.utime(crops / "a" / "2.jpg", (1, 1))
    (crops / "b" / "1.jpg").unlink()
    again(crops, scores)
    keep = ~only(scores, "a/4.jpg", "a/6.jpg", "bad.jpg")
    real = getattr(module, place)

    def killed(*args: Any, **options: Any) -> None:
        if str(args[0]).endswith(("6.jpg", "2.jpg")):
            raise Stop
        real(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(module, place, killed)
        fill_folder(Kept(scores, keep), out, "copy", update=True)
    fill_folder(Kept(scores, keep), out, "copy", update=True)
    expected = {name: data for name, data in tree(crops).items() if name.endswith(".jpg")}
    for name in ("a/4.jpg", "a/6.jpg", "a/bad.jpg"):
        del expected[name]
    assert {**expected, "b/1.jpg": b""} == {**tree(out), "b/1.jpg": b""}
    assert sorted(names_in(out / TABLE, "path", out)) == sorted([*expected, "b/1.jpg"])


def test_what_was_moved_stays_and_more_comes(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    """A move again and again, out of a folder that fills anew, with a name that comes twice."""
    expected, out = tree(crops), tmp_path / "out"
    fill_folder(Kept(scores, mask), out, "move")
    (crops / "a" / "2.jpg").write_bytes(expected["a/0.jpg"])
    (crops / "b" / "new.jpg").write_bytes(expected["a/0.jpg"])
    again(crops, scores)
    kept = only(scores, "2.jpg", "new.jpg")
    done = fill_folder(Kept(scores, kept), out, "move", update=True)
    assert (done.written, done.removed, done.staying) == (1, 0, 9)
    assert done.skipped == {"another image has its place in the output": 1}
    assert (out / "a" / "2.jpg").read_bytes() == expected["a/2.jpg"]
    assert (crops / "a" / "2.jpg").read_bytes() == expected["a/0.jpg"]
    assert len(names_in(out / TABLE, "path", out)) == 10
    (crops / "a" / "2.jpg").unlink()
    assert undo_move(out).finished
    assert tree(crops) == {**expected, "b/new.jpg": expected["a/0.jpg"]}


@pytest.mark.slow
def test_an_update_of_members_of_shards(crops: Path, tmp_path: Path) -> None:
    files = [(f"{index}.jpg", (crops / "ab"[index % 2] / f"{index}.jpg").read_bytes()) for index in range(4)]
    scores, out, shard = tmp_path / "s.parquet", tmp_path / "out", tmp_path / "s.tar"
    score_dataset(Source((str(tar(shard, files)),)), scores, mean_executor)
    fill_folder(Kept(scores, np.ones(4, bool)), out, "copy")
    done = fill_folder(Kept(scores, only(scores, "0.jpg", "1.jpg")), out, "copy", update=True)
    assert (done.removed, done.already, done.staying) == (2, 2, 0)
    tar(shard, files[:1])
    os.utime(shard, (5, 5))
    scores.unlink()
    score_dataset(Source((str(shard),)), scores, mean_executor)
    done = fill_folder(Kept(scores, np.ones(1, bool)), out, "copy", update=True)
    assert (done.removed, done.written, done.staying) == (1, 1, 1)  # nothing else holds the other one
    assert tree(out) == {"s.tar/0.jpg": files[0][1], "s.tar/1.jpg": files[1][1]}


@pytest.mark.parametrize("same", [True, False])
def test_what_cannot_be_read_any_more_keeps_its_row(crops: Path, tmp_path: Path, same: bool) -> None:
    """The shards and the table that images came from are away, whether the same call is made or an update."""
    files = [(f"{index}.jpg", (crops / "ab"[index % 2] / f"{index}.jpg").read_bytes()) for index in range(4)]
    scores, out, shard, table = (tmp_path / name for name in ("s.parquet", "out", "s.tar", "t.parquet"))
    pq.write_table(pa.table({"image": [data for _, data in files]}), table)
    score_dataset(Source((str(tar(shard, files)), str(table), str(crops / "a"))), scores, mean_executor)
    every = pq.read_table(scores)["score"].is_valid().to_numpy()
    fill_folder(Kept(scores, every), out, "copy")
    before, delivered = tree(out), pq.read_table(out / TABLE)
    for path in (shard, table, *crops.rglob("*.jpg")):
        path.unlink()
    keep = every if same else every & ~only(scores, "::0.jpg")
    done = fill_folder(Kept(scores, keep), out, "copy", update=not same)
    assert (done.written, done.already, done.skipped) == (0, keep.sum(), {})
    assert done.staying == (not same)  # nothing else holds it
    assert tree(out) == before
    assert sorted(pq.read_table(out / TABLE)["path"].to_pylist()) == sorted(delivered["path"].to_pylist())


@pytest.mark.parametrize("way", ["copy", "hardlink"])
@pytest.mark.parametrize("old_place", ["gone", "there"])
def test_a_tree_that_is_elsewhere_now(
    scores: Path, crops: Path, tmp_path: Path, way: str, old_place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handed over: images, scores and folder in another place, relative to which nothing has changed."""
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(crops, "crops")
    output = Path("s.parquet")
    score_dataset(Source(("crops",)), output, mean_executor)
    every = pq.read_table(output)["score"].is_valid().to_numpy()
    fill_folder(Kept(output, every), Path("out"), way)
    monkeypatch.chdir(tmp_path / "there")
    for name in ("crops", "out"):
        shutil.copytree(tmp_path / "here" / name, name)
    shutil.copy(tmp_path / "here" / output, output)
    if old_place == "gone":
        shutil.rmtree(tmp_path / "here")
    keep, whole = every & ~only(output, "a/2.jpg"), tree(Path("out"))
    with pytest.raises(FiqaError, match=r"with --root .*here/crops, and with .*there its images would have other"):
        fill_folder(Kept(output, keep), Path("out"), way, str(tmp_path / "there"), update=True)
    for root in (None, "crops"):
        done = fill_folder(Kept(output, keep), Path("out"), way, root, update=True)
        assert (done.written, done.already, done.removed) == (0, len(whole) - 1, root is None)
        assert (done.staying, done.skipped) == (0, {})
        assert pq.read_table(Path("out") / TABLE).num_rows == len(whole) - 1
        assert tree(Path("out")) == {name: data for name, data in whole.items() if name != "a/2.jpg"}


@pytest.mark.slow
def test_a_folder_made_of_a_folder(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    """What leaves it takes no caption along that is another folder's."""
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    for path in crops.rglob("*.jpg"):
        path.with_suffix(".txt").write_text(path.name)
    fill_folder(Kept(scores, mask), first, "copy", companions=Wish())
    before, given = tree(crops), tree(first)
    for source, folder in ((first, second), (second, third)):
        every = np.ones(pq.read_table(source / TABLE).num_rows, bool)
        fill_folder(Kept(source / TABLE, every), folder, "copy", companions=Wish())
        assert tree(folder) == given
        fewer = ~only(source / TABLE, "a/2.jpg", "b/3.jpg")
        done = fill_folder(Kept(source / TABLE, fewer), folder, "copy", companions=Wish(), update=True)
        assert (done.removed, done.already, done.staying) == (2, len(every) - 2, 0)
        given = {name: data for name, data in given.items() if not name.startswith(("a/2.", "b/3."))}
        assert tree(folder) == given
        fill_folder(Kept(source / TABLE, every), folder, "copy", companions=Wish(), update=True)
        given = tree(source)
        assert tree(folder) == given
    assert (tree(crops), tree(first)) == (before, given)
    assert names_in(third / TABLE, "original_path", crops) == names_in(first / TABLE, "original_path", crops)


def test_a_list_may_have_a_column_of_our_name(crops: Path, tmp_path: Path) -> None:
    listing, scores, out = tmp_path / "list.csv", tmp_path / "s.parquet", tmp_path / "out"
    kept = sorted(crops.rglob("[13].jpg"))
    listing.write_text("path,original_path\n" + "".join(f"{path},{crops / 'a' / '0.jpg'}\n" for path in kept))
    score_dataset(Source(list_file=str(listing)), scores, mean_executor)
    fill_folder(Kept(scores, np.ones(len(kept), bool)), out, "copy", companions=Wish())
    done = fill_folder(Kept(scores, np.arange(len(kept)) > 0), out, "copy", companions=Wish(), update=True)
    assert (done.removed, done.already) == (1, len(kept) - 1)
    assert pq.read_table(out / TABLE)["delivered_from"].to_pylist() == [str(path) for path in kept[1:]]


def test_updates_that_are_refused(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill_folder(Kept(scores, mask), out, "copy", companions=Wish())
    for options, message in (
        ({"way": "hardlink", "companions": Wish()}, "filled by --copy, not --hardlink"),
        ({"way": "copy"}, "with other --companions"),
        ({"way": "copy", "companions": Wish(), "root": str(tmp_path)}, f"--root {crops}, and with {tmp_path}"),
    ):
        with pytest.raises(FiqaError, match=message):
            fill_folder(Kept(scores, ~mask), out, update=True, **options)
    (out / TABLE).unlink()
    with pytest.raises(FiqaError, match="cannot be told what was delivered"):
        fill_folder(Kept(scores, ~mask), out, "copy", companions=Wish(), update=True)
    with pytest.raises(FiqaError, match="--update goes with --copy"):
        delivery.deliver(Kept(scores, mask), tmp_path / "k.txt", update=True)


@pytest.mark.slow
def test_the_loop_of_every_week(scores: Path, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call_filter(scores, "-o", out, "--copy", "--top", 3, "--update")
    shutil.copytree(crops / "b", crops / "c")
    again(crops, scores)
    assert "--update makes it what this one keeps" in call_filter(scores, "-o", out, "--copy", "--top", 8, code=1)
    said = call_filter(scores, "-o", out, "--copy", "--top", 8, "--update", "--dry-run")
    assert "would write" in said
    said = call_filter(scores, "-o", out, "--copy", "--top", 8, "--update")
    assert f"written to {out}" in said
    assert len(tree(out)) == 8
    said = call_filter(scores, "-o", out, "--copy", "--top", 2, "--update", "--dry-run")
    assert "6 would be taken out: not kept any more, or changed since" in said
    assert "would write 0 images" in said
    said = call_filter(scores, "-o", out, "--copy", "--top", 2, "--update")
    assert "6 taken out: not kept any more, or changed since" in said
    assert len(tree(out)) == 2
    assert not any(path.is_dir() and not os.listdir(path) for path in out.rglob("*"))
