"""INT8 ranges: the shipped ones, those of a file, or measured on crops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fiqa_trt.decode import CpuDecoder
from fiqa_trt.engines import RELEASED
from fiqa_trt.engines.manifest import digest_of
from fiqa_trt.engines.quantize import Ranges, calibrate
from fiqa_trt.errors import EngineError, InputError
from fiqa_trt.records import Status
from fiqa_trt.shards import ShardReader, read_recorded
from fiqa_trt.sources import Source, list_inputs
from fiqa_trt.spec import PreprocessSpec

MIN_CROPS = 32
MAX_CROPS = 512
_RANGES = "int8_ranges.json"
_SIZE = PreprocessSpec().size

Pixels = npt.NDArray[np.uint8]


def ranges_file() -> Path:
    """The shipped INT8 ranges: in the package, or in `calibration/` of a checkout."""
    packaged = RELEASED / _RANGES
    return packaged if packaged.exists() else RELEASED.parents[1] / "calibration" / _RANGES


def read_ranges(calibration: Path | None) -> Ranges:
    """The ranges of a file, or the shipped ones. Raises EngineError if there are none."""
    path = calibration or ranges_file()
    if not path.exists():
        raise EngineError(f"{path} does not exist; --calibration DIR measures INT8 ranges on crops of yours")
    return Ranges.read(path)


def int8_ranges(checkpoint: Path, calibration: Path | None) -> Ranges:
    """Ranges of a checkpoint: of a file, the shipped ones (None), or measured here on a folder of crops.

    Raises:
        EngineError: there are none, or they are of another checkpoint.
        InputError: the crops cannot be used.
    """
    if calibration is not None and calibration.is_dir():
        return measure(checkpoint, read_crops(calibration), str(calibration))
    ranges = read_ranges(calibration)
    ranges.check_model(digest_of(checkpoint))
    return ranges


def measure(checkpoint: Path, crops: Pixels, source: str) -> Ranges:
    """INT8 ranges of a checkpoint on crops, uint8 [N, 224, 224, 3]. `source` says in words which crops."""
    from fiqa_trt.engines.torch import load_checkpoint

    network = load_checkpoint(checkpoint)
    network.fold()
    return Ranges(digest_of(checkpoint), len(crops), source, calibrate(network, crops))


def read_crops(folder: Path, count: int = MAX_CROPS) -> Pixels:
    """Up to `count` crops of a folder, spread evenly over its listing: uint8 [N, 224, 224, 3].

    Raises:
        InputError: no such folder, or fewer than MIN_CROPS crops that can be decoded.
    """
    paths = [path for batch in list_inputs(Source((str(folder),))) for path in batch.column("path").to_pylist()]
    chosen = [paths[index] for index in np.linspace(0, len(paths) - 1, min(2 * count, len(paths))).astype(int)]
    decoder, crops = CpuDecoder(), np.zeros((min(count, len(chosen)), _SIZE, _SIZE, 3), np.uint8)
    filled, reader = 0, ShardReader()
    for path in _spread(chosen):
        filled += decoder.decode_into(crops[filled], read_recorded(path, reader)).status is Status.OK
        if filled == len(crops):
            break
    reader.close()
    if filled < MIN_CROPS:
        raise InputError(
            f"--calibration {folder}: {filled} of {len(paths)} images could be decoded; calibrating takes at least "
            f"{MIN_CROPS}, better {MAX_CROPS}, that look like those to be scored"
        )
    return crops[:filled]


def _spread(items: Sequence[str]) -> Iterator[str]:
    """Every second item first, then the others, so that the first half of them covers everything."""
    yield from items[::2]
    yield from items[1::2]
