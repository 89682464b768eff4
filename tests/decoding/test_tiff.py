"""TIFF: whatever the tags say, the pixels are right or the kind is `unsupported`."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fiqa_trt.decoding.tiff import ends_early, overfull, read_directory, without_metadata
from fiqa_trt.outcomes import ImageError, Status
from tests.decoding.images import Levels, encode, grey, outcome, over_white, pixels, tiff

W, H = 13, 9
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
"""Samples of a colour by photometric interpretation."""


def levels(count: int, bits: int) -> Levels:
    """Random samples, from the lowest to the highest."""
    found = np.random.default_rng(bits + count).integers(0, 1 << bits, (H, W, count))
    found[0, 0], found[0, 1] = 0, (1 << bits) - 1
    return found


def shown(samples: Levels, bits: int, photometric: int, extra: tuple[int, ...], palette: Levels) -> Levels:
    """What a viewer shows of stored samples, 0 to 255."""
    scaled: npt.NDArray[Any] = samples / ((1 << bits) - 1) * 255
    colours: npt.NDArray[Any]
    if photometric in (0, 1):
        colours = grey(255 - scaled[..., 0] if photometric == 0 else scaled[..., 0])
    elif photometric == 2:
        colours = scaled[..., :3]
    elif photometric == 3:
        colours = palette[:, samples[..., 0]].transpose(1, 2, 0) / 257
    elif photometric == 5:
        colours = (255 - scaled[..., :3]) * (255 - scaled[..., 3:4]) / 255
    else:
        luma, blue, red = (scaled[..., n] - (0, 128, 128)[n] for n in range(3))
        parts = (luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue)
        colours = np.clip(np.stack(parts, 2), 0, 255)
    first = COLOURS[photometric]
    if extra and extra[0] == 2:
        return over_white(colours, scaled[..., first])
    if extra and extra[0] == 1:
        return np.asarray(np.minimum(np.rint(colours + 255 - scaled[..., first : first + 1]), 255).astype(int))
    return np.asarray(np.rint(colours)).astype(int)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(
    photometric=st.sampled_from(sorted(COLOURS)),
    bits=st.sampled_from([1, 2, 4, 6, 8, 10, 12, 14, 16, 32]),
    order=st.sampled_from("<>"),
    planar=st.booleans(),
    reverse=st.booleans(),
    compression=st.sampled_from([1, 8]),
    extra=st.lists(st.sampled_from([0, 1, 2]), max_size=2).map(tuple),
    form=st.sampled_from([None, 1, 2, 3, 4]),
)
def test_right_pixels_or_unsupported(
    photometric: int,
    bits: int,
    order: str,
    planar: bool,
    reverse: bool,
    compression: int,
    extra: tuple[int, ...],
    form: int | None,
) -> None:
    count = COLOURS[photometric] + len(extra)
    samples = levels(count, bits)
    if extra and extra[0] == 1:  # a colour that was multiplied with its alpha is no larger
        samples[..., : count - len(extra)] = np.minimum(samples[..., :-1], samples[..., -len(extra)][..., None])[
            ..., : count - len(extra)
        ]
    palette = np.random.default_rng(0).integers(0, 256, (3, 1 << min(bits, 8))) * 257
    tags: dict[int, tuple[int, list[int]]] = {338: (3, list(extra))} if extra else {}
    if photometric == 3:
        tags[320] = (3, [int(value) for value in palette.ravel()])
    if photometric == 6:
        tags[530] = (3, [1, 1])
    if form is not None:
        tags[339] = (3, [form] * count)
    data = tiff(
        samples,
        bits,
        photometric,
        order=order,
        planar=planar,
        reverse=reverse,
        compression=compression,
        tags=dict(tags),
    )
    found = outcome(data)
    if found.status is not Status.OK:
        assert found.status is Status.UNSUPPORTED, found
        return
    assert form in (None, 1)
    difference = np.abs(pixels(data) - shown(samples, bits, photometric, extra, palette))
    # Of 16 bits a colour loses up to a level, and its alpha another.
    most = 3 if extra[:1] == (1,) or photometric in (5, 6) else 2 if extra[:1] == (2,) and bits > 8 else 1
    assert difference.max() <= most


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [1, 8])
def test_what_is_read(order: str, compression: int) -> None:
    """What cameras, scanners and programs write is not refused."""
    palette = {320: (3, [value * 257 for value in range(256)] * 3)}
    kinds: list[tuple[int, int, int, dict[int, tuple[int, list[int]]]]] = [
        (1, 1, 1, {}), (0, 1, 1, {}), (1, 4, 1, {}), (1, 8, 1, {}), (0, 8, 1, {}), (1, 16, 1, {}), (2, 8, 3, {}),
        (2, 16, 3, {}), (2, 8, 4, {338: (3, [2])}), (2, 8, 4, {338: (3, [1])}), (2, 16, 4, {338: (3, [2])}),
        (5, 8, 4, {}), (3, 8, 1, palette), (1, 8, 2, {338: (3, [2])}),
    ]  # fmt: skip
    for photometric, bits, count, tags in kinds:
        data = tiff(levels(count, bits), bits, photometric, order=order, compression=compression, tags=dict(tags))
        assert outcome(data).status is Status.OK, (photometric, bits, count)
    for planar in (False, True):
        data = tiff(levels(3, 8), 8, 2, order=order, compression=compression, planar=planar)
        assert outcome(data).status is Status.OK


def test_twelve_bits_and_white_first_are_read_in_intels_order() -> None:
    samples = levels(1, 12)
    data = tiff(samples, 12, 1)
    assert np.abs(pixels(data) - grey(np.rint(samples[..., 0] / 4095 * 255).astype(int))).max() <= 1
    samples = levels(1, 16)
    data = tiff(samples, 16, 0)
    assert np.abs(pixels(data) - grey(255 - np.rint(samples[..., 0] / 65535 * 255).astype(int))).max() <= 1


def test_a_fourth_sample_that_nobody_filled_is_not_transparency() -> None:
    samples = levels(4, 8)
    samples[..., 3] = 0
    assert np.array_equal(pixels(tiff(samples, 8, 2)), samples[..., :3])
    assert (pixels(tiff(samples, 8, 2, tags={338: (3, [2])})) == 255).all()


def test_a_palette_of_eight_bits() -> None:
    palette = np.random.default_rng(0).integers(0, 256, (3, 256))
    samples = levels(1, 8)
    data = tiff(samples, 8, 3, tags={320: (3, [int(value) for value in palette.ravel()])})
    assert np.array_equal(pixels(data), palette[:, samples[..., 0]].transpose(1, 2, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [1, 8])
def test_orientation(orientation: int, compression: int) -> None:
    samples = levels(3, 8)
    turned = {
        1: samples, 2: samples[:, ::-1], 3: samples[::-1, ::-1], 4: samples[::-1], 5: samples.transpose(1, 0, 2),
        6: np.rot90(samples, -1), 7: samples[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(samples),
    }  # fmt: skip
    data = tiff(samples, 8, 2, compression=compression, tags={274: (3, [orientation])})
    assert np.array_equal(pixels(data), turned[orientation])


@pytest.mark.parametrize(
    "tags",
    [
        {258: (3, [5, 6, 5])},
        {259: (3, [50001])},
        {259: (3, [34712])},
        {262: (3, [32803])},
        {254: (4, [1]), 330: (4, [8])},
        {317: (3, [3]), 259: (3, [8])},
        {317: (3, [2]), 259: (3, [32773])},
        {262: (3, [6]), 530: (3, [2, 2])},
        {277: (3, [2])},
    ],
    ids=[
        "565",
        "WebP",
        "JPEG 2000",
        "a raw photograph",
        "a preview",
        "floating predictor",
        "predicted PackBits",
        "halved colours",
        "2 of 3",
    ],
)
def test_kinds_that_are_refused(tags: dict[int, tuple[int, list[int]]]) -> None:
    found = outcome(tiff(levels(3, 8), 8, 2, tags=dict(tags)))
    assert found.status is Status.UNSUPPORTED
    assert "TIFF" in (found.error or "")


def test_other_ways_of_pillow(portrait: Image.Image) -> None:
    image = portrait.resize((60, 40))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "tiff_deflate"):
        data = encode(image, "TIFF", compression=compression)
        assert np.abs(pixels(data) - np.asarray(image)).mean() < (6 if compression == "jpeg" else 0.1)
    for compression in ("group3", "group4", "tiff_ccitt"):
        bilevel = image.convert("1")
        data = encode(bilevel, "TIFF", compression=compression)
        assert np.array_equal(pixels(data), grey(np.asarray(bilevel).astype(int) * 255))
    assert np.array_equal(pixels(encode(image, "TIFF", big_tiff=True)), np.asarray(image))


@pytest.mark.slow
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_cut_anywhere(portrait: Image.Image, big: bool, compression: str) -> None:
    data = encode(portrait.resize((40, 30)), "TIFF", big_tiff=big, compression=compression)
    for end in range(8 + 8 * big, len(data) - 1, 13):
        assert outcome(data[:end]).status in (Status.TRUNCATED, Status.OK), end
        if ends_early(data[:end]):
            assert outcome(data[:end]).status is Status.TRUNCATED, end


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    tag=st.integers(300, 65535), kind=st.integers(0, 20), count=st.integers(0, 1 << 32), place=st.integers(0, 1 << 32)
)
def test_metadata_cannot_harm(tag: int, kind: int, count: int, place: int) -> None:
    samples = levels(3, 8)
    data = tiff(samples, 8, 2, tags={65000: (4, [1])})
    known = read_directory(tiff(samples, 8, 2, tags={tag: (3, [1])}))
    if known is None or tag in known.tags or tag in (529, 532, 259, 273):
        return  # it tells of pixels
    entry = struct.pack("<HHL", 65000, 4, 1)
    broken = data.replace(entry, struct.pack("<HHL", tag, kind, min(count, (1 << 32) - 1)))
    broken = broken.replace(
        struct.pack("<HHLL", tag, kind, min(count, (1 << 32) - 1), 1),
        struct.pack("<HHLL", tag, kind, min(count, (1 << 32) - 1), min(place, (1 << 32) - 1)),
    )
    assert np.array_equal(pixels(broken), samples)


@pytest.mark.slow
@pytest.mark.parametrize("compression", [1, 8])
def test_values_that_share_their_room_take_none(compression: int) -> None:
    """Libtiff reads every tag: thousands of them, each with the whole file for a value, would fill the memory."""
    samples = levels(3, 8)
    tags: dict[int, tuple[int, list[int]]] = {tag: (1, [0] * 9) for tag in range(50000, 53000)}
    data = tiff(samples, 8, 2, compression=compression, tags=dict(tags))
    for tag in tags:
        entry = data.index(struct.pack("<HHL", tag, 1, 9))
        data = data[: entry + 4] + struct.pack("<LL", 1_000_000, 8) + data[entry + 12 :]
    data += bytes(1_000_000)
    assert overfull(data)
    assert not overfull(tiff(samples, 8, 2, compression=compression))
    assert np.array_equal(pixels(data), samples)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [1, 8])
def test_strips_that_are_missing(compression: int, planar: bool) -> None:
    samples = levels(3, 8)
    height = len(samples)
    for told in (height, height + 1, 9 * height):
        tags: dict[int, tuple[int, list[int]]] = {257: (4, [told]), 278: (4, [height])}
        found = outcome(tiff(samples, 8, 2, compression=compression, planar=planar, tags=dict(tags)))
        assert found.status is (Status.OK if told == height else Status.TRUNCATED)


def test_without_metadata() -> None:
    samples = levels(3, 8)
    data = tiff(samples, 8, 2, tags={315: (1, list(b"somebody")), 305: (1, list(b"something"))})
    bare = without_metadata(data)
    assert bare is not None
    assert len(bare) == len(data)
    assert np.array_equal(pixels(bare), samples)
    assert without_metadata(b"II*\0\xff\xff\xff\xff") is None


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_gives_a_status(data: st.DataObject) -> None:
    good = bytearray(
        tiff(levels(3, 8), 8, 2, order=data.draw(st.sampled_from("<>")), compression=data.draw(st.sampled_from([1, 8])))
    )
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=9)
    ):
        good[position] = value
    found = outcome(bytes(good[: data.draw(st.integers(0, len(good)))]))
    assert isinstance(found.status, Status)
    assert (found.error is None) == (found.status is Status.OK)


def test_errors_are_image_errors() -> None:
    with pytest.raises(ImageError, match="sample format 3"):
        pixels(tiff(levels(1, 32), 32, 1, tags={339: (3, [3])}))
