"""`fiqa-trt synthesize`, on a few crops of a public-domain portrait."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fiqa_trt.errors import DifferentRun, InputError, RunError
from fiqa_trt.inputs.source import Source
from fiqa_trt.machine.samples import portrait
from fiqa_trt.progress import Progress
from fiqa_trt.training.crops import Face, cut
from fiqa_trt.training.degradations import FAMILIES
from fiqa_trt.training.occlusions import OCCLUDERS
from fiqa_trt.training.synthesis import PARTS, read_faces, synthesize
from tests.helpers import tar

FACE = np.asarray(portrait())


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> list[Face]:
    """One portrait, turned into three people and a file that is no image."""
    folder = tmp_path_factory.mktemp("faces")
    with (folder / "faces.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "group", "split", "quality", "face_x", "face_y", "face_w", "face_h"])
        for index, split in enumerate(["train", "train", "val"]):
            Image.fromarray(np.roll(FACE, 40 * index, axis=1)).save(folder / f"{index}.png")
            writer.writerow([folder / f"{index}.png", f"g{index}", split, [1, 0.5, 0.9][index], 60, 40, 100, 120])
        (folder / "bad.jpg").write_bytes(b"no image")
        writer.writerow([folder / "bad.jpg", "", "train", "", "", "", "", ""])
    return read_faces(Source((), str(folder / "faces.csv")))


def made(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.fixture(scope="module")
def crops(faces: list[Face], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    done = synthesize(faces, folder, per_face=5, seed=1, workers=2)
    assert done.crops == 15
    assert len(done.failed) == 1
    assert "bad.jpg: no known image format" in done.failed[0]
    return folder


@pytest.mark.slow
def test_the_same_arguments_give_the_same_files(faces: list[Face], crops: Path, tmp_path: Path) -> None:
    synthesize(faces, tmp_path, per_face=5, seed=1, workers=1)
    assert made(tmp_path) == made(crops)
    rows = list(csv.DictReader((crops / "labels.csv").read_text().splitlines()))
    assert {(row["group"], row["split"]) for row in rows} == {("g0", "train"), ("g1", "train"), ("g2", "val")}
    assert all(0 < float(row["score"]) <= float(row["quality"]) for row in rows)
    for row in rows:
        with Image.open(crops / row["path"]) as image:
            assert image.size == (224, 224)
        chained = {name for name, _ in json.loads(row["chain"])}
        assert chained == {name for name in (*OCCLUDERS, *FAMILIES) if float(row[name]) > 0}


@pytest.mark.slow
def test_what_was_killed_goes_on(faces: list[Face], crops: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(progress: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        synthesize(faces, tmp_path, per_face=5, seed=1, workers=1, report=kill)
    assert (tmp_path / PARTS).is_dir()
    with pytest.raises(DifferentRun, match="seed: 1 there, 2 now"):
        synthesize(faces, tmp_path, per_face=5, seed=2)
    synthesize(faces, tmp_path, per_face=5, seed=1)
    assert made(tmp_path) == made(crops)
    with pytest.raises(DifferentRun, match="--restart"):
        synthesize(faces, tmp_path, per_face=5, seed=1)


@pytest.mark.slow
def test_the_reference_lowers_the_label_of_what_it_rates_low(faces: list[Face], crops: Path, tmp_path: Path) -> None:
    from fiqa_trt.engines.opening import CHECKPOINT

    synthesize(faces[:1], tmp_path, per_face=5, seed=1, reference=CHECKPOINT)
    for row in csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()):
        assert 0 < float(row["reference"]) < 1
        assert float(row["score"]) <= float(row["quality"])


@pytest.mark.slow
def test_a_crop_and_its_mirror_image_are_rated_alike() -> None:
    from fiqa_trt.engines.opening import CHECKPOINT
    from fiqa_trt.training.synthesis import _opinions

    crop = np.ascontiguousarray(FACE[:224, :224])
    one, other = _opinions(CHECKPOINT, [crop, np.ascontiguousarray(crop[:, ::-1])])
    assert one == pytest.approx(other, abs=1e-6)


def test_a_bad_crop_hides_as_much_of_the_face_as_it_says() -> None:
    photo = np.zeros((300, 300, 3), np.uint8)
    photo[100:200, 100:200] = 255
    face = Face("x", box=(100, 100, 100, 100))
    for seed in range(30):
        whole, _ = cut(photo, face, 0, np.random.default_rng(seed), 224)
        half, _ = cut(photo, face, 0.5, np.random.default_rng(seed), 224)
        # The border mode may repeat what the photograph shows at its edge, which is black.
        assert half.mean() == pytest.approx(whole.mean() / 2, rel=0.12)


def test_a_list_must_make_sense(tmp_path: Path) -> None:
    table = tmp_path / "f.csv"
    for row, message in {"a.jpg,2,,,,": "quality", "a.jpg,x,,,,": "not a number", "a.jpg,1,0,0,-5,9": "size"}.items():
        table.write_text(f"path,quality,face_x,face_y,face_w,face_h\n{row}\n")
        with pytest.raises(InputError, match=message):
            read_faces(Source((), str(table)))


def test_the_column_of_persons_can_be_named_and_its_want_is_told(tmp_path: Path) -> None:
    table, said = tmp_path / "f.csv", list[str]()
    table.write_text("file;subject\na.jpg;007\nb.jpg;\n")
    source = Source((), str(table))
    assert [face.group for face in read_faces(source, said.append)] == ["a.jpg", "b.jpg"]
    assert any("no column `group` (--group-column" in line for line in said)
    said.clear()
    assert [face.group for face in read_faces(source, said.append, "subject")] == ["007", "b.jpg"]
    assert not any("group" in line for line in said)
    with pytest.raises(InputError, match=r"--group-column person: .*, only: path, subject"):
        read_faces(source, said.append, "person")


@pytest.mark.slow
def test_a_worker_that_is_killed(faces: list[Face], tmp_path: Path) -> None:
    def kill(progress: Progress) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(RunError, match="a worker process was killed"):
        synthesize(faces, tmp_path / "o", per_face=16, workers=1, report=kill)
    assert not multiprocessing.active_children()
    assert synthesize(faces, tmp_path / "o", per_face=16, workers=1).crops == 48


@pytest.mark.slow
def test_faces_in_shards(faces: list[Face], tmp_path: Path) -> None:
    shard = tar(tmp_path / "s.tar", [(Path(face.path).name, Path(face.path).read_bytes()) for face in faces])
    assert synthesize(read_faces(Source((str(shard),))), tmp_path / "o", per_face=1, workers=1).crops == 3


@pytest.mark.slow
def test_nothing_readable(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of the 1 photographs"):
        synthesize([Face(str(tmp_path / "gone.jpg"))], tmp_path / "o", per_face=1)


@pytest.mark.slow
def test_the_command_and_its_interruption(crops: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(6):
        Image.fromarray(FACE).save(tmp_path / "in" / f"{index}.png")
    command = [sys.executable, "-m", "fiqa_trt", "synthesize", str(tmp_path / "in"), "-o", str(tmp_path / "o")]
    command += ["--per-face", "16", "--workers", "1", "--reference", "none"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "o").glob(f"{PARTS}/0*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert "again to resume" in process.communicate(timeout=300)[1]
    assert process.returncode == 130
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["crops"] == 96
    assert "96 crops of 6 images, 0 left out" in done.stderr
    assert not os.path.exists(tmp_path / "o" / PARTS)
