"""The check at every start: an engine scores a few crops whose scores are known before it scores anybody's."""

from __future__ import annotations

import numpy as np

from fiqa_trt.engines.base import Engine
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.errors import FiqaError
from fiqa_trt.models.verification import KNOWN, TOLERANCES, known_crops

_INT8 = 0.03
"""INT8 engines have no tolerance for a single image. Of their own scores they keep well within this, whatever the batch
size; a broken one does not."""


def difference(engine: Engine, manifest: Manifest) -> str | None:
    """How an engine scores known crops otherwise than its manifest records, in a line; None if it does not.

    Every place of a batch is tried, and every slot of the engine. Nothing is known of an engine that records nothing.
    """
    if not manifest.reference:
        return None
    batch = engine.info.batch
    rows = np.resize(np.arange(len(KNOWN)), batch)
    images = known_crops()[rows]
    expected = np.array(manifest.reference, np.float64)[list(KNOWN)][rows].mean(axis=1)
    limit = _INT8 if engine.info.precision == "int8" else TOLERANCES[engine.info.precision].max
    try:
        for future in [engine.submit(images) for _ in range(engine.slots)]:
            found = future.result().mean(axis=1, dtype=np.float64)
            # Not so if one of them is not a number, either.
            if not np.abs(found - expected).max() <= limit:
                place = int(np.argmax(np.abs(found - expected)))
                return f"a known crop scores {found[place]:.3f}, not {expected[place]:.3f} (it may differ by {limit:g})"
    except FiqaError as exc:
        return f"a known crop cannot be scored: {exc}"
    return None
