"""The last net: what nobody foresaw about one image costs its row, never the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fiqa_trt.cli import group
from fiqa_trt.decoding.base import Decoded
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.engines.base import Engine
from fiqa_trt.errors import FiqaError, RunError
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.inputs.source import Source
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.pipeline import decode_all
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scorer import Scorer
from tests.helpers import jpeg

BAD = b"what makes this decoder stumble"
GOOD = b"what does not"


class Stumbling:
    """Raises for a whole batch if one of its images has certain bytes, as a library's batch decoder does."""

    name, max_pixels, threads = "stumbling", 64, 1

    def __init__(self, error: BaseException, most: int = 1 << 30) -> None:
        self.error = error
        self.most = most
        self._cpu = CpuDecoder()

    def decode(self, blobs: Sequence[bytes | ImageError], batch: int) -> Decoded:
        if BAD in blobs or sum(isinstance(blob, bytes) for blob in blobs) > self.most:
            raise self.error
        return self._cpu.decode(blobs, batch)


@given(
    st.lists(st.sampled_from([GOOD, BAD, ImageError(Status.MISSING, "gone")]), min_size=1, max_size=8),
    st.sampled_from([ValueError("x"), OverflowError(), KeyError(1), RecursionError(), SystemError("\udcff\n")]),
)
def test_only_the_culprits_get_such_a_row(blobs: list[bytes | ImageError], error: Exception) -> None:
    outcomes = decode_all(Stumbling(error), blobs, 8).outcomes
    assert len(outcomes) == len(blobs)
    for blob, outcome in zip(blobs, outcomes, strict=True):
        if blob == BAD:
            assert outcome.status is Status.CORRUPT
            assert (outcome.error or "").startswith(f"unforeseen {type(error).__name__}:")
        else:
            assert outcome.status is (Status.NOT_AN_IMAGE if blob == GOOD else Status.MISSING)


def test_a_device_that_fails_ends_the_run() -> None:
    with pytest.raises(RunError, match="no GPU any more"):
        decode_all(Stumbling(RunError("no GPU any more")), [GOOD, BAD], 2)
    with pytest.raises(FiqaError, match="stumbling failed on a batch: MemoryError"):
        decode_all(Stumbling(MemoryError(), most=1), [GOOD, GOOD], 2)


@pytest.fixture
def stumble(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder of every run is one of these."""
    monkeypatch.setattr(
        "fiqa_trt.executors.in_process.open_decoder", lambda *_: Stumbling(OverflowError("no such size"))
    )
    monkeypatch.setattr("fiqa_trt.scorer.open_decoder", lambda *_: Stumbling(OverflowError("no such size")))


@pytest.fixture
def folder(crops: Path) -> Path:
    (crops / "bad.jpg").write_bytes(BAD)
    return crops


def test_a_run_goes_on(folder: Path, tmp_path: Path, mean_engine: Callable[[], Engine]) -> None:
    output = tmp_path / "s.parquet"
    decoder = Stumbling(OverflowError("no such size"))
    summary = score_dataset(Source((str(folder),)), output, lambda: InProcess(mean_engine(), decoder))
    rows = {Path(row["path"]).name: row for row in pq.read_table(output).to_pylist()}
    assert (rows["bad.jpg"]["status"], rows["bad.jpg"]["error"]) == (
        "corrupt",
        "unforeseen OverflowError: no such size",
    )
    assert summary.statuses == {"ok": 10, "corrupt": 1}
    assert summary.unforeseen == 1


@pytest.mark.slow
@pytest.mark.usefixtures("stumble")
def test_the_command_says_so(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(group, ["score", str(folder), "-o", str(tmp_path / "s.parquet"), "--device", "cpu"])
    assert result.exit_code == 0
    assert "1 of the errors should not occur" in result.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("stumble")
def test_a_scorer_goes_on(portrait: object) -> None:
    with Scorer("cpu", "fp32") as scorer:
        bad, good = scorer.score([BAD, jpeg(portrait)])  # type: ignore[arg-type]
    assert (bad.status, good.status) == ("corrupt", "ok")
