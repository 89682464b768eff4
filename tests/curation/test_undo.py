"""Folders that filter fills: what it leaves in them, what a second run makes of them, and moves that are taken back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from fiqa_trt.cli import group
from fiqa_trt.curation import delivery
from fiqa_trt.curation.delivery import WAYS, fill_folder, undo_move, write_rows
from fiqa_trt.curation.delivery.companions import Wish
from fiqa_trt.curation.kept import Kept
from fiqa_trt.errors import FiqaError, InputError
from fiqa_trt.inputs.listing import LeftOut, walk
from fiqa_trt.inputs.marks import JOURNAL, NOTE, TABLE
from fiqa_trt.inputs.source import Source
from fiqa_trt.progress import Progress
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scores.files import output_metadata, read_output
from tests.helpers import Stop, mean_executor, tar, tree, wanted


def only(scores: Path, *names: str) -> Any:
    return np.array([path.endswith(names) for path in pq.read_table(scores)["path"].to_pylist()])


def test_the_tree_is_that_of_all_rows(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    """Whatever is kept, an image has the same place."""
    whole = fill_folder(Kept(scores, mask), tmp_path / "all", "symlink")
    assert whole.written == 9
    for number, name in enumerate(wanted(crops)):
        out = tmp_path / f"one{number}"
        fill_folder(Kept(scores, only(scores, name)), out, "symlink")
        assert list(tree(out)) == [name]
    write_rows(Kept(scores, only(scores, "a/2.jpg")), tmp_path / "k.parquet")
    fill_folder(Kept(tmp_path / "k.parquet", np.ones(1, bool)), tmp_path / "of-kept", "copy")
    assert list(tree(tmp_path / "of-kept")) == ["a/2.jpg"]


def test_roots_of_all_kinds_of_paths(crops: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    shard = tar(tmp_path / "x" / "s.tar", [("p/a.jpg", (crops / "a" / "0.jpg").read_bytes())])
    paths = [str(crops / "a" / "0.jpg"), f"{shard}::p/a.jpg", (crops / "b" / "1.jpg").as_uri()]

    def root_of(paths: list[str], **options: int) -> str:
        columns = {"path": paths, "score": [0.5] * len(paths), "status": ["ok"] * len(paths)}
        pq.write_table(pa.table(columns), tmp_path / "s.parquet", **options)
        return Kept(tmp_path / "s.parquet", np.ones(len(paths), bool)).root

    for chosen, root in ((paths[:1], crops / "a"), (paths[1:2], tmp_path / "x"), (paths[2:], crops / "b")):
        assert root_of(chosen) == str(root)
    assert root_of(paths, row_group_size=1) == str(tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_has_the_scores_of_what_is_in_it(
    scores: Path, mask: Any, crops: Path, tmp_path: Path, way: str
) -> None:
    out = tmp_path / "out"
    (crops / "a" / "2.jpg").unlink()
    fill_folder(Kept(scores, mask), out, way)
    table, before = pq.read_table(out / TABLE), pq.read_table(scores).filter(mask)
    there = [name for name in wanted_names(mask, scores, crops) if name != "a/2.jpg"]
    assert table["path"].to_pylist() == [str(out / name) for name in there]
    assert table["original_path"].to_pylist() == [str(crops / name) for name in there]
    before = before.filter(pa.array([not path.endswith("a/2.jpg") for path in before["path"].to_pylist()]))
    assert table["score"].equals(before["score"])
    assert all(os.path.isfile(path) for path in table["path"].to_pylist())
    assert output_metadata(out / TABLE) is not None
    again = fill_folder(Kept(out / TABLE, np.ones(len(there), bool)), tmp_path / "again", "copy")
    assert again.written == len(there)
    assert set(tree(tmp_path / "again")) == set(there)
    assert pq.read_table(tmp_path / "again" / TABLE)["original_path"].to_pylist() == [str(crops / n) for n in there]


def wanted_names(mask: Any, scores: Path, crops: Path) -> list[str]:
    kept = pq.read_table(scores).filter(mask)["path"].to_pylist()
    return [os.path.relpath(path, crops) for path in kept]


def test_rows_of_tables_have_their_names_in_it(crops: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [(crops / "a" / "0.jpg").read_bytes()] * 2}), tmp_path / "t.parquet")
    scores, out = tmp_path / "s.parquet", tmp_path / "out"
    score_dataset(Source((str(tmp_path / "t.parquet"),)), scores, mean_executor)
    for _ in range(2):
        fill_folder(Kept(scores, np.ones(2, bool)), out, "copy")
        names = [path for part in read_output(out / TABLE, ["path"]) for path in part["path"].to_pylist()]
        assert names == [f"{out}/t.parquet/0.jpg", f"{out}/t.parquet/1.jpg"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("every", [False, True])
def test_copies_in_the_tree_are_not_scored(
    scores: Path, mask: Any, crops: Path, tmp_path: Path, way: str, every: bool
) -> None:
    before = sorted(walk(str(crops), every))
    out = crops / "deep" / "clean"
    out.parent.mkdir()
    fill_folder(Kept(scores, mask), out, way)
    left_out = LeftOut()
    after = sorted(walk(str(crops), every, left_out=left_out))
    if way == "move":  # they are there once
        assert len(after) == len(before)
        assert str(out / "a" / "2.jpg") in after
    else:
        assert after == before
        assert f"1 folder of copies that filter made of these images ({out}" in str(left_out)
    inside = [os.path.relpath(path, out) for path in walk(str(out), every)]
    assert sorted(inside) == sorted(wanted_names(mask, scores, crops))
    os.rename(out, tmp_path / "other")  # there they are the only ones
    assert len(list(walk(str(tmp_path / "other"), every))) == 9


def test_folders_of_several_filters_are_a_data_set(scores: Path, mask: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "all").mkdir(exist_ok=True)
        fill_folder(Kept(scores, mask), tmp_path / "all" / name, "copy")
    assert len(list(walk(str(tmp_path / "all")))) == 18


def test_a_file_that_went_comes_back(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    expected, out = wanted(crops), tmp_path / "out"
    fill_folder(Kept(scores, mask), out, "copy")
    (out / "a" / "2.jpg").unlink()
    (out / TABLE).unlink()
    dry = delivery.deliver(Kept(scores, mask), out, "copy", dry_run=True)
    assert (dry.written, dry.already) == (1, 8)
    assert fill_folder(Kept(scores, mask), out, "copy").written == 1
    assert tree(out) == expected
    assert (out / TABLE).exists()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_move_is_taken_back(
    scores: Path, mask: Any, crops: Path, tmp_path: Path, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (crops / "a" / "2.txt").write_text("caption")
    (crops / "a" / "4.txt").touch()
    expected, out = tree(crops), tmp_path / "out"

    def no_link(*args: object, **options: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    if elsewhere:
        monkeypatch.setattr(os, "link", no_link)
    assert fill_folder(Kept(scores, mask), out, "move", companions=Wish()).companions == 2
    assert tree(crops) != expected
    undone = undo_move(out)
    assert (undone.returned, undone.already, undone.skipped, undone.removed) == (11, 0, {}, True)
    assert tree(crops) == expected
    assert not out.exists()
    assert fill_folder(Kept(scores, mask), out, "move").written == 9


def test_a_link_is_put_back_as_one(crops: Path, tmp_path: Path) -> None:
    (crops / "link.jpg").symlink_to("a/0.jpg")
    (crops / "other.jpg").symlink_to("b/1.jpg")
    scores, out = tmp_path / "s.parquet", tmp_path / "out"
    score_dataset(Source((str(crops),)), scores, mean_executor)
    expected = tree(crops)
    fill_folder(Kept(scores, only(scores, "link.jpg", "other.jpg")), out, "move")
    (crops / "b" / "1.jpg").unlink()  # so that its link would lead nowhere
    assert undo_move(out).returned == 2
    assert os.readlink(crops / "link.jpg") == "a/0.jpg"
    assert not (crops / "other.jpg").is_symlink()
    assert {**tree(crops), "b/1.jpg": expected["b/1.jpg"]} == expected


def test_nothing_is_overwritten_or_lost(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    expected, out = wanted(crops), tmp_path / "out"
    fill_folder(Kept(scores, mask), out, "move")
    (crops / "a" / "2.jpg").write_bytes(b"somebody's")
    (out / "a" / "4.jpg").write_bytes(b"edited")
    (out / "a" / "6.jpg").unlink()
    shutil.copy(out / "a" / "8.jpg", crops / "a" / "8.jpg")
    (out / "mine.txt").write_text("notes")
    undone = undo_move(out)
    assert (undone.returned, sum(undone.skipped.values()), undone.removed) == (6, 3, False)
    assert (crops / "a" / "2.jpg").read_bytes() == b"somebody's"
    assert tree(out) == {"a/2.jpg": expected["a/2.jpg"], "a/4.jpg": b"edited", "mine.txt": b"notes"}
    (crops / "a" / "2.jpg").unlink()
    (out / "a" / "4.jpg").write_bytes(expected["a/4.jpg"])
    (out / "a" / "6.jpg").write_bytes(expected["a/6.jpg"])
    undone = undo_move(out)
    assert (undone.returned, undone.already, undone.skipped, undone.removed) == (3, 6, {}, False)
    assert os.listdir(out) == ["mine.txt"]
    assert wanted(crops) == expected


def test_every_undo_has_an_end(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill_folder(Kept(scores, mask), out, "move")
    (out / "a" / "2.jpg").unlink()  # can never be taken back
    (out / "a" / "4.jpg").write_bytes(b"edited")
    said = call("--undo", out, code=3)
    assert f"{out}/a/2.jpg (from {crops}/a/2.jpg): neither in the folder nor in its old place" in said
    assert (
        f"put what stays in its old place by hand, or delete it; then this ends it: fiqa-trt filter --undo {out}"
        in said
    )
    (out / "a" / "4.jpg").rename(crops / "a" / "4.jpg")
    said = call("--undo", out, code=3)  # says for the last time what is missing
    assert "8 files were in the old place already" in said
    assert "this ends it" not in said
    assert not out.exists()


@pytest.mark.parametrize("place", ["link", "unlink"])
def test_killed_anywhere_it_goes_on(
    scores: Path, mask: Any, crops: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The move, and then its undoing, are stopped at each place in turn."""
    expected, out = wanted(crops), tmp_path / "out"
    real = getattr(os, place)
    for at in range(9):
        calls = 0

        def killed(*args: Any, **options: Any) -> None:
            nonlocal calls
            calls += str(args[0]).endswith(".jpg")  # not what is written beside them
            if calls > at:  # noqa: B023
                raise Stop
            real(*args, **options)

        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(os, place, killed)
            fill_folder(Kept(scores, mask), out, "move")
        with (out / JOURNAL).open("a") as file:
            file.write('{"file": "cut')
        with monkeypatch.context() as patch:
            calls = 0
            patch.setattr(os, place, killed)
            try:
                undo_move(out)
            except Stop:
                assert all((crops / name).exists() or (out / name).exists() for name in expected)
        assert undo_move(out).removed if out.exists() else True
        assert wanted(crops) == expected


