"""What goes with an image goes along: WebDataset samples, captions beside files; and what stays behind is said."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiqa_trt.cli import group
from fiqa_trt.curation.delivery import WAYS, deliver
from fiqa_trt.curation.delivery.companions import Companions, Wish
from fiqa_trt.curation.kept import Kept
from fiqa_trt.errors import FiqaError, UsageError
from fiqa_trt.inputs.address import Address
from fiqa_trt.inputs.reader import ContainerReader
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from tests.helpers import jpeg, mean_executor, tar, tree

Members = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def crop() -> bytes:
    from fiqa_trt.machine import samples

    return jpeg(samples.portrait().resize((32, 32)))


def scored(source: Path, output: Path) -> Path:
    score_dataset(Source((str(source),)), output, mean_executor, Options(restart=True))
    return output


def kept(scores: Path, *numbers: int) -> Any:
    import pyarrow.parquet as pq

    mask = np.zeros(pq.read_metadata(scores).num_rows, bool)
    mask[list(numbers) if numbers else slice(None)] = True
    return mask


def members(archive: Path) -> Members:
    with tarfile.open(archive) as opened:
        return [(entry.name, opened.extractfile(entry).read()) for entry in opened]  # type: ignore[union-attr]


def test_samples_are_delivered_whole(tmp_path: Path, crop: bytes) -> None:
    made = [
        (f"a/{number}.{extension}", data)
        for number in range(4)
        for extension, data in (("jpg", crop), ("txt", b"a caption"), ("cls", b""), ("json", b'{"id": 7}'))
    ]
    scores = scored(tar(tmp_path / "in.tar", made), tmp_path / "s.parquet")
    done = deliver(Kept(scores, kept(scores, 1, 3)), tmp_path / "k.tar")
    assert (done.written, done.companions, done.left_behind, done.skipped) == (2, 6, 0, {})
    found = members(tmp_path / "k-000000.tar")
    extensions = [".jpg", ".txt", ".cls", ".json", ".fiqa.json"]
    assert [name for name, _ in found] == [f"{number:09}{extension}" for number in (0, 1) for extension in extensions]
    assert [data for _, data in found[:4]] == [crop, b"a caption", b"", b'{"id": 7}']
    assert json.loads(found[9][1])["path"].endswith("in.tar::a/3.jpg")
    before = deliver(Kept(scores, kept(scores, 1, 3)), tmp_path / "k2.tar", dry_run=True)
    assert (before.written, before.companions, before.left_behind) == (2, 6, 0)


extensions = st.lists(st.sampled_from(["txt", "cls", "seg.jpg", "json", "left.json", "npy"]), unique=True, max_size=4)


@pytest.mark.slow
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 9), extensions), min_size=1, max_size=6, unique_by=lambda one: one[0]), st.data()
)
def test_no_member_of_a_kept_sample_is_lost(
    tmp_path: Path, crop: bytes, made: list[tuple[int, list[str]]], data: st.DataObject
) -> None:
    samples = {
        f"{number:04}": {
            "jpg": crop,
            **{each: crop if each.endswith("jpg") else b"\0" + os.urandom(5) for each in along},
        }
        for number, along in made
    }
    archive = tar(tmp_path / "in.tar", [(f"{k}.{e}", b) for k, each in samples.items() for e, b in each.items()])
    scores = scored(archive, tmp_path / "s.parquet")
    rows = sum(extension.endswith("jpg") for each in samples.values() for extension in each)
    order = data.draw(st.lists(st.integers(0, rows - 1), unique=True, min_size=1))
    for path in tmp_path.glob("k-*.tar"):
        path.unlink()
    done = deliver(Kept(scores, kept(scores, *order)), tmp_path / "k.tar", shard_size=2)
    found = dict[str, dict[str, bytes]]()
    for path in sorted(tmp_path.glob("k-*.tar")):
        for name, content in members(path):
            found.setdefault(name.split(".")[0], {})[name.split(".", 1)[1]] = content
    assert done.written == len(order)
    wanted = set[str]()
    delivered = dict[str, dict[str, bytes]]()
    for each in found.values():
        by_path = {name: json.loads(b)["path"] for name, b in each.items() if b.startswith(b"{")}
        assert by_path
        key = next(iter(by_path.values())).rpartition("::")[2].split(".")[0]
        wanted |= {path.rpartition("::")[2] for path in by_path.values()}
        delivered[key] = {name: content for name, content in each.items() if name not in by_path}
    assert len(wanted) == len(order)
    assert delivered == {key: samples[key] for key in {name.split(".")[0] for name in wanted}}


def test_rows_in_another_order_do_not_repeat_a_sample(tmp_path: Path, crop: bytes) -> None:
    made = [(f"{number}.{side}.jpg", crop) for number in range(2) for side in ("left", "right")]
    scores = scored(tar(tmp_path / "in.tar", made), tmp_path / "s.csv")
    lines = scores.read_text().splitlines()
    scores.write_text("\n".join([lines[0], lines[1], lines[3], lines[2], lines[4]]) + "\n")
    done = deliver(Kept(scores, np.ones(4, bool)), tmp_path / "k.tar")
    names = [name for name, _ in members(tmp_path / "k-000000.tar")]
    assert (done.written, len(names), len(set(names))) == (4, 6, 6)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 40])
def test_dotted_names_of_an_ordinary_tar_are_images_of_their_own(tmp_path: Path, crop: bytes, count: int) -> None:
    """WebDataset would take `v1.0_0001.jpg` and all that follow for one sample."""
    made = [(f"v1.0_{number:04}.{e}", b) for number in range(count * 10) for e, b in (("jpg", crop), ("txt", b"t"))]
    scores = scored(tar(tmp_path / "in.tar", made), tmp_path / "s.parquet")
    assert deliver(Kept(scores, kept(scores, 5)), tmp_path / "k.tar").companions == 1
    assert [name for name, _ in members(tmp_path / "k-000000.tar")] == [f"{0:09}{e}" for e in (".jpg", ".txt", ".json")]


@pytest.fixture
def beside(tmp_path: Path, crop: bytes) -> Path:
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "c.x.jpg", "c.jpg"):
        (folder / name).write_bytes(crop)
    for name in ("a.txt", "a.json", "a.jpg.xmp", "b.TXT", "c.x.txt", "unrelated.txt", "notes", ".hidden"):
        (folder / name).write_bytes(name.encode())
    (folder / "b.d").mkdir()
    return folder


def test_what_stays_behind_is_said_once(beside: Path, tmp_path: Path) -> None:
    scores = scored(beside, tmp_path / "s.parquet")
    arguments = ["filter", str(scores), "-o", str(tmp_path / "out"), "--copy", "--keep", "100%"]
    said = CliRunner().invoke(group, arguments, catch_exceptions=False).output
    assert said.count("3 images have companions (.txt, .json, .jpg.xmp) that stay behind; --companions auto") == 1
    arguments[3] = str(tmp_path / "k.tar")
    said = CliRunner().invoke(group, [*arguments[:4], "--keep", "100%"], catch_exceptions=False).output
    assert said.count("3 images have companions") == 1


@pytest.mark.parametrize("way", WAYS)
def test_companions_of_files(beside: Path, tmp_path: Path, way: str) -> None:
    scores = scored(beside, tmp_path / "s.parquet")
    whole = tree(beside)
    done = deliver(Kept(scores, kept(scores, 0, 1)), tmp_path / "out", way, companions="auto")  # a and b
    wanted = {"a.jpg", "a.txt", "a.json", "a.jpg.xmp", "b.jpg", "b.TXT"}
    assert tree(tmp_path / "out") == {name: whole[name] for name in wanted}
    assert (done.written, done.companions, done.left_behind) == (2, 4, 0)
    assert set(tree(beside)) == (set(whole) - wanted if way == "move" else set(whole))


def test_the_longest_name_owns_a_companion(beside: Path) -> None:
    reader = ContainerReader()
    finder = Companions(reader)

    def of(name: str, wish: Wish = Wish()) -> Sequence[str]:
        return [os.path.basename(each.address.file) for each in finder.of(Address(str(beside / name)), wish)]

    assert of("c.jpg") == []
    assert of("c.x.jpg") == ["c.x.txt"]
    assert of("a.jpg") == ["a.json", "a.txt", "a.jpg.xmp"]
    assert of("a.jpg", Wish.parse("xmp,.txt")) == ["a.jpg.xmp", "a.txt"]
    assert of("b.jpg", Wish.parse(".txt")) == []  # of a file system that tells cases apart
    reader.close()


def test_chosen_suffixes_into_a_tar(beside: Path, tmp_path: Path) -> None:
    scores = scored(beside, tmp_path / "s.parquet")
    deliver(Kept(scores, kept(scores, 0)), tmp_path / "k.tar", companions="txt,.json")
    found = dict(members(tmp_path / "k-000000.tar"))
    assert list(found) == [f"{0:09}{extension}" for extension in (".jpg", ".txt", ".json", ".fiqa.json")]
    assert found[f"{0:09}.json"] == b"a.json"


def test_out_of_a_tar_into_a_folder(tmp_path: Path, crop: bytes) -> None:
    made = [("p/0.jpg", crop), ("p/0.txt", b""), ("p/1.jpg", crop), ("p/1.txt", b"one"), ("p/1.cls", b"1")]
    scores = scored(tar(tmp_path / "in.tar", made), tmp_path / "s.parquet")
    assert deliver(Kept(scores, kept(scores)), tmp_path / "bare", "copy").left_behind == 2
    done = deliver(Kept(scores, kept(scores)), tmp_path / "out", "copy", companions=".txt")
    assert (done.written, done.companions) == (2, 2)
    assert tree(tmp_path / "out" / "in.tar" / "p") == {
        n.removeprefix("p/"): b for n, b in made if not n.endswith("cls")
    }


def test_a_stopped_move_takes_the_rest_along(beside: Path, tmp_path: Path) -> None:
    scores, whole = scored(beside, tmp_path / "s.parquet"), tree(beside)

    def stop(progress: object) -> None:
        if (tmp_path / "out" / "a.txt").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver(Kept(scores, kept(scores)), tmp_path / "out", "move", companions="auto", report=stop)
    with pytest.raises(FiqaError, match="another call"):
        deliver(Kept(scores, kept(scores)), tmp_path / "out", "move")
    deliver(Kept(scores, kept(scores)), tmp_path / "out", "move", companions="auto")
    assert set(tree(beside)) == {"unrelated.txt", "notes", ".hidden"}
    assert tree(tmp_path / "out") == {name: data for name, data in whole.items() if not (beside / name).exists()}


@pytest.mark.parametrize("wish", ["", ",", ".", "a/b", ".txt,,", "..", " "])
def test_impossible_wishes(scores: Path, mask: Any, tmp_path: Path, wish: str) -> None:
    with pytest.raises(UsageError, match="neither `auto` nor suffixes"):
        deliver(Kept(scores, mask), tmp_path / "out", "copy", companions=wish)
    with pytest.raises(UsageError, match="a list names only the images"):
        deliver(Kept(scores, mask), tmp_path / "k.txt", companions="auto")
