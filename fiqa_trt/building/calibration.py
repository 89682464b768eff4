"""INT8 ranges: the shipped ones, those of a file, or measured on crops."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fiqa_trt.building.quantize import Ranges, calibrate, outputs, simulated
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.engines.base import Judged
from fiqa_trt.engines.known import agreement
from fiqa_trt.engines.manifest import digest_of
from fiqa_trt.engines.opening import RELEASED
from fiqa_trt.errors import EngineError, InputError
from fiqa_trt.inputs.containers.registry import CONTAINERS
from fiqa_trt.inputs.reader import ContainerReader, read_recorded
from fiqa_trt.inputs.source import list_inputs, source_of
from fiqa_trt.inputs.user_tables import KINDS
from fiqa_trt.models.spec import PreprocessSpec
from fiqa_trt.models.verification import TOLERANCES, Fidelity, verification_batch
from fiqa_trt.outcomes import Status
from fiqa_trt.progress import Say, silent
from fiqa_trt.storage.places import Place, Uri

MIN_CROPS = 32
MAX_CROPS = 512
_RANGES = "int8_ranges.json"
_SIZE = PreprocessSpec().size

_TRIED = 128
_ADVICE = (
    f"INT8 ranges are best measured on {MAX_CROPS} crops of many people, most of them as good as what you mean to "
    "keep; of damaged ones no more than there are in the data"
)

Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Trial:
    """How near INT8 with some ranges comes to FP32.

    Attributes:
        crops: on the crops that were given.
        fixed: on the verification batch, which decides whether an engine is written.
    """

    crops: Fidelity
    fixed: Fidelity

    @classmethod
    def of(cls, judge: Callable[[Pixels], Judged], exact: Callable[[Pixels], Judged], crops: Pixels) -> Trial:
        """Of two networks, which take uint8 [N, 224, 224, 3]; a part of the crops is enough."""
        some, fixed = crops[:: max(1, len(crops) // _TRIED)], verification_batch()
        return cls(agreement(judge(some), exact(some)), agreement(judge(fixed), exact(fixed)))

    @property
    def good(self) -> bool:
        """Whether such an engine would be written."""
        return TOLERANCES["int8"].holds(self.fixed)


def prefers_shipped(own: Trial, shipped: Trial, say: Say) -> bool:
    """Whether the shipped ranges serve these crops better than their own; `say` hears which and why."""
    better = shipped.good and (not own.good or shipped.crops.mean < own.crops.mean)
    kept, other = ("the shipped ranges", "those of your crops") if better else ("ranges of your crops", "the shipped")
    first, second = (shipped, own) if better else (own, shipped)
    say(
        f"INT8 with {kept}: on {first.crops.images} of your crops a score differs from FP32 by {first.crops.mean:.4f} "
        f"on average, with {other} by {second.crops.mean:.4f}"
        + (f", and these are out of tolerance ({second.fixed})" if not second.good else "")
    )
    if better or not own.good:
        say(_ADVICE)
    return better


def shipped_for(model: str) -> Ranges | None:
    """The shipped ranges if they are of the checkpoint with this digest."""
    if not ranges_file().exists():
        return None
    ranges = Ranges.read(ranges_file())
    return ranges if ranges.model == model else None


def ranges_file() -> Path:
    """The shipped INT8 ranges: in the package, or in `calibration/` of a checkout."""
    packaged = RELEASED / _RANGES
    return packaged if packaged.exists() else RELEASED.parents[1] / "calibration" / _RANGES


def read_ranges(calibration: Place | None) -> Ranges:
    """The ranges of a file, or the shipped ones. Raises EngineError if there are none."""
    path = Path(calibration or ranges_file())
    if not path.exists():
        raise EngineError(f"{path} does not exist; --calibration also takes crops to measure them on")
    return Ranges.read(path)


def are_crops(calibration: Place) -> bool:
    """Whether crops are given, in any of the ways in which `score` takes them, and not a file of ranges."""
    named = calibration.suffix.lower() in (".txt", *KINDS, *CONTAINERS)
    return named or isinstance(calibration, Uri) or calibration.is_dir()


def int8_ranges(checkpoint: Path, calibration: Place | None, say: Say = silent) -> Ranges:
    """Ranges of a checkpoint: of a file, the shipped ones (None), or measured here on crops.

    Where the shipped ones serve these crops better they are taken after all, and `say` hears of it.

    Raises:
        EngineError: there are none, or they are of another checkpoint.
        InputError: the crops cannot be used.
    """
    if calibration is not None and are_crops(calibration):
        crops = read_crops(calibration, say)
        say(f"measuring INT8 ranges on {len(crops)} crops, which takes minutes")
        return _better(checkpoint, measure(checkpoint, crops, str(calibration)), crops, say)
    ranges = read_ranges(calibration)
    ranges.check_model(digest_of(checkpoint))
    return ranges


def measure(checkpoint: Path, crops: Pixels, source: str) -> Ranges:
    """INT8 ranges of a checkpoint on crops, uint8 [N, 224, 224, 3]. `source` says in words which crops."""
    from fiqa_trt.engines.torch import load_checkpoint

    network = load_checkpoint(checkpoint)
    network.fold()
    return Ranges(digest_of(checkpoint), len(crops), source, calibrate(network, crops))


def _better(checkpoint: Path, own: Ranges, crops: Pixels, say: Say) -> Ranges:
    shipped = shipped_for(own.model)
    if shipped is None:
        return own
    from fiqa_trt.engines.torch import load_checkpoint

    network = load_checkpoint(checkpoint)
    network.fold()

    def exact(images: Pixels) -> Judged:
        return Judged.of([each.numpy() for each in outputs(network, images)])

    def judge(ranges: Ranges) -> Callable[[Pixels], Judged]:
        def function(images: Pixels) -> Judged:
            with simulated(network, ranges.layers):
                return exact(images)

        return function

    trials = [Trial.of(judge(ranges), exact, crops) for ranges in (own, shipped)]
    return shipped if prefers_shipped(trials[0], trials[1], say) else own


def read_crops(given: Place, say: Say = silent, count: int = MAX_CROPS) -> Pixels:
    """Up to `count` crops of a folder, a shard, a table or a list, spread evenly over it: uint8 [N, 224, 224, 3].

    `say` is that of `list_inputs`.

    Raises:
        InputError: as `list_inputs`, or fewer than MIN_CROPS crops that can be decoded.
    """
    batches = list_inputs(source_of(os.fspath(given)), say)
    paths = [path for batch in batches for path in batch.column("path").to_pylist()]
    chosen = [paths[index] for index in np.linspace(0, len(paths) - 1, min(2 * count, len(paths))).astype(int)]
    decoder, crops = CpuDecoder(), np.zeros((min(count, len(chosen)), _SIZE, _SIZE, 3), np.uint8)
    filled, reader = 0, ContainerReader()
    for path in _spread(chosen):
        filled += decoder.decode_into(crops[filled], read_recorded(path, reader)).status is Status.OK
        if filled == len(crops):
            break
    reader.close()
    if filled < MIN_CROPS:
        raise InputError(
            f"--calibration {given}: {filled} of {len(paths)} images could be decoded; calibrating takes at least "
            f"{MIN_CROPS}, better {MAX_CROPS}, that look like those to be scored"
        )
    return crops[:filled]


def _spread(items: Sequence[str]) -> Iterator[str]:
    """Every second item first, then the others, so that the first half of them covers everything."""
    yield from items[::2]
    yield from items[1::2]
