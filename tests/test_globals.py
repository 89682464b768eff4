"""The embedding program's Pillow, warnings and environment: nothing of it is changed, and nothing depends on it."""

from __future__ import annotations

import enum
import os
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from fiqa_trt.decoding.cpu import CpuDecoder, decode_image
from fiqa_trt.outcomes import ImageError, Outcome, Status
from tests.decoding.images import chunk, encode, segment
from tests.helpers import jpeg

MODULES: tuple[ModuleType, ...] = (
    Image, ImageFile, AvifImagePlugin, BmpImagePlugin, GifImagePlugin, Jpeg2KImagePlugin, JpegImagePlugin,
    PngImagePlugin, PpmImagePlugin, TiffImagePlugin, WebPImagePlugin,
)  # fmt: skip
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")


def switches() -> Iterator[tuple[ModuleType, str, Any]]:
    """Public globals of Pillow that a program may set, and its tables of who opens and decodes what."""
    for module in MODULES:
        for name, value in vars(module).items():
            plain = isinstance(value, bool | int | str | float | type(None) | dict | list | enum.Enum)
            if name.isupper() and not name.startswith("_") and plain:
                yield module, name, value


def files(portrait: Image.Image) -> list[bytes]:
    """Whole files of every format, cut ones, and some with metadata that Pillow warns of or stumbles over."""
    small = portrait.resize((80, 60))
    whole = [encode(small, kind) for kind in FORMATS]
    whole += [encode(small, "AVIF")] if features.check("avif") else []
    whole += [encode(small.convert("P"), "BMP"), encode(small.convert("CMYK"), "TIFF", compression="tiff_lzw")]
    whole.append(encode(small, "GIF", save_all=True, append_images=[small.rotate(90)], transparency=3))
    big = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20)))
    odd = [whole[1][:33] + big + whole[1][33:]]
    good = jpeg(small)
    odd += [good[:2] + segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\0") + good[2:]]
    odd += [good[:2] + segment(0xE2, b"MPF\0II*\0\x08\0\0\0\3\0") + good[2:]]
    return [*whole, *odd, *(data[: len(data) // 2] for data in whole), b"x", b"8BPS"]


def seen(blobs: list[bytes]) -> tuple[list[Outcome], list[bytes]]:
    decoded = CpuDecoder().decode(blobs, len(blobs))
    return decoded.outcomes, [row.tobytes() for row in np.asarray(decoded.pixels)]


def odd(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | None) and not isinstance(value, enum.Enum):
        return 1
    return "odd" if isinstance(value, str) else type(value)() if isinstance(value, dict | list | float) else None


@pytest.mark.slow
def test_no_switch_of_pillow_matters(portrait: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one at once; then those that programs really set, each with the values that they are given."""
    blobs = files(portrait)
    expected = seen(blobs)
    assert {outcome.status for outcome in expected[0]} >= {Status.OK, Status.TRUNCATED, Status.UNSUPPORTED}
    with monkeypatch.context() as patch:
        changed = [(module, name) for module, name, _ in switches()]
        for module, name, value in list(switches()):
            patch.setattr(module, name, odd(value))
        found = seen(blobs)
    assert found == expected
    assert (Image, "MAX_IMAGE_PIXELS") in changed
    assert (ImageFile, "LOAD_TRUNCATED_IMAGES") in changed
    assert (PngImagePlugin, "MAX_TEXT_CHUNK") in changed
    for module, name, values in (
        (Image, "MAX_IMAGE_PIXELS", (None, 0, 1, 10**12)),
        (ImageFile, "LOAD_TRUNCATED_IMAGES", (True,)),
        (ImageFile, "MAXBLOCK", (1, 1 << 30)),
        (ImageFile, "SAFEBLOCK", (1,)),
        (PngImagePlugin, "MAX_TEXT_CHUNK", (1, 1 << 40)),
        (TiffImagePlugin, "READ_LIBTIFF", (True,)),
        (BmpImagePlugin, "USE_RAW_ALPHA", (True,)),
        (GifImagePlugin, "LOADING_STRATEGY", tuple(GifImagePlugin.LoadingStrategy)),
        (AvifImagePlugin, "DECODE_CODEC_CHOICE", ("none",)),
    ):
        for value in values:
            with monkeypatch.context() as patch:
                patch.setattr(module, name, value, raising=False)
                assert seen(blobs) == expected, (name, value)


def test_no_plugin_of_the_program_matters(portrait: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """As packages register theirs, in front of Pillow's own."""
    blobs = files(portrait)
    expected = seen(blobs)

    def never(*args: object) -> None:
        raise AssertionError("somebody else's plugin was asked")

    for name in FORMATS:
        monkeypatch.setitem(Image.OPEN, name, (never, None))
    for plugin in (JpegImagePlugin.JpegImageFile, PngImagePlugin.PngImageFile, TiffImagePlugin.TiffImageFile):
        monkeypatch.setattr(plugin, "_open", never)
    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    assert seen(blobs) == expected


def state() -> dict[str, Any]:
    """What a program could find changed."""
    found: dict[str, Any] = {f"{module.__name__}.{name}": value for module, name, value in switches()}
    found = {name: dict(value) if isinstance(value, dict) else value for name, value in found.items()}
    return found | {"filters": list(warnings.filters), "environment": dict(os.environ)}


def test_nothing_is_changed(portrait: Image.Image) -> None:
    blobs = files(portrait)
    before = state()
    seen(blobs)
    with pytest.raises(ImageError):
        decode_image(blobs[0], max_pixels=1)
    assert state() == before
    assert type(decode_image(blobs[0])) is Image.Image  # the program's own, to do with what it likes


def test_the_switches_hold_while_threads_decode(portrait: Image.Image) -> None:
    """Not for a moment does another thread see them otherwise."""
    blobs, stop, wrong = files(portrait), threading.Event(), list[object]()

    def watch() -> None:
        while not stop.is_set():
            now = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK)
            if now != before:
                wrong.append(now)

    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK)
    watcher = threading.Thread(target=watch)
    watcher.start()
    workers = [threading.Thread(target=seen, args=(blobs,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stop.set()
    watcher.join()
    assert not wrong


def test_limits_of_two_decoders_do_not_mix(portrait: Image.Image) -> None:
    blob = encode(portrait, "GIF")
    small, large = CpuDecoder(max_pixels=100), CpuDecoder()
    statuses = set[tuple[str, Status]]()

    def work(name: str, decoder: CpuDecoder) -> None:
        for _ in range(30):
            statuses.add((name, decoder.decode([blob], 1).outcomes[0].status))

    threads = [threading.Thread(target=work, args=pair) for pair in (("small", small), ("large", large))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == {("small", Status.TOO_LARGE), ("large", Status.OK)}


@pytest.mark.parametrize("action", ["error", "always", "ignore"])
def test_warnings_are_no_statuses_and_reach_nobody(portrait: Image.Image, action: Any) -> None:
    blobs = files(portrait)
    expected = seen(blobs)
    with warnings.catch_warnings(record=action != "error") as heard:
        warnings.simplefilter(action)
        assert seen(blobs) == expected
    assert not heard


def python(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )


WITHOUT = """
import sys
from pathlib import Path
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.rpartition(".")[2] in ("_avif", "_webp"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
from fiqa_trt.decoding.cpu import CpuDecoder
for name in ("a.avif", "a.webp", "a.jpg"):
    print(*(outcome.status.value for outcome in CpuDecoder().decode([Path(name).read_bytes()], 1).outcomes))
"""


@pytest.mark.slow
def test_a_pillow_that_was_built_without_a_format(portrait: Image.Image, tmp_path: Path) -> None:
    for name in ("a.avif", "a.webp", "a.jpg"):
        portrait.save(tmp_path / name)
    found = python(WITHOUT, tmp_path)
    assert (found.stdout.split(), found.stderr) == (["unsupported", "unsupported", "ok"], "")


@pytest.mark.slow
@pytest.mark.parametrize("origin", [None, "/nowhere/PIL/__init__.py"])
def test_a_pillow_that_cannot_be_used_is_one_line(origin: str | None, tmp_path: Path) -> None:
    lines = [
        "import sys, PIL",
        f"PIL.__file__ = {origin!r}",
        "from fiqa_trt.cli import main",
        "sys.argv[1:] = ['score', '.', '-o', 'x.csv']",
        "main()",
    ]
    found = python("\n".join(lines), tmp_path)
    assert found.returncode == 2
    assert "pip install --force-reinstall" in found.stderr
    assert found.stderr.count("\n") == 1
