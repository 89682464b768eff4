"""How often a unit has ended the process that scored it, and which worker scores which unit.

One image may make a decoder end its whole process. So whoever can see such a death records it in the state of the run,
where it outlives the run itself, and a unit that has died CAREFUL times is scored with its images looked at one by one
in a process of their own; see `sifting`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable

from fiqa_trt.errors import RunError
from fiqa_trt.executors.base import Units

CAREFUL = 2
LIMIT = 3
"""Failures of a unit whose worker lives, after which a run ends."""
_COPY_FACTOR, _COPY_SECONDS = 1.5, 2.0
_AGAIN = "run the same command again to resume"


class Attempts:
    """Deaths of the units of a run, in its state."""

    def __init__(self, units: Units) -> None:
        self._units, self._deaths = units, Counter(units.deaths())
        self._begun = set[int]()

    def careful(self, number: int) -> bool:
        """Whether a unit has died so often that one looks before one scores it."""
        return self._deaths[number] >= CAREFUL

    def died(self, numbers: Iterable[int]) -> int:
        """Record a death of each of some units; returns how often the worst of them has died. Raises RunError."""
        found = list(numbers)
        self._deaths.update(found)
        if found:
            self._units.record_deaths(dict(self._deaths))
        return max((self._deaths[number] for number in found), default=0)

    def begin(self, number: int) -> None:
        """This process itself is going to score a unit: recorded as its death until it ends. Raises RunError."""
        self._begun.add(number)
        self._units.record_deaths(dict(self._deaths + Counter(self._begun)))

    def end(self, number: int) -> None:
        """A unit is finished."""
        self._begun.discard(number)
        self._deaths.pop(number, None)

    def close(self) -> None:
        """This process lives, whatever became of the units that it has begun. Raises RunError."""
        if self._begun:
            self._begun.clear()
            self._units.record_deaths(dict(self._deaths))


class Dispatch:
    """Which worker scores which unit: in order, what was lost first, and at the end copies of what takes long.

    Workers are known by whatever their owner calls them. Parts are the same whoever writes them, so of two copies the
    first to finish counts.
    """

    def __init__(self, units: Units, clock: Callable[[], float] = time.monotonic, *, copies: bool = False) -> None:
        """`copies`: whether a unit that another worker has had for long is given to one that has nothing to do."""
        self._attempts = Attempts(units)
        self._waiting, self._clock, self._copies = deque(units.pending()), clock, copies
        self._held = dict[int, dict[Hashable, float]]()  # by unit who has it, and since when
        self._of = defaultdict[Hashable, set[int]](set)  # the same by worker
        self._failures, self._seconds = Counter[int](), deque[float](maxlen=256)

    @property
    def over(self) -> bool:
        """Whether every unit is finished."""
        return not self._waiting and not self._held

    @property
    def seconds_left(self) -> float:
        """That the units which nobody has would take, one after the other; infinite before the first is finished."""
        return len(self._waiting) * statistics.median(self._seconds) if self._seconds else math.inf

    @property
    def waiting(self) -> bool:
        """Whether there are units that nobody has."""
        return bool(self._waiting)

    def give(self, worker: Hashable) -> tuple[int, bool] | None:
        """A unit for a worker, and whether its images are to be looked at first; None if there is none for it now."""
        has = self._of[worker]
        if any(map(self._attempts.careful, has)):
            return None
        number = self._next(alone=not has) if self._waiting else self._slow(worker) if self._copies else None
        if number is None:
            return None
        self._held.setdefault(number, {})[worker] = self._clock()
        has.add(number)
        return number, self._attempts.careful(number)

    def _next(self, *, alone: bool) -> int | None:
        """The next unit; what has died often is for a worker that has nothing else, which it could take along."""
        for place, number in enumerate(self._waiting):
            if alone or not self._attempts.careful(number):
                del self._waiting[place]
                return number
        return None

    def _slow(self, worker: Hashable) -> int | None:
        """The unit that another worker alone has had for longest, if that is longer than units take."""
        alone = [(next(iter(held.values())), number) for number, held in self._held.items() if len(held) == 1]
        alone = [(since, number) for since, number in alone if worker not in self._held[number]]
        if not alone:
            return None
        since, number = min(alone)
        usual = statistics.median(self._seconds) if self._seconds else _COPY_SECONDS
        return number if self._clock() - since > max(_COPY_FACTOR * usual, _COPY_SECONDS) else None

    def finished(self, worker: Hashable, number: int) -> bool:
        """A worker has written the part of a unit; returns whether it is the first that has."""
        held = self._held.pop(number, None)
        if held is None:
            return False
        for each in held:
            self._of[each].discard(number)
        self._seconds.append(self._clock() - held.get(worker, self._clock()))
        self._attempts.end(number)
        return True

    def failed(self, worker: Hashable, number: int, error: str) -> None:
        """A worker, which lives, could not do a unit. Raises RunError at the third time."""
        if number not in self._of[worker]:
            return
        self._failures[number] += 1
        self._back([number], worker)
        if self._failures[number] >= LIMIT:
            raise RunError(f"unit {number} failed {LIMIT} times, at last: {_sentence(error)}{_AGAIN}")

    def lost(self, worker: Hashable, error: str) -> list[int]:
        """A worker has died; returns the units that it had, which others get.

        Raises:
            RunError: of one that it had alone, as it had died before.
        """
        numbers = sorted(self._of[worker])
        alone = next(filter(self._attempts.careful, numbers), None)
        self._back(numbers, worker)
        deaths = self._attempts.died(numbers)
        if alone is not None:
            raise RunError(
                f"unit {alone} ended the process {deaths} times, though each of its images can be decoded, at last: "
                f"{_sentence(error)}{_AGAIN}"
            )
        return numbers

    def _back(self, numbers: list[int], worker: Hashable) -> None:
        for number in reversed(numbers):
            self._held[number].pop(worker, None)
            self._of[worker].discard(number)
            if not self._held[number]:
                del self._held[number]
                self._waiting.appendleft(number)


def _sentence(error: str) -> str:
    """What went wrong, without a way out that it names itself."""
    return error.partition(f"; {_AGAIN}")[0].partition("; run the same command again")[0] + "; "
