"""A small data set to train on."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fiqa_trt.machine.samples import portrait
from fiqa_trt.training.dataset import Dataset, decode_images, read_labels

FACE = np.asarray(portrait())


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # Small steps do not gain by a second thread, and wait for one that something else keeps busy.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty crops that are the better the brighter they are; four people; one file is damaged, one is missing."""
    folder = tmp_path_factory.mktemp("labels")
    rows = [["path", "score", "group", "split", "note"]]
    for index in range(40):
        gain = (index + 5) / 50
        Image.fromarray((FACE * gain).astype(np.uint8)).resize((64, 64)).save(folder / f"{index}.png")
        rows.append([f"{index}.png", f"{gain:.3f}", f"g{index % 4}", "val" if index % 4 == 3 else "train", "x"])
    (folder / "8.png").write_bytes((folder / "8.png").read_bytes()[:300])
    (folder / "9.png").unlink()
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def data(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return decode_images(read_labels(table), tmp_path_factory.mktemp("cache"))
