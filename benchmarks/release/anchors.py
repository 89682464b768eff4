"""What scores of 0.8, 0.6, 0.4 and 0.2 look like: `docs/anchors.png`. `python -m benchmarks.release.anchors`.

The demo's public-domain portrait, with each kind of damage as strong as it takes for the score.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.release.model_card import Pixels, Scorer
from fiqa_trt.engines.opening import open_engine
from fiqa_trt.machine.samples import portrait
from fiqa_trt.models.verification import SIZE
from fiqa_trt.training.degradations import FAMILIES

SHOWN = ("defocus_blur", "motion_blur", "sensor_noise", "low_resolution", "jpeg", "low_light", "haze", "occlusion")
TARGETS = (0.8, 0.6, 0.4, 0.2)
NEAR = 0.04
SEVERITIES = np.linspace(0.01, 1, 100)
OUTPUT = Path(__file__).parents[2] / "docs" / "anchors.png"
_THUMB, _BAR = 168, 22


def main() -> None:
    """Draw the table; a place stays empty where no severity comes within 0.04 of the score."""
    engine = open_engine("cpu", "fp32")
    scorer, face = Scorer(engine), np.asarray(portrait())
    clean = float(scorer([face])[0])
    width, height = len(SHOWN) * _THUMB, (len(TARGETS) + 1) * (_THUMB + _BAR)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    _place(sheet, face, 0, 0)
    draw.text((4, _THUMB + 4), f"undamaged: {clean:.2f}", "black", font)
    for column, family in enumerate(SHOWN):
        damaged = [FAMILIES[family](face, float(s), np.random.default_rng(1)) for s in SEVERITIES]
        scores = scorer(damaged)
        for row, target in enumerate(TARGETS, 1):
            best = int(np.abs(scores - target).argmin())
            if abs(scores[best] - target) > NEAR:
                continue
            _place(sheet, damaged[best], column, row)
            text = f"{family.replace('_', ' ')} {SEVERITIES[best]:.2f}: {scores[best]:.2f}"
            draw.text((column * _THUMB + 4, row * (_THUMB + _BAR) + _THUMB + 4), text, "black", font)
    engine.close()
    sheet.quantize(192).save(OUTPUT, optimize=True)


def _place(sheet: Image.Image, pixels: Pixels, column: int, row: int) -> None:
    assert pixels.shape[0] == SIZE
    sheet.paste(Image.fromarray(pixels).resize((_THUMB, _THUMB)), (column * _THUMB, row * (_THUMB + _BAR)))


if __name__ == "__main__":
    main()
