"""DALI's CPU backend against the Pillow reference: pixels, statuses, scores; and what happens when DALI fails."""

from __future__ import annotations

import contextlib
import io
import random
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.common import damage
from fiqa_trt.decoding.base import DEFAULT_MAX_PIXELS
from fiqa_trt.decoding.cpu import CpuDecoder, decode_image, fit
from fiqa_trt.decoding.dali import PATIENCE, DaliDecoder, alike, no_gpu_decoder, share_beyond
from fiqa_trt.decoding.registry import open_decoder
from fiqa_trt.decoding.structure import dimensions
from fiqa_trt.engines.base import Engine
from fiqa_trt.errors import EngineError
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.inputs.source import Source
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from tests.helpers import MeanEngine, jpeg

SIZES = ((224, 224), (600, 600), (250, 250), (500, 333), (301, 477), (112, 112), (90, 140), (1023, 900))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def dali() -> DaliDecoder:
    return DaliDecoder("cpu", workers=2)


@pytest.fixture(scope="module")
def pictures(portrait: Image.Image) -> list[Image.Image]:
    """Different sizes and contents, from smooth to noise."""
    rng = np.random.default_rng(0)
    images = [portrait.resize(size, Image.Resampling.BICUBIC) for size in SIZES]
    return images + [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in SIZES]


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


CASES: dict[str, Any] = {
    "4:2:0": lambda image, n: jpeg(image),
    "4:2:2": lambda image, n: jpeg(image, subsampling=1),
    "4:4:4": lambda image, n: jpeg(image, subsampling=0),
    "grey": lambda image, n: jpeg(image.convert("L")),
    "progressive": lambda image, n: jpeg(image, progressive=True),
    "restart markers": lambda image, n: jpeg(image, restart_marker_blocks=3),
    "EXIF orientation": lambda image, n: jpeg(image, exif=exif(1 + n % 8)),
    "PNG": lambda image, n: encode(image, "PNG"),
    "grey PNG": lambda image, n: encode(image.convert("L"), "PNG"),
    "palette PNG": lambda image, n: encode(image.quantize(64), "PNG"),
    "WebP": lambda image, n: encode(image, "WEBP", quality=80),
    "lossless WebP": lambda image, n: encode(image, "WEBP", lossless=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_pixels_are_pillows(
    dali: DaliDecoder, pictures: list[Image.Image], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuDecoder, "decode_into", None)  # everything here is for DALI
    blobs = [CASES[case](image, index) for index, image in enumerate(pictures)]
    decoded = dali.decode(blobs, len(blobs) + 3)
    references = [decode_image(blob, reference=True) for blob in blobs]
    assert [(o.status, o.width, o.height) for o in decoded.outcomes] == [(Status.OK, *r.size) for r in references]
    expected = np.stack([fit(reference, 224) for reference in references]).astype(int)
    difference = np.abs(np.asarray(decoded.pixels)[: len(blobs)] - expected)
    assert difference.mean(axis=(1, 2, 3)).max() < 0.5
    assert difference.max() < 6


@pytest.mark.slow
def test_scores_are_the_cpu_decoders(dali: DaliDecoder, released: Engine, pictures: list[Image.Image]) -> None:
    batch = released.info.batch
    blobs = [jpeg(image, quality=quality) for image in pictures for quality in (95, 60, 20)]
    changes = list[float]()
    for start in range(0, len(blobs), batch):
        part = blobs[start : start + batch]
        scores = [released.submit(d.decode(part, batch).pixels).result().scores.mean(1) for d in (dali, CpuDecoder())]
        changes += list(np.abs(scores[0] - scores[1])[: len(part)])
    assert np.quantile(changes, 0.99) < 0.005


@pytest.mark.slow
def test_the_edge_of_an_image_in_every_place(dali: DaliDecoder) -> None:
    rng = np.random.default_rng(1)
    blobs = [
        encode(Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)), "PNG")
        for w, h in [(225, 225), (226, 224), (450, 449), (447, 460), (900, 897), (899, 896), (1344, 1346)]
    ]
    decoded = dali.decode(blobs, len(blobs))
    expected = np.stack([fit(decode_image(blob), 224) for blob in blobs]).astype(int)
    assert np.abs(np.asarray(decoded.pixels) - expected).max() < 6
    assert share_beyond(448, 0) == pytest.approx(1 / 8, abs=0.01)
    assert share_beyond(224, 0) == share_beyond(100, 0) == share_beyond(448, 1) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda image: jpeg(image.convert("CMYK")),
        lambda image: encode(image.convert("RGBA"), "PNG"),
        lambda image: encode(Image.merge("RGBA", [*image.split(), image.convert("L")]), "WEBP"),
        lambda image: encode(image, "GIF"),
        lambda image: encode(image, "TIFF"),
        lambda image: encode(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG"),
        lambda image: encode(image, "JPEG", keep_rgb=True),
        lambda image: jpeg(image)[:-2] + bytes(100) + b"\xff\xd9" + bytes(100),
        lambda image: encode(image, "JPEG2000"),
        lambda image: (
            jpeg(image, exif=exif(6))
            .replace(b"\x12\x01\x03\x00", b"\x12\x01\x04\x00")
            .replace(b"\x01\x12\x00\x03", b"\x01\x12\x00\x04")
        ),
    ],
    ids=[
        "CMYK",
        "RGBA PNG",
        "RGBA WebP",
        "GIF",
        "TIFF",
        "16-bit PNG",
        "RGB JPEG",
        "bytes behind its end",
        "JPEG 2000",
        "EXIF of another type",
    ],
)
def test_what_dali_is_not_asked(dali: DaliDecoder, portrait: Image.Image, make: Any) -> None:
    blob, good = make(portrait), jpeg(portrait)
    assert dimensions(blob) is None
    decoded = dali.decode([good, blob, good], 3)
    reference = CpuDecoder().decode([good, blob, good], 3)
    assert decoded.outcomes == reference.outcomes
    assert np.array_equal(np.asarray(decoded.pixels), np.asarray(reference.pixels))


