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

from fiqa_trt.curation import delivery
from fiqa_trt.curation.delivery import WAYS, fill_folder, undo_move, write_rows
from fiqa_trt.curation.delivery.companions import Wish
from fiqa_trt.curation.kept import Kept
from fiqa_trt.errors import InputError
from fiqa_trt.inputs.listing import LeftOut, walk
from fiqa_trt.inputs.marks import JOURNAL, NOTE, TABLE
from fiqa_trt.inputs.source import Source
from fiqa_trt.progress import Progress
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scores.files import output_metadata, read_output
from tests.helpers import Stop, call_filter, mean_executor, only, tar, tree, wanted


@pytest.mark.slow
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
    said = call_filter("--undo", out, code=3)
    assert f"{out}/a/2.jpg (from {crops}/a/2.jpg): neither in the folder nor in its old place" in said
    assert (
        f"put what stays in its old place by hand, or delete it; then this ends it: fiqa-trt filter --undo {out}"
        in said
    )
    (out / "a" / "4.jpg").rename(crops / "a" / "4.jpg")
    said = call_filter("--undo", out, code=3)  # says for the last time what is missing
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


@pytest.mark.slow
def test_the_command(scores: Path, crops: Path, tmp_path: Path) -> None:
    expected, out = tree(crops), tmp_path / "my folder"
    said = call_filter(scores, "-o", out, "--move", "--top", 3)
    assert f"their scores: {out / TABLE}" in said
    assert f"fiqa-trt filter --undo '{out}'" in said
    assert f"{out} is already complete: 3 images" in call_filter(scores, "-o", out, "--move", "--top", 3)
    assert json.loads(call_filter(scores, "-o", out, "--move", "--top", 3, "-q", "--json"))["delivered"]["already"] == 3
    assert "would write 0 images" in call_filter(scores, "-o", out, "--move", "--top", 3, "--dry-run")
    moved = next(iter(tree(out)))
    (crops / moved).write_bytes(b"other")
    assert f"fiqa-trt filter --undo '{out}'" in call_filter("--undo", out, code=3)
    (crops / moved).unlink()
    assert json.loads(call_filter("--undo", out, "-q", "--json"))["returned"] == 1
    assert tree(crops) == expected
    assert "goes alone, not with --top\n" in call_filter("--undo", out, "--top", 3, code=2)
    assert "goes alone, not with SCORES, --dry-run\n" in call_filter(scores, "--undo", out, "--dry-run", code=2)
    assert "no such folder; it goes when everything in it has been taken back" in call_filter("--undo", out, code=1)
    assert "give SCORES" in call_filter("--top", 3, code=2)


def test_names_of_shards_are_said_before_and_after(scores: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "k-000000.tar", "k-000001.tar"
    said = call_filter(scores, "-o", tmp_path / "k.tar", "--top", 3, "--dry-run")
    assert f"shards are numbered: {first}, {second} and so on" in said
    assert "is among the images" not in said
    said = call_filter(scores, "-o", tmp_path / "k.tar", "--top", 3)
    assert f"3 written to {first}\n" in said
    said = call_filter(scores, "-o", tmp_path / "k.tar", "--top", 3, "--shard-size", 2, "--restart")
    assert f"3 written to {first} to {second}\n" in said
    assert "is among the images" in call_filter(scores, "-o", tmp_path / "crops" / "k.tar", "--top", 3, "--dry-run")


def test_nothing_stays_where_nothing_was_delivered(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    shutil.rmtree(crops)
    fill_folder(Kept(scores, mask), tmp_path / "out", "copy")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    fill_folder(Kept(scores, mask), tmp_path / "out", "copy")
    assert os.listdir(tmp_path / "out") == []
