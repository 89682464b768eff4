"""What scores are worth to face recognition: the error-versus-discard characteristic."""

from __future__ import annotations

import dataclasses

import numpy as np

from fiqa_trt.analysis.measures import Values
from fiqa_trt.errors import InputError

DISCARDS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
AREAS = (0.2, 0.3)


@dataclasses.dataclass(frozen=True)
class Edc:
    """Error versus discard: what is left of the false non-matches when the pairs of lowest quality are discarded.

    Attributes:
        pairs: mated pairs.
        threshold: similarity below which a mated pair is a false non-match; fixed before any pair is discarded.
        discard: share of pairs discarded, [pairs], rising from 0.
        fnmr: false non-match rate of the rest, [pairs].
        ideal: the same for a quality that discards exactly the false non-matches first; nothing can be below it.
    """

    pairs: int
    threshold: float
    discard: Values
    fnmr: Values
    ideal: Values

    def at(self, share: float) -> float:
        """FNMR when `share` of the pairs is discarded."""
        return float(np.interp(share, self.discard, self.fnmr))

    def pauc(self, share: float, *, ideal: bool = False) -> float:
        """Area under the curve (or under the ideal one) from no discard to `share`; at most `share`."""
        curve = self.ideal if ideal else self.fnmr
        inner = self.discard < share
        x = np.append(self.discard[inner], share)
        y = np.append(curve[inner], np.interp(share, self.discard, curve))
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def edc(quality: Values, similarity: Values, threshold: float) -> Edc:
    """The error-versus-discard characteristic (Grother and Tabassi, 2007; ISO/IEC 29794-1) of mated pairs.

    As Schlett et al. (2023) ask, the threshold stays what it was for all pairs. Of pairs with the same quality none
    comes before the other: a part of such a group is discarded with its share of errors.

    Args:
        quality: float64 [N], of each mated pair: the lower one of its two images.
        similarity: float64 [N], higher is more alike.
        threshold: a similarity below it is a false non-match.
    """
    count = len(quality)
    order = np.argsort(quality, kind="stable")
    errors = (similarity < threshold)[order].astype(np.float64)
    ends = np.flatnonzero(np.append(np.diff(quality[order]) > 0, True)) + 1
    discarded = np.arange(count)
    gone = np.interp(discarded, np.append(0, ends), np.append(0, np.cumsum(errors)[ends - 1]))
    left, total = count - discarded, errors.sum()
    return Edc(count, threshold, discarded / count, (total - gone) / left, np.maximum(total - discarded, 0) / left)


def threshold_at_fnmr(similarity: Values, rate: float) -> float:
    """The similarity at which at most `rate` of the mated pairs [N] are false non-matches, as close as ties allow.

    Raises:
        InputError: `rate` is less than one pair.
    """
    ordered = np.sort(similarity)
    return float(ordered[min(_measurable(rate, len(ordered), "FNMR", "mated"), len(ordered) - 1)])


def threshold_at_fmr(similarity: Values, rate: float) -> float:
    """The lowest similarity at which at most `rate` of the non-mated pairs [N] are false matches (similarity >= it).

    Raises:
        InputError: there are no non-mated pairs, or `rate` is less than one of them, but not 0.
    """
    if not len(similarity):
        raise InputError("a false match rate needs pairs of different people (same = 0), and there are none")
    ordered = np.sort(similarity)[::-1]
    allowed = _measurable(rate, len(ordered), "FMR", "non-mated") if rate else 0
    return float(np.nextafter(ordered[allowed], np.inf)) if allowed < len(ordered) else float(ordered[-1])


def _measurable(rate: float, pairs: int, what: str, kind: str) -> int:
    """How many of so many pairs a rate is. Raises InputError if not one."""
    count = int(np.floor(rate * pairs + 1e-9))
    if not count:
        raise InputError(
            f"an {what} of {rate:g} cannot be measured with {pairs:,} {kind} pairs: the smallest is "
            f"--{what.lower()} {_rounded_up(1 / pairs):g}"
        )
    return count


def _rounded_up(rate: float) -> float:
    """To two digits."""
    step = 10.0 ** (np.floor(np.log10(rate)) - 1)
    return float(np.ceil(rate / step - 1e-9) * step)