def compare(dali: DaliDecoder, blobs: Sequence[bytes | ImageError]) -> None:
    """Same outcomes as the CPU decoder's, and the same pixels but for a few levels."""
    decoded, reference = dali.decode(blobs, len(blobs)), CpuDecoder().decode(blobs, len(blobs))
    assert decoded.outcomes == reference.outcomes
    good = [index for index, outcome in enumerate(reference.outcomes) if outcome.status is Status.OK]
    pixels = [np.asarray(found.pixels)[good].astype(int) for found in (decoded, reference)]
    assert not good or np.abs(pixels[0] - pixels[1]).max() < 6


@pytest.mark.slow
def test_damage_of_every_kind_gives_the_cpu_decoders_statuses(portrait: Image.Image) -> None:
    dali = DaliDecoder("cpu")
    rng = random.Random(0)
    good = jpeg(portrait)
    compare(dali, [damage(good, rng) for _ in range(64)])
    for kind in ("JPEG", "PNG", "WEBP"):
        whole = encode(portrait, kind)
        compare(dali, [whole, *(whole[: int(len(whole) * share)] for share in (0, 0.02, 0.3, 0.9, 0.999)), whole])
    compare(dali, [ImageError(Status.MISSING, "gone"), good, b""])
    compare(dali, [b"", b"x"])
    compare(dali, [good[:300] + bytes(300) + good[600:], good])  # DALI fails on the whole batch
    compare(dali, [b"\xff\xd8\xff\xdb" + b"hello" * 99 + b"\xff\xd9", good])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_flipped_and_moved_bytes_give_the_cpu_decoders_statuses(dali: DaliDecoder, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))
    good = encode(Image.radial_gradient("L").convert("RGB").resize((60, 50)), kind)
    bad = bytearray(good)
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), min_size=1, max_size=5)
    ):
        bad[position] = value
    start, length, to = (data.draw(st.integers(0, most)) for most in (len(good), 64, len(good)))
    action = data.draw(st.sampled_from(["none", "again", "gone"]))
    if action == "again":
        bad[to:to] = bad[start : start + length]
    elif action == "gone":
        del bad[start : start + length]
    blobs = [good, bytes(bad)]
    outcomes = [decoder.decode(blobs, 2).outcomes for decoder in (dali, CpuDecoder())]
    assert outcomes[0] == outcomes[1]


