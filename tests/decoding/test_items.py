"""What a Scorer is given: every form of an image, and one line for everything else."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from fiqa_trt import Scorer
from fiqa_trt.decoding.base import Decoded
from fiqa_trt.decoding.items import Picture, check_item, pixels_of
from fiqa_trt.errors import UsageError
from fiqa_trt.outcomes import ImageError, Status
from tests.helpers import jpeg


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer("cpu", "fp32", threads=2) as opened:
        yield opened


@pytest.mark.slow
def test_every_form_scores_alike(scorer: Scorer, portrait: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    portrait.save(path)
    data, array = path.read_bytes(), np.asarray(portrait)
    read_only = array.copy()
    read_only.flags.writeable = False
    forms: list[Any] = [
        str(path), path, np.str_(path), data, bytearray(data), memoryview(data), np.bytes_(data), portrait,
        Image.open(path), array, read_only, np.asfortranarray(array), array[::-1, ::-1][::-1, ::-1],
        np.repeat(array, 2, axis=1)[:, ::2],
    ]  # fmt: skip
    found = scorer.score(forms)
    assert [score.status for score in found] == ["ok"] * len(forms)
    assert len({score.score for score in found}) == 1
    assert [score.path for score in found] == [str(path)] * 3 + [None] * (len(forms) - 3)
    grey = np.asarray(portrait.convert("L"))
    flat, column, image = scorer.score([grey, grey[..., None], portrait.convert("L")])
    assert flat.score == column.score == image.score
    for several in (iter(forms), tuple(forms), pd.Series(forms, index=range(5, 5 + len(forms))), (x for x in forms)):
        assert scorer.score(several) == found
    assert scorer.score(np.array([str(path)] * 3)) == found[:1] * 3
    assert asyncio.run(asyncio.to_thread(scorer.score, forms)) == found


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_a_pil_image_is_worth_its_file(scorer: Scorer, portrait: Image.Image, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(portrait.convert("L")).astype(np.uint16) * 257)
    else:
        image = portrait.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(portrait.convert("L"))
    file = io.BytesIO()
    image.crop((0, 0, 200, 120)).save(file, "TIFF")
    file.seek(0)
    with Image.open(file) as opened:
        from_file, from_image = scorer.score([file.getvalue(), opened])
    assert (from_file.score, from_file.status, from_file.width) == (
        from_image.score,
        from_image.status,
        from_image.width,
    )


@pytest.mark.slow
def test_orientation_and_damage_of_pil_images(scorer: Scorer, portrait: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(portrait.crop((0, 0, 200, 100)), exif=exif)
    from_file, from_image = scorer.score([data, Image.open(io.BytesIO(data))])
    assert (from_file.width, from_file.height) == (from_image.width, from_image.height) == (100, 200)
    assert from_file.score == from_image.score
    assert np.array_equal(scorer.pixels(data), scorer.pixels(Image.open(io.BytesIO(data))))
    cut = jpeg(portrait)[:5000]
    assert scorer.score([Image.open(io.BytesIO(cut))])[0].status == "truncated"
    with Scorer("cpu", "fp32", max_pixels=1000) as small:
        assert [s.status for s in small.score([portrait, jpeg(portrait)])] == ["too_large"] * 2


@pytest.mark.slow
@given(arrays.arrays(np.uint8, st.one_of(*(arrays.array_shapes(min_dims=n, max_dims=n, max_side=9) for n in (2, 3)))))
def test_any_array_is_scored_or_refused(array: Any) -> None:
    good = array.ndim == 2 or array.shape[2] in (1, 3)
    if good:
        check_item(array, "x")
        outcome, pixels = pixels_of(array, 100)
        assert (outcome.status, outcome.height, outcome.width) == (Status.OK, *array.shape[:2])
        assert pixels.shape == (224, 224, 3)
    else:
        with pytest.raises(UsageError, match=r"^x is an array of uint8 \(.*give"):
            check_item(array, "x")


def wrong(portrait: Image.Image) -> dict[str, tuple[Any, str]]:
    array = np.asarray(portrait)
    return {
        "float": (array / 255.0, r"\* 255"),
        "bool": (array > 3, r"\* 255"),
        "uint16": (array.astype(np.uint16), ">> 8"),
        "int64": (array.astype(int), "as uint8"),
        "RGBA": (np.dstack([array, array[..., 0]]), r":3\]"),
        "CHW": (array.transpose(2, 0, 1), "transpose"),
        "batch": (np.stack([array, array]), "list"),
        "masked": (np.ma.MaskedArray(array), "filled"),
        "no pixels": (array[:0], "no pixels"),
        "one row": (array[0, 0], "RGB"),
        "none": (None, "NoneType"),
        "number": (3, "int"),
        "nan": (float("nan"), "float"),
        "dict": ({"image": array}, "dict"),
        "set": ({1}, "set"),
        "list": ([array], "list"),
        "file": (io.BytesIO(b"x"), r"BytesIO.* give what its read\(\) gives"),
        "frame": (pd.DataFrame({"a": [1]}), "DataFrame"),
    }


def test_wrong_items_are_named_before_anything_is_scored(
    scorer: Scorer, portrait: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[object]()
    decode = scorer._pipeline.decode

    def recorded(images: Sequence[bytes | ImageError | Picture], batch: int) -> Decoded:
        begun.append(images)
        return decode(images, batch)

    monkeypatch.setattr(scorer._pipeline, "decode", recorded)
    for name, (item, hint) in wrong(portrait).items():
        with pytest.raises(UsageError, match=rf"^item 20 is an? .*{hint}") as caught:
            scorer.score([portrait] * 20 + [item])
        assert "\n" not in str(caught.value), name
        assert not begun
        with pytest.raises(UsageError, match=r"^item 1 "):
            scorer.score(thing for thing in (portrait, item))
        with pytest.raises(UsageError, match=r"^the image is an? "):
            scorer.pixels(item)
    assert scorer.score([portrait])[0].status == "ok"


def test_one_thing_instead_of_several(scorer: Scorer, portrait: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(portrait))
    array, data = np.asarray(portrait), path.read_bytes()
    with Image.open(path) as opened:
        single = [
            str(path), path, np.str_(path), data, bytearray(data), memoryview(data), array, array[..., 0],
            np.stack([array, array]), array / 255.0, portrait, opened, {str(path)}, {"a": path}, None, 3,
            io.BytesIO(data), pd.DataFrame({"path": [str(path)]}), np.array(str(path)), iter,
        ]  # fmt: skip
        for thing in single:
            with pytest.raises(UsageError, match="instead of a list of images: give") as caught:
                scorer.score(thing)
            assert "\n" not in str(caught.value)


def test_tensors(scorer: Scorer, portrait: Image.Image) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(np.array(portrait))
    for given_, named in ((tensor, "^one torch.Tensor"), ([portrait, tensor], "^item 1 is a torch.Tensor")):
        with pytest.raises(UsageError, match=rf"{named}.*numpy\(\)"):
            scorer.score(given_)
    with pytest.raises(UsageError, match="torch"):
        scorer.score(torch.nn.Parameter(tensor.float()))
    assert scorer.score([tensor.numpy()])[0].score == scorer.score([portrait])[0].score


@pytest.mark.slow
def test_closed_and_pickled(portrait: Image.Image) -> None:
    with Scorer("cpu", "fp32") as opened:
        for protocol in range(2, 6):
            with pytest.raises(TypeError, match="open one in each process"):
                pickle.dumps(opened, protocol)
    opened.close()
    for use in (opened.score, lambda x: opened.pixels(x[0])):
        with pytest.raises(UsageError, match="closed: open another"):
            use([portrait])


FORKED = """
import os, sys, warnings
from fiqa_trt import Scorer
from fiqa_trt.errors import UsageError
warnings.simplefilter("ignore", DeprecationWarning)
path = sys.argv[1]
scorer = Scorer("cpu", "fp32", sys.argv[2], threads=1)
want = scorer.score([path])
if os.fork() == 0:
    for use in (scorer.score, lambda x: scorer.pixels(x[0])):
        try:
            use([path])
        except UsageError as exc:
            print(exc)
    scorer.close()
    if sys.argv[2] == "openvino":
        with Scorer("cpu", "fp32", threads=1) as own:
            print("same" if own.score([path]) == want else "other")
    sys.exit(0)
