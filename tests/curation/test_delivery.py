"""What becomes of the kept images: lists, rows, folders in four ways, shards; stopped, refused, never overwritten."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fiqa_trt.curation import delivery
from fiqa_trt.curation.delivery import WAYS, fill_folder, folder, measure, write_rows, write_shards
from fiqa_trt.curation.kept import Kept
from fiqa_trt.errors import DifferentRun, FiqaError, InputError, OutputError, RunError
from fiqa_trt.inputs.source import Source, list_inputs
from fiqa_trt.progress import Progress
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scores.files import hold, output_metadata, to_json
from tests.helpers import Stop, mean_executor, tar, tree, wanted


def test_a_list_and_rows(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    for suffix in ("txt", "parquet", "csv", "jsonl"):
        assert write_rows(Kept(scores, mask), tmp_path / f"k.{suffix}").written == 9
        with pytest.raises(DifferentRun, match="exists already"):
            write_rows(Kept(scores, mask), tmp_path / f"k.{suffix}")
        write_rows(Kept(scores, mask), tmp_path / f"k.{suffix}", restart=True)
    lines = (tmp_path / "k.txt").read_text().splitlines()
    assert lines == [str(crops / name) for name in wanted(crops)]
    table = pq.read_table(tmp_path / "k.parquet")
    assert table.select(table.column_names).equals(pq.read_table(scores).filter(mask))
    metadata = output_metadata(tmp_path / "k.parquet")
    assert metadata is not None
    assert metadata["filtered_from"] == str(scores)
    assert [json.loads(line)["path"] for line in (tmp_path / "k.jsonl").read_text().splitlines()] == lines
    source = Source(list_file=str(tmp_path / "k.txt"))
    assert [path for batch in list_inputs(source) for path in batch.column(0).to_pylist()] == lines


@pytest.mark.parametrize("way", WAYS)
def test_folders(scores: Path, mask: Any, crops: Path, tmp_path: Path, way: str) -> None:
    expected, out = wanted(crops), tmp_path / "out"
    sources = {name: (crops / name).stat().st_ino for name in expected}
    delivered = fill_folder(Kept(scores, mask), out, way)
    assert (delivered.written, delivered.already, delivered.skipped) == (9, 0, {})
    assert delivered.bytes == sum(map(len, expected.values()))
    assert tree(out) == expected
    assert all((crops / name).exists() == (way != "move") for name in expected)
    for name, inode in sources.items():
        assert (out / name).is_symlink() == (way == "symlink")
        assert ((out / name).stat().st_ino == inode) == (way != "copy")
    assert (crops / "a" / "0.jpg").exists()
    again = fill_folder(Kept(scores, mask), out, way)
    assert (again.written, again.already, again.skipped) == (0, 9, {})
    assert tree(out) == expected
    with pytest.raises(
        OutputError, match="was filled by another call; --update makes it what this one keeps, or choose"
    ):
        fill_folder(Kept(scores, ~mask), out, way)


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_call_goes_on(scores: Path, mask: Any, crops: Path, tmp_path: Path, way: str) -> None:
    expected, out = wanted(crops), tmp_path / "out"

    def stop(progress: Progress) -> None:
        if progress.done == 4:
            raise Stop

    with pytest.raises(Stop):
        fill_folder(Kept(scores, mask), out, way, report=stop)
    other = mask.copy()
    other[0] = True
    with pytest.raises(OutputError, match="being filled by another call"):
        fill_folder(Kept(scores, other), out, way)
    delivered = fill_folder(Kept(scores, mask), out, way)
    assert (delivered.written, delivered.already) == (5, 4)
    assert tree(out) == expected


@pytest.mark.parametrize("place", ["link", "unlink"])
def test_a_move_that_is_killed_anywhere_loses_nothing(
    scores: Path, mask: Any, crops: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, out = wanted(crops), tmp_path / "out"

    def killed(*args: object, **options: object) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(os, place, killed)
        fill_folder(Kept(scores, mask), out, "move")
    assert all((crops / name).exists() or (out / name).exists() for name in expected)
    fill_folder(Kept(scores, mask), out, "move")
    assert tree(out) == expected
    assert not any((crops / name).exists() for name in expected)


def test_a_move_across_devices(
    scores: Path, mask: Any, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, real = wanted(crops), shutil.copy2

    def no_link(*args: object, **options: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    def spoiling(source: str, target: Path, **options: Any) -> None:
        real(source, target, **options)
        if source.endswith("4.jpg"):
            target.write_bytes(target.read_bytes()[:-1])

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_link)
        patch.setattr(shutil, "copy2", spoiling)
        delivered = fill_folder(Kept(scores, mask), tmp_path / "out", "move")
    assert delivered.written == 8
    assert list(delivered.skipped) == ["its copy is not what it is; it was left where it is"]
    assert (crops / "a" / "4.jpg").read_bytes() == expected["a/4.jpg"]
    assert tree(tmp_path / "out") == {name: data for name, data in expected.items() if name != "a/4.jpg"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_link)
        skipped = fill_folder(Kept(scores, mask), tmp_path / "hard", "hardlink").skipped
    assert skipped == {"missing": 8, "on another file system, so it cannot be hard-linked: --copy or --symlink": 1}


def test_a_folder_is_filled_by_one_run_at_a_time(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    output, before = tmp_path / "out", wanted(crops)
    refused = list[str]()

    def meanwhile(progress: Progress) -> None:
        for other in (lambda: fill_folder(Kept(scores, mask), output, "move"), lambda: delivery.undo_move(output)):
            with pytest.raises(OutputError) as caught:
                other()
            refused.append(str(caught.value))

    assert fill_folder(Kept(scores, mask), output, "move", report=meanwhile).written == len(before)
    assert set(refused) == {f"another run is writing {output} at this moment"}
    assert tree(output) == before


def test_a_folder_that_another_run_has_filled_meanwhile(
    scores: Path, mask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, output = folder.check_folder, tmp_path / "out"

    def slow(*arguments: Any, **options: Any) -> Any:
        with monkeypatch.context() as original:
            original.setattr(folder, "check_folder", check)
            fill = check(*arguments, **options)
            fill_folder(Kept(scores, mask), output, "copy")
        return fill

    monkeypatch.setattr(folder, "check_folder", slow)
    with pytest.raises(OutputError, match="another run has just written"):
        fill_folder(Kept(scores, mask), output, "copy")


def test_names_that_are_hard_to_place(crops: Path, tmp_path: Path) -> None:
    shutil.copy(crops / "a" / "0.jpg", crops / "..dots.jpg")
    shutil.copy(crops / "a" / "0.jpg", crops / ("é" * 125 + ".jpg"))
    (crops / "link.jpg").symlink_to("a/0.jpg")
    scores, out = tmp_path / "s.parquet", tmp_path / "out"
    score_dataset(Source((str(crops),)), scores, mean_executor)
    expected = tree(crops)
    delivered = fill_folder(Kept(scores, np.ones(len(expected), bool)), out, "copy")
    assert (delivered.written, delivered.skipped) == (len(expected), {})
    shutil.rmtree(out)
    chosen = np.array([p.endswith("link.jpg") for p in pq.read_table(scores)["path"].to_pylist()])
    fill_folder(Kept(scores, chosen), out, "move", root=str(crops))
    assert tree(out) == {"link.jpg": expected["link.jpg"]}
    assert not (crops / "link.jpg").is_symlink()
    assert (crops / "a" / "0.jpg").exists()


def test_a_source_that_cannot_be_read_is_skipped(
    scores: Path, mask: Any, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.copy2

    def copy(source: str, target: Path, **options: Any) -> None:
        if source.endswith("b/3.jpg"):
            raise PermissionError(13, "Permission denied", source)
        real(source, target, **options)

    monkeypatch.setattr(shutil, "copy2", copy)
    assert fill_folder(Kept(scores, mask), tmp_path / "out", "copy").skipped == {"permission denied": 1}


def test_roots(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    assert Kept(scores, mask).root == str(crops)
    fill_folder(Kept(scores, mask), tmp_path / "high", "symlink", root=str(tmp_path))
    assert set(tree(tmp_path / "high")) == {f"crops/{name}" for name in wanted(crops)}
    delivered = fill_folder(Kept(scores, mask), tmp_path / "low", "symlink", root=str(crops / "a"))
    assert delivered.skipped == {f"not below --root {crops / 'a'}": 5}
    assert delivered.examples[0].startswith(f"{crops}/b/1.jpg: not below")
    with pytest.raises(InputError, match=r"--root .*/none: no such folder"):
        fill_folder(Kept(scores, mask), tmp_path / "out", "copy", root=str(tmp_path / "none"))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system in /dev/shm")
def test_hard_links_to_another_file_system(scores: Path, mask: Any) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as out:
        delivered = fill_folder(Kept(scores, mask), Path(out), "hardlink")
        assert (delivered.written, list(delivered.skipped.values())) == (0, [9])
        assert os.listdir(out) == []


def test_folders_that_are_refused(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds images that are to be delivered"):
        fill_folder(Kept(scores, mask), crops, "copy")
    with pytest.raises(OutputError, match="cannot write"):
        fill_folder(Kept(scores, mask), Path("/proc/out"), "copy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(OutputError, match="not empty"):
        fill_folder(Kept(scores, mask), tmp_path / "full", "copy")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        fill_folder(Kept(scores, mask), tmp_path / "file", "copy")


def test_sources_that_are_gone(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    (crops / "b" / "3.jpg").unlink()
    delivered = fill_folder(Kept(scores, mask), tmp_path / "out", "copy")
    assert (delivered.written, delivered.skipped) == (8, {"missing": 1})
    assert delivered.examples == [f"{crops}/b/3.jpg: missing"]
    assert write_shards(Kept(scores, mask), tmp_path / "t.tar").skipped == {"missing": 1}
    assert measure(Kept(scores, mask), None).written == 8


def test_a_full_disk(scores: Path, mask: Any, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunError, match="no space left"):
        patch.setattr(shutil, "copy2", full)
        fill_folder(Kept(scores, mask), tmp_path / "out", "copy")
    assert fill_folder(Kept(scores, mask), tmp_path / "out", "copy").written == 9


def test_shards(scores: Path, mask: Any, crops: Path, tmp_path: Path) -> None:
    delivered = write_shards(Kept(scores, mask), tmp_path / "t.tar", shard_size=4)
    assert delivered.written == 9
    shards = sorted(tmp_path.glob("t-*.tar"))
    assert [path.name for path in shards] == ["t-000000.tar", "t-000001.tar", "t-000002.tar"]
    images, rows = list[bytes](), list[dict[str, object]]()
    for path in shards:
        with tarfile.open(path) as archive:
            for entry in archive:
                file = archive.extractfile(entry)
                assert file is not None
                data = file.read()
                if entry.name.endswith(".json"):
                    rows.append(json.loads(data))
                else:
                    images.append(data)
    assert images == list(wanted(crops).values())
    assert rows == [json.loads(to_json(row)) for row in hold(pq.read_table(scores).filter(mask), ".jsonl").to_pylist()]
    with pytest.raises(DifferentRun, match="exists already"):
        write_shards(Kept(scores, mask), tmp_path / "t.tar")
    for name in ("t-backup.tar", "t-1234567.tar.bak"):
        (tmp_path / name).touch()
    write_shards(Kept(scores, mask), tmp_path / "t.tar", restart=True)
    assert [path.name for path in sorted(tmp_path.glob("t-*.tar*"))] == [
        "t-000000.tar", "t-1234567.tar.bak", "t-backup.tar",
    ]  # fmt: skip
    write_shards(Kept(scores, mask), tmp_path / "x[1].tar")
    with pytest.raises(DifferentRun, match="exists already"):
        write_shards(Kept(scores, mask), tmp_path / "x[1].tar")


def test_shards_of_the_images_themselves_are_not_replaced(scores: Path, mask: Any, tmp_path: Path) -> None:
    write_shards(Kept(scores, mask), tmp_path / "t.tar")
    data = (tmp_path / "t-000000.tar").read_bytes()
    again = tmp_path / "again.parquet"
    score_dataset(Source((str(tmp_path / "t-000000.tar"),)), again, mean_executor)
    for restart in (False, True):
        with pytest.raises(OutputError, match="is to be delivered, and would be replaced"):
            write_shards(Kept(again, np.ones(9, bool)), tmp_path / "t.tar", restart=restart)
    assert (tmp_path / "t-000000.tar").read_bytes() == data


def test_images_out_of_shards(crops: Path, tmp_path: Path) -> None:
    data = (crops / "a" / "0.jpg").read_bytes()
    shard = tar(tmp_path / "s.tar", [("p/a.jpg", data), ("../../evil.jpg", data), ("p/a.jpg", data)])
    scores = tmp_path / "s.parquet"
    score_dataset(Source((str(shard),)), scores, mean_executor)
    everything = np.ones(3, bool)
    delivered = fill_folder(Kept(scores, everything), tmp_path / "out", "copy")
    assert delivered.written == 3
    assert set(tree(tmp_path / "out")) == {"s.tar/p/a.jpg", "s.tar/evil.jpg", "s.tar/p/a::2.jpg"}
    dry = delivery.deliver(Kept(scores, everything), tmp_path / "linked", "symlink", dry_run=True)
    delivered = fill_folder(Kept(scores, everything), tmp_path / "linked", "symlink")
    assert (dry.written, dry.skipped) == (0, delivered.skipped)
    assert delivered.skipped == {"inside a shard, so it can only be copied, not --symlink": 3}


def test_suffixes_that_make_names_equal(crops: Path, tmp_path: Path) -> None:
    files = [(crops / "a" / f"{index}.jpg").read_bytes() for index in (0, 2)]
    shard = tar(tmp_path / "s.tar", [("a", files[0]), ("a.jpg", files[1])])
    scores = tmp_path / "s.parquet"
    score_dataset(Source((str(shard),), all_files=True), scores, mean_executor)
    delivered = fill_folder(Kept(scores, np.ones(2, bool)), tmp_path / "out", "copy")
    assert (delivered.written, delivered.already) == (1, 0)
    assert delivered.skipped == {"another image has its place in the output": 1}


@pytest.mark.parametrize("change", ["folder", "fifo"])
@pytest.mark.parametrize("way", WAYS)
def test_a_source_that_is_no_file_any_more(
    scores: Path, mask: Any, crops: Path, tmp_path: Path, change: str, way: str
) -> None:
    (crops / "b" / "3.jpg").unlink()
    (os.mkdir if change == "folder" else os.mkfifo)(crops / "b" / "3.jpg")
    assert fill_folder(Kept(scores, mask), tmp_path / "out", way).skipped == {"not a file any more": 1}


def test_a_dry_run_refuses_what_the_call_would(scores: Path, mask: Any, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "k.txt").touch()
    for output, way, message in (
        (tmp_path / "full", "copy", "is not empty"),
        (tmp_path / "x.xyz", None, "cannot tell what"),
        (tmp_path / "k.txt", None, "exists already"),
        (tmp_path / "no" / "k.tar", None, "does not exist"),
    ):
        with pytest.raises(FiqaError, match=message):
            delivery.deliver(Kept(scores, mask), output, way, dry_run=True)
    odd = pq.read_table(scores).append_column("blob", pa.array([b"x"] * len(mask)))
    names = [path.replace("2.jpg", "2\n.jpg") for path in odd["path"].to_pylist()]
    pq.write_table(odd.set_column(0, "path", pa.array(names)), tmp_path / "odd.parquet")
    for name, message in (
        ("n.txt", "has a line break"),
        ("n.csv", "`blob`"),
        ("n.jsonl", "`blob`"),
        ("n.tar", "`blob`"),
    ):
        for dry_run in (True, False):
            with pytest.raises(FiqaError, match=message):
                delivery.deliver(Kept(tmp_path / "odd.parquet", mask), tmp_path / name, dry_run=dry_run)
    before = tree(tmp_path)
    for output, way in ((tmp_path / "new", "move"), (tmp_path / "k.tar", None), (tmp_path / "k.csv", None)):
        assert delivery.deliver(Kept(scores, mask), output, way, dry_run=True).written == 9
    assert tree(tmp_path) == before


def test_rows_of_tables_get_a_suffix(crops: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.open(crops / "a" / "0.jpg").save(buffer, "PNG")
    table = pa.table({"image": [(crops / "a" / "0.jpg").read_bytes(), buffer.getvalue()]})
    pq.write_table(table, tmp_path / "t.parquet")
    scores, everything = tmp_path / "s.parquet", np.ones(2, bool)
    score_dataset(Source((str(tmp_path / "t.parquet"),)), scores, mean_executor)
    for _ in range(2):
        fill_folder(Kept(scores, everything), tmp_path / "out", "copy")
        assert set(tree(tmp_path / "out")) == {"t.parquet/0.jpg", "t.parquet/1.png"}
        shutil.rmtree(tmp_path / "out")
    write_shards(Kept(scores, everything), tmp_path / "p.tar")
    again = Source((str(tmp_path / "p-000000.tar"),))
    assert [row for batch in list_inputs(again) for row in batch.column(0).to_pylist()] == [
        f"{tmp_path}/p-000000.tar::000000000.jpg", f"{tmp_path}/p-000000.tar::000000001.png",
    ]  # fmt: skip


def test_the_scores_themselves_are_not_replaced(scores: Path, mask: Any) -> None:
    with pytest.raises(OutputError, match="holds the scores"):
        delivery.deliver(Kept(scores, mask), scores, restart=True)