def test_a_decoder_that_fails_on_every_call(portrait: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    dali = DaliDecoder("cpu", say=said.append)
    calls = 0

    def fail(blobs: Sequence[bytes]) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(dali, "_crops", fail)
    for _ in range(PATIENCE + 5):
        compare(dali, [jpeg(portrait), b"x"])
    assert calls == PATIENCE
    assert len(said) == 1
    assert "the driver is gone" in said[0]


def test_no_memory_for_a_batch(portrait: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    dali = DaliDecoder("cpu", say=said.append)
    real = dali._crops

    def limited(blobs: Sequence[bytes]) -> Any:
        if len(blobs) > 3:
            raise RuntimeError("error") from RuntimeError("CUDA allocation failed: out of memory")
        return real(blobs)

    monkeypatch.setattr(dali, "_crops", limited)
    monkeypatch.setattr(CpuDecoder, "decode_into", None)
    blobs = [jpeg(portrait.rotate(angle)) for angle in range(9)]
    decoded = dali.decode(blobs, 9)
    assert np.array_equal(np.asarray(decoded.pixels), np.stack([np.asarray(decode_image(blob)) for blob in blobs]))
    assert "halving" in said[0]
    assert list(dali._by_dali([2], blobs, decoded.pixels, 9)) == [2]  # one that was filled up


def test_a_short_batch_is_filled_up(portrait: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    power: Callable[[int], int] = import_module("nvidia.dali.experimental.dynamic._op_builder")._next_pow2
    for batch in range(1, 600):
        assert power(alike(batch)) == power(batch)
        assert batch == 1 or power(alike(batch) - 1) < power(batch)
    dali, sizes = DaliDecoder("cpu"), list[int]()
    real = dali._crops

    def crops(blobs: Sequence[bytes]) -> Any:
        sizes.append(len(blobs))
        return real(blobs)

    monkeypatch.setattr(dali, "_crops", crops)
    blobs = [jpeg(portrait), jpeg(portrait.rotate(90))]
    pixels = np.zeros((8, 224, 224, 3), np.uint8)
    assert list(dali._by_dali([1, 4], [b"", blobs[0], b"", b"", blobs[1]], pixels, 5)) == [1, 4]
    assert sizes == [5]
    assert np.array_equal(pixels[[1, 4]], [np.asarray(decode_image(blob)) for blob in blobs])
    assert not pixels[[0, 2, 3, 5, 6, 7]].any()


def test_dali_keeps_its_threads(portrait: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    dali, seen = DaliDecoder("cpu"), set[int]()
    real = dali._crops

    def crops(blobs: Sequence[bytes]) -> Any:
        seen.add(threading.get_ident())
        return real(blobs)

    monkeypatch.setattr(dali, "_crops", crops)
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: dali.decode([jpeg(portrait)], 1), range(8)))
    assert 1 <= len(seen) <= dali.threads
    assert threading.get_ident() not in seen


class OnCpu:
    """DALI as it is on a GPU, in memory: what is asked of a GPU, its CPU backend does."""

    def __init__(self, dali: Any) -> None:
        self.real, self.done = dali, list[str]()
        self.decoders = SimpleNamespace(image=lambda data, device, **options: dali.decoders.image(data, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def device(self, kind: str, index: int) -> Any:
        assert (kind, index) == ("gpu", 1)
        return contextlib.nullcontext()

    def stream(self, device_id: int) -> Any:
        return SimpleNamespace(synchronize=lambda: self.done.append("awaited"))

    def set_current_stream(self, stream: Any) -> None:
        self.done.append("a stream of its own")


def test_on_a_gpu_without_torch_the_pixels_come_to_memory(
    pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fiqa_trt.decoding.dali.no_gpu_decoder", lambda index: None)
    monkeypatch.setattr("fiqa_trt.decoding.dali.has_torch", lambda: False)
    on_gpu, on_cpu = DaliDecoder("cuda:1", workers=2), DaliDecoder("cpu", workers=2)
    on_gpu._ndd = library = OnCpu(on_cpu._ndd)
    blobs = [*map(jpeg, pictures), b"", jpeg(pictures[0])[:900]]
    found, expected = on_gpu.decode(blobs, 32), on_cpu.decode(blobs, 32)
    assert found.outcomes == expected.outcomes
    assert isinstance(found.pixels, np.ndarray)
    assert np.array_equal(found.pixels, expected.pixels)
    assert library.done[0] == "a stream of its own"
    assert "awaited" in library.done
    assert not on_gpu.failures


def test_limits(portrait: Image.Image) -> None:
    small = DaliDecoder("cpu", max_pixels=224 * 224 - 1)
    assert small.decode([jpeg(portrait)], 1).outcomes[0].status is Status.TOO_LARGE


@pytest.mark.slow
def test_a_run_with_dali_has_the_rows_of_one_without(crops: Path, tmp_path: Path, portrait: Image.Image) -> None:
    rng, good = random.Random(1), jpeg(portrait)
    for index in range(40):
        (crops / "a" / f"bad{index}.jpg").write_bytes(damage(good, rng))  # whole batches of nothing else
    (crops / "b" / "gone.jpg").symlink_to("nowhere")
    tables = []
    for decoder in (CpuDecoder(), DaliDecoder("cpu")):
        output = tmp_path / "s.parquet"
        workers = InProcess(MeanEngine(), decoder)
        score_dataset(Source((str(crops),)), output, lambda w=workers: w, Options(restart=True))  # type: ignore[misc]
        tables.append(pq.read_table(output).to_pylist())
    for ours, reference in zip(*tables, strict=True):
        for name in ("path", "status", "error", "width", "height"):
            assert ours[name] == reference[name]
        assert ours["score"] == pytest.approx(reference["score"], abs=0.005)


def test_a_gpu_that_decodes_no_jpeg_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU there is none, and with one it is nvImageCodec that tells."""
    said, pixels = list[str](), [object()]

    class Codec:
        BackendKind = SimpleNamespace(HW_GPU_ONLY=1, HYBRID_CPU_GPU=2, GPU_ONLY=3)
        Backend = str

        def __init__(self, device_id: int, backends: list[str]) -> None:
            assert (device_id, sorted(backends)) == (1, ["1", "2", "3"])

        def decode(self, data: bytes) -> object:
            assert decode_image(data).size == (64, 64)
            return pixels[0]

    Codec.Decoder = Codec  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", Codec)
    monkeypatch.setattr(import_module("nvidia"), "nvimgcodec", Codec, raising=False)
    assert DaliDecoder("cuda:1", say=said.append).name == "dali (gpu)"
    assert not said
    pixels[0] = None
    assert DaliDecoder("cuda:1", say=said.append).name == "dali (gpu, JPEGs on the cpu)"
    assert "pip install nvidia-nvjpeg" in said[0]
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    assert no_gpu_decoder(1) is not None


def test_choice_of_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_decoder("auto", "cpu", 2, DEFAULT_MAX_PIXELS).name == "cpu"
    assert open_decoder("dali", "cpu", 2, DEFAULT_MAX_PIXELS).name == "dali (cpu)"
    with pytest.raises(EngineError, match="it is one of auto, cpu, dali"):
        open_decoder("turbo", "cpu", 2, DEFAULT_MAX_PIXELS)

    def missing(*args: object) -> None:
        raise EngineError("--decoder dali: No module named 'nvidia.dali'; pip install 'fiqa-trt[gpu]'")

    monkeypatch.setattr("fiqa_trt.decoding.dali.DaliDecoder", missing)
    said = list[str]()
    assert open_decoder("auto", "cuda:0", 2, DEFAULT_MAX_PIXELS, said.append).name == "cpu"
    assert said == [
        "No module named 'nvidia.dali'; pip install 'fiqa-trt[gpu]': the CPU decodes, which is likely to be slower"
    ]
    with pytest.raises(EngineError, match="pip install"):
        open_decoder("dali", "cuda:0", 2, DEFAULT_MAX_PIXELS)
