"""A picture that says what an image was given, and where that stands."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fiqa_trt.engines.base import EngineInfo
from fiqa_trt.errors import InputError
from fiqa_trt.models.causes import NONE, Causes
from fiqa_trt.scores.files import output_metadata, read_output
from fiqa_trt.scores.score import Score
from fiqa_trt.storage.places import Place

_BINS = 50
_MARGIN, _WIDTH = 16, 320
_ROW, _NAME = 22, 96  # of the causes: height of a row, width of a name
_INK, _GREY, _BLUE, _RED = (32, 33, 36), (218, 220, 224), (66, 103, 172), (200, 60, 50)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Scores of a data set.

    Attributes:
        counts: int64 [50], images by score from 0 to 1.
        scores: float32 [N], sorted.
        made_by: the engine that gave them, as the file records it; empty if it does not.
    """

    counts: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    made_by: dict[str, Any] = dataclasses.field(default_factory=dict)

    def share_below(self, score: float) -> float:
        """Share of the images that have a lower score."""
        return float(np.searchsorted(self.scores, np.float32(score)) / len(self.scores))

    def difference(self, info: EngineInfo) -> str | None:
        """What to know before scores of another engine are compared with these, in a line; None if they are alike."""
        if not self.made_by:
            return "it does not record which engine its scores are from, so these may not compare with them"
        names = ["model", "precision", "executed", "backend", *(["payload"] if info.precision == "int8" else [])]
        here = dataclasses.asdict(info)
        name = next((name for name in names if self.made_by.get(name) != here[name]), None)
        if name is None:
            return None
        values = f"{name} {_short(self.made_by.get(name))} there, {_short(here[name])} here"
        return f"its scores are from another engine ({values}); --engine and --precision choose the same"


def _short(value: object) -> str:
    """Of a digest its beginning."""
    text = str(value or "unknown")
    return text[:12] if len(text) == 64 else text


def read_distribution(scores: Place) -> Distribution:
    """The distribution of a scores file. Raises InputError if it cannot be read or holds no score."""
    parts = [table["score"].drop_null().to_numpy() for table in read_output(scores, ["path", "score", "status"])]
    values = np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.float32)
    if not len(values):
        raise InputError(f"{scores} holds no score to compare with")
    made_by = (output_metadata(scores) or {}).get("engine") or {}
    return Distribution(np.histogram(values, _BINS, (0, 1))[0], values.astype(np.float32), made_by)


def explain(
    pixels: npt.NDArray[np.uint8], score: Score, among: Distribution | None = None, causes: Causes = NONE
) -> Image.Image:
    """The crop as the networks see it, beside the scores and, among a data set's, where they stand; below, the causes.

    Args:
        pixels: uint8 [224, 224, 3].
        score: of the image, with status `ok`.
        among: a data set to compare with.
        causes: that the score tells of.
    """
    size = len(pixels)
    below = _MARGIN + _ROW * -(-len(causes) // 2) if causes else 0
    picture = Image.new("RGB", (size + _WIDTH + 3 * _MARGIN, size + 2 * _MARGIN + below), "white")
    picture.paste(Image.fromarray(pixels), (_MARGIN, _MARGIN))
    draw = ImageDraw.Draw(picture)
    small, large = ImageFont.load_default(13), ImageFont.load_default(26)
    left, top = size + 2 * _MARGIN, _MARGIN
    assert score.score is not None
    draw.text((left, top), f"{score.score:.3f}", _INK, large)
    text = f"{score.width} x {score.height} px"
    if among is not None:
        text += f", better than {among.share_below(score.score):.0%} of {len(among.scores):,}"
    draw.text((left + 88, top + 11), text, _INK, small)
    top += 42
    for name, value in score.members.items():
        draw.text((left, top), f"{name}  {value:.3f}", _INK, small)
        draw.rectangle((left, top + 18, left + _WIDTH, top + 24), _GREY)
        draw.rectangle((left, top + 18, left + round(value * _WIDTH), top + 24), _BLUE)
        top += 36
    bottom = size + _MARGIN - 16
    if among is not None:
        height, step = bottom - top - 6, _WIDTH / _BINS
        for index, count in enumerate(among.counts):
            bar = round(height * count / among.counts.max())
            draw.rectangle((left + index * step, bottom - bar, left + (index + 1) * step - 1, bottom), _GREY)
    place = left + score.score * _WIDTH
    draw.line((left, bottom, left + _WIDTH, bottom), _INK)
    draw.line((place, top + 2, place, bottom), _RED, 2)
    for value in (0.0, 0.5, 1.0):
        draw.text((left + value * _WIDTH, bottom + 2), f"{value:g}", _INK, small, anchor="ma")
    _draw_causes(draw, score, causes, size + 2 * _MARGIN, picture.width)
    return picture


def _draw_causes(draw: ImageDraw.ImageDraw, score: Score, causes: Causes, top: int, width: int) -> None:
    """A bar for each cause, in two columns, with a mark where it begins to be named; red is what lies above that."""
    small, half = ImageFont.load_default(13), (width - 3 * _MARGIN) // 2
    for index, (name, limit) in enumerate(causes.named().items()):
        value, left = score.causes[name], _MARGIN + index % 2 * (half + _MARGIN)
        line, start = top + index // 2 * _ROW, left + _NAME
        length = left + half - start
        draw.text((left, line), name, _RED if name == score.cause else _INK, small)
        draw.rectangle((start, line + 4, start + length, line + 12), _GREY)
        draw.rectangle((start, line + 4, start + round(value * length), line + 12), _RED if value > limit else _BLUE)
        mark = start + round(limit * length)
        draw.line((mark, line + 2, mark, line + 14), _INK)
