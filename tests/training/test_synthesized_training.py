"""`synthesize`, then `train` on what it wrote, as the README says: from a folder, a list, shards."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fiqa_trt.machine.samples import portrait
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.training.dataset import read_labels
from tests.helpers import tar

COMMAND = (sys.executable, "-m", "fiqa_trt")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, face = tmp_path_factory.mktemp("photos"), np.asarray(portrait().resize((160, 160)))
    for index in range(4):
        Image.fromarray(np.roll(face, 40 * index, axis=1)).save(folder / f"{index}.png")
    return folder


def given_folder(photos: Path, place: Path) -> list[object]:
    return [photos]


def given_list(photos: Path, place: Path) -> list[object]:
    (place / "l.csv").write_text("path\n" + "".join(f"{path}\n" for path in sorted(photos.iterdir())))
    return ["--list", place / "l.csv"]


def given_split(photos: Path, place: Path) -> list[object]:
    rows = zip(sorted(photos.iterdir()), ("train", "", "", "test"), strict=True)
    (place / "l.csv").write_text("path,split\n" + "".join(f"{path},{side}\n" for path, side in rows))
    return ["--list", place / "l.csv"]


def given_shard(photos: Path, place: Path) -> list[object]:
    return [tar(place / "s.tar", [(path.name, path.read_bytes()) for path in sorted(photos.iterdir())])]


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [given_folder, given_list, given_split, given_shard])
def test_what_was_synthesized_can_be_trained_on(
    photos: Path, tmp_path: Path, inputs: Callable[[Path, Path], list[object]]
) -> None:
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=True)

    made, table = inputs(photos, tmp_path), tmp_path / "set" / "labels.csv"
    call("synthesize", *made, "-o", table.parent, "--per-face", 9, "--reference", "none", "--workers", 1)
    out = tmp_path / "m.safetensors"
    done = call("train", table, "-o", out, "--epochs", 1, "--member", MEMBERS[0], "--device", "cpu", "--json")
    assert "validating with" in done.stderr
    assert out.exists()
    result = json.loads(done.stdout)
    assert bool(result["best"]["test_srcc"]) == (inputs is given_split)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    for group in (None, ""):  # earlier versions left it empty
        if group is not None:
            with table.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(row | {"group": group} for row in rows)
        sides = set(zip([row["source"] for row in rows], read_labels(table).split.tolist(), strict=True))
        assert len(sides) == 4, "crops of one photograph stand on both sides"
        assert {side for _, side in sides} == {"train", "val"} | ({"test"} if inputs is given_split else set())