def test_it_says_how_far_it_is(scores: Path, mask: Any, tmp_path: Path) -> None:
    fill_folder(Kept(scores, mask), tmp_path / "out", "move")
    seen = list[Progress]()
    undo_move(tmp_path / "out", seen.append)
    assert [(each.done, each.total) for each in seen] == [(number, 9) for number in range(1, 10)]


def test_folders_that_have_no_move(scores: Path, mask: Any, tmp_path: Path) -> None:
    for place, message in ((tmp_path, "no move is noted there"), (tmp_path / "none", "no such folder; it goes when")):
        with pytest.raises(InputError, match=message):
            undo_move(place)
    fill_folder(Kept(scores, mask), tmp_path / "out", "hardlink")
    with pytest.raises(InputError, match="filled by --hardlink, so the images are where they were"):
        undo_move(tmp_path / "out")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / NOTE).write_text("0" * 64)  # of an earlier version
    with pytest.raises(InputError, match="no move is noted there: not filled by filter --move, or all is taken"):
        undo_move(tmp_path / "old")


def call(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(group, ["filter", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return str(done.exception) if isinstance(done.exception, FiqaError) else done.output


def test_the_command(scores: Path, crops: Path, tmp_path: Path) -> None:
    expected, out = tree(crops), tmp_path / "my folder"
    said = call(scores, "-o", out, "--move", "--top", 3)
    assert f"their scores: {out / TABLE}" in said
    assert f"fiqa-trt filter --undo '{out}'" in said
    assert f"{out} is already complete: 3 images" in call(scores, "-o", out, "--move", "--top", 3)
    assert json.loads(call(scores, "-o", out, "--move", "--top", 3, "-q", "--json"))["delivered"]["already"] == 3
    assert "would write 0 images" in call(scores, "-o", out, "--move", "--top", 3, "--dry-run")
    moved = next(iter(tree(out)))
    (crops / moved).write_bytes(b"other")
    assert f"fiqa-trt filter --undo '{out}'" in call("--undo", out, code=3)
    (crops / moved).unlink()
    assert json.loads(call("--undo", out, "-q", "--json"))["returned"] == 1
    assert tree(crops) == expected
    assert "goes alone, not with --top\n" in call("--undo", out, "--top", 3, code=2)
    assert "goes alone, not with SCORES, --dry-run\n" in call(scores, "--undo", out, "--dry-run", code=2)
    assert "no such folder; it goes when everything in it has been taken back" in call("--undo", out, code=1)
    assert "give SCORES" in call("--top", 3, code=2)


def test_names_of_shards_are_said_before_and_after(scores: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "k-000000.tar", "k-000001.tar"
    said = call(scores, "-o", tmp_path / "k.tar", "--top", 3, "--dry-run")
    assert f"shards are numbered: {first}, {second} and so on" in said
    assert "is among the images" not in said
    said = call(scores, "-o", tmp_path / "k.tar", "--top", 3)
    assert f"3 written to {first}\n" in said
    said = call(scores, "-o", tmp_path / "k.tar", "--top", 3, "--shard-size", 2, "--restart")
    assert f"3 written to {first} to {second}\n" in said
    assert "is among the images" in call(scores, "-o", tmp_path / "crops" / "k.tar", "--top", 3, "--dry-run")


def test_nothing_stays_where_nothing_was_delivered(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    shutil.rmtree(crops)
    fill_folder(Kept(scores, mask), tmp_path / "out", "copy")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    fill_folder(Kept(scores, mask), tmp_path / "out", "copy")
    assert os.listdir(tmp_path / "out") == []


def again(crops: Path, scores: Path) -> None:
    scores.unlink()
    score_dataset(Source((str(crops),)), scores, mean_executor)


def names_in(table: Path, column: str, start: Path) -> list[str]:
    return [os.path.relpath(path, start) for path in pq.read_table(table)[column].to_pylist()]


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


def test_the_loop_of_every_week(scores: Path, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call(scores, "-o", out, "--copy", "--top", 3, "--update")
    shutil.copytree(crops / "b", crops / "c")
    again(crops, scores)
    assert "--update makes it what this one keeps" in call(scores, "-o", out, "--copy", "--top", 8, code=1)
    said = call(scores, "-o", out, "--copy", "--top", 8, "--update", "--dry-run")
    assert "would write" in said
    said = call(scores, "-o", out, "--copy", "--top", 8, "--update")
    assert f"written to {out}" in said
    assert len(tree(out)) == 8
    said = call(scores, "-o", out, "--copy", "--top", 2, "--update", "--dry-run")
    assert "6 would be taken out: not kept any more, or changed since" in said
    assert "would write 0 images" in said
    said = call(scores, "-o", out, "--copy", "--top", 2, "--update")
    assert "6 taken out: not kept any more, or changed since" in said
    assert len(tree(out)) == 2
    assert not any(path.is_dir() and not os.listdir(path) for path in out.rglob("*"))
