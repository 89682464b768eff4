"""The check at every start: an engine scores a few crops whose scores are known before it scores anybody's.

One that could not be compared with FP32 where it was built is, at its first start on a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from fiqa_trt.decoding.base import Pixels
from fiqa_trt.engines.base import Engine, Judged, Scores
from fiqa_trt.engines.manifest import MANIFEST, Manifest
from fiqa_trt.errors import EngineError, FiqaError
from fiqa_trt.models.verification import KNOWN, TOLERANCES, Fidelity, check, compare, known_crops, verification_batch
from fiqa_trt.progress import Say, silent
from fiqa_trt.storage.writing import atomic

_INT8 = 0.03
"""INT8 engines have no tolerance for a single image. Of their own scores they keep well within this, whatever the batch
size; a broken one does not."""
_INT8_CAUSES = 0.25
"""The same of the severity of a cause. From those of FP32, which an engine for a GPU elsewhere records, INT8 is 0.11
away at most.
"""


def difference(engine: Engine, manifest: Manifest) -> str | None:
    """How an engine scores known crops otherwise than its manifest records, in a line; None if it does not.

    Every place of a batch is tried, and every slot of the engine. Nothing is known of an engine that records nothing.
    """
    if not manifest.reference:
        return None
    batch = engine.info.batch
    rows = np.resize(np.arange(len(KNOWN)), batch)
    images = known_crops()[rows]
    known, limits = manifest.known, TOLERANCES[engine.info.precision]
    expected = known.scores.astype(np.float64)[list(KNOWN)][rows].mean(axis=1)
    causes = known.causes[list(KNOWN)][rows]
    coarse = engine.info.precision == "int8"
    limit, of_causes = (_INT8, _INT8_CAUSES) if coarse else (limits.max, limits.causes_max)
    try:
        for future in [engine.submit(images) for _ in range(engine.slots)]:
            judged = future.result()
            told = judged.causes.shape[1]
            if told != len(manifest.spec.causes):
                return f"it tells of {told} causes, not of {len(manifest.spec.causes)}"
            found = judged.scores.mean(axis=1, dtype=np.float64)
            # Not so if one of them is not a number, either.
            if not np.abs(found - expected).max() <= limit:
                place = int(np.argmax(np.abs(found - expected)))
                return f"a known crop scores {found[place]:.3f}, not {expected[place]:.3f} (it may differ by {limit:g})"
            if causes.size and not np.abs(judged.causes - causes).max() <= of_causes:
                most = np.abs(judged.causes - causes).max()
                return f"a cause of a known crop differs by {most:.3f} (it may by {of_causes:g})"
    except FiqaError as exc:
        return f"a known crop cannot be scored: {exc}"
    return None


def infer(engine: Engine, images: Pixels) -> Scores:
    """Member scores of any number of images, in padded batches."""
    return judge(engine, images).scores


def judge(engine: Engine, images: Pixels) -> Judged:
    """Scores and causes of any number of images, in padded batches."""
    batch = engine.info.batch
    pending: list[tuple[Future[Judged], int]] = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        padded = np.zeros((batch, *images.shape[1:]), np.uint8)
        padded[: len(part)] = part
        pending.append((engine.submit(padded), len(part)))
    parts = [[each[:count] for each in future.result()] for future, count in pending]
    return Judged(*map(np.concatenate, zip(*parts, strict=True)))


def fidelity(engine: Engine, manifest: Manifest) -> Fidelity:
    """How near an engine comes, on the whole verification batch, to the scores that its manifest records."""
    return agreement(judge(engine, verification_batch()), manifest.known)


def agreement(found: Judged, reference: Judged) -> Fidelity:
    """How near an engine comes to a reference. Raises EngineError as `compare`."""
    return compare(found.scores, reference.scores, found.causes, reference.causes)


def verified(folder: Path, engine: Engine, manifest: Manifest, say: Say = silent) -> Manifest:
    """The manifest of an engine that has been compared with FP32 on this GPU; it is, if that was not done before.

    Raises:
        EngineError: it is too far from FP32; it has been closed then.
    """
    here = engine.info.device
    if manifest.verified and manifest.verified_on in ("", here):
        return manifest
    try:
        found = fidelity(engine, manifest)
        check(found, manifest.precision, f"{folder}, which was not verified when it was built,", "cannot be used")
    except FiqaError as exc:
        engine.close()
        if engine.kept is not None:
            engine.kept.drop()
        raise EngineError(str(exc)) from exc
    say(f"verified on {here}, against FP32: {found}")
    known = dataclasses.replace(manifest, verified=True, verified_on=here, agreement=found.rounded())
    record(folder, known)
    return known


def record(folder: Path, manifest: Manifest) -> None:
    """Write a manifest anew, if that can be: without, the next start looks again."""
    with contextlib.suppress(OSError, FiqaError), atomic(folder / MANIFEST) as temporary:
        temporary.write_text(manifest.dump())