for use in (lambda: sys.exit(0), lambda: globals().pop("scorer")):
    if os.fork() == 0:
        use()
        sys.exit(0)
print([os.wait()[1] for _ in range(3)])
print("same" if scorer.score([path]) == want else "other")
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_a_fork(crops: Path, engine: str) -> None:
    if engine == "torch":
        pytest.importorskip("torch")
    path = str(crops / "a" / "0.jpg")
    done = subprocess.run(
        [sys.executable, "-c", FORKED, path, engine], capture_output=True, text=True, timeout=120, check=True
    )
    lines = done.stdout.splitlines()
    assert ["spawn" in line for line in lines[:2]] == [True, True]
    assert lines[2:] == [*["same"] * (engine == "openvino"), "[0, 0, 0]", "same"]


@pytest.mark.slow
def test_closing_while_others_score(portrait: Image.Image) -> None:
    """Each of them has its scores or hears of it."""
    for delay in (0.0, 0.01, 0.1):
        opened, heard = Scorer("cpu", "fp32", threads=1), list[str]()

        def score(opened: Scorer = opened, heard: list[str] = heard) -> None:
            try:
                heard.append(f"{len(opened.score([portrait] * 400))} scores")
            except BaseException as exc:
                heard.append(f"{type(exc).__name__}: {exc}")

        threads = [threading.Thread(target=score) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(delay)
        opened.close()
        for thread in threads:
            thread.join()
        assert set(heard) <= {"400 scores", "UsageError: this Scorer is closed: open another"}
        assert len(heard) == 4


@pytest.mark.slow
def test_a_generator_that_closes(portrait: Image.Image) -> None:
    opened = Scorer("cpu", "fp32", threads=1)

    def items() -> Iterator[Any]:
        yield portrait
        opened.close()
        yield from [portrait] * 100

    with pytest.raises(UsageError, match="closed: open another"):
        opened.score(items())


def _score(path: str) -> float | None:
    with Scorer("cpu", "fp32", threads=1) as scorer:
        return scorer.score([path])[0].score


@pytest.mark.slow
def test_spawned_workers_have_their_own(scorer: Scorer, crops: Path) -> None:
    path = os.fspath(crops / "a" / "0.jpg")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_score, (path,)) == scorer.score([path])[0].score


@pytest.mark.parametrize(
    "item", [Image.new("RGB", (0, 0)), Image.new("L", (0, 9)), memoryview(bytes(81)).cast("B", (9, 9))]
)
def test_no_pixels_and_no_file(item: Any, scorer: Scorer) -> None:
    with pytest.raises(UsageError, match=r"item 0 is a .*(no pixels|not of a file)"):
        scorer.score([item])


@pytest.mark.parametrize("name", ["batch", "threads", "max_pixels"])
@pytest.mark.parametrize("value", [-1, 2.5, "8"])
def test_numbers_that_are_none(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name}=.* from 1 on"):
        Scorer(**{name: value})
