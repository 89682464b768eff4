"""How engines are timed, and which way is taken."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

import numpy as np
import pytest

from fiqa_trt.building import measuring
from fiqa_trt.building.calibration import Pixels
from fiqa_trt.building.measuring import Measured, batch_sizes, choose, quickest
from fiqa_trt.engines.base import EngineInfo, Judged
from fiqa_trt.errors import EngineError

INFO = EngineInfo("x", "y", "fp16", "fp16", 8, "0", ("a", "b"))


def test_the_quickest_way_within_tolerance_is_taken() -> None:
    def measured(rate: int) -> Measured:
        if rate > 50:
            raise EngineError(f"{rate} is too far from FP32")
        return Measured(INFO, rate, {}, Judged.of([np.zeros((0, 2))]))

    said = list[str]()
    assert quickest(measured, [10, 30, 99, 20], said.append)[0] == 30
    assert said == ["left out: 99 is too far from FP32"]
    assert quickest(measured, [99, 10, 98], said.append)[1].rate == 10
    assert quickest(measured, [48, 49, 50], said.append)[0] == 48  # as quick, but for noise
    with pytest.raises(EngineError, match="98 is too far"):
        quickest(measured, [99, 98], said.append)


def test_ways_are_compared_beside_the_same_engine() -> None:
    """Whatever the load was while each was timed."""
    none = Judged.of([np.zeros((0, 2))])
    found = {"a": Measured(INFO, 300, {}, none, 0.8), "b": Measured(INFO, 100, {}, none, 1.6)}
    assert quickest(found.__getitem__, ["a", "b"], print)[0] == "b"


def test_a_noisy_moment_chooses_nothing() -> None:
    steady = [100.0] * 7
    assert choose({8: steady, 4: [104.0] * 7, 16: steady}) == 8
    assert choose({8: steady, 4: [120.0] * 6 + [90.0]}) == 4
    assert choose({8: steady, 4: [300.0] * 5 + [90.0] * 2}) == 8
    assert choose({8: [100.0, 30.0, 100.0, 30.0, 100.0, 30.0, 100.0], 4: [100.0, 33.0] * 3 + [100.0]}) == 8
    assert choose({8: [50.0], 4: [100.0]}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 32])
def test_all_that_goes_in_is_timed(batch: int) -> None:
    """The same in every slot, from the first image to the last: else a large batch seems slower than it is."""
    now, waited = list[Future[Judged]](), list[Future[Judged]]()

    class Watched(Future[Judged]):
        def result(self, timeout: float | None = None) -> Judged:
            waited.append(self)
            return super().result(timeout)

    class Counting:
        info, slots = dataclasses.replace(INFO, batch=batch), 3

        def submit(self, images: Pixels) -> Future[Judged]:
            assert len(images) == batch
            future = Watched()
            future.set_result(Judged.of([np.zeros((batch, 2))]))
            now.append(future)
            return future

    assert measuring.throughput(Counting(), 0.01) > 0  # type: ignore[arg-type]
    assert len(now) % 3 == 0
    assert sorted(map(id, now)) == sorted(map(id, waited))


def test_batch_sizes() -> None:
    assert batch_sizes((1, 4, 8), 8) == [1, 4, 8]
    assert batch_sizes((1, 4, 8), 6) == [1, 4, 6]
    assert batch_sizes((8, 32), 64) == [8, 32]
