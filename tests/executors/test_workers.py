"""Several processes on CPU workers: the same output as one, whoever dies; and what is refused."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fiqa_trt.errors import EngineError, RunError
from fiqa_trt.executors.attempts import Dispatch
from fiqa_trt.executors.base import Executor, Setup
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.executors.processes import Processes, Worker, parse_devices
from fiqa_trt.executors.registry import EXECUTORS, open_executor
from fiqa_trt.inputs.source import Source
from fiqa_trt.progress import Count
from fiqa_trt.runs.run import Options, Summary
from fiqa_trt.runs.score import score_dataset
from tests.helpers import call

SETUP = Setup(device="cpu", precision="fp32", batch=4)
UNIT = 8


def score(folder: Path, output: Path, opened: Callable[[], Executor], say: Callable[[str], None] = print) -> Summary:
    return score_dataset(Source((str(folder),)), output, opened, Options(unit_rows=UNIT), say=say)


def processes(devices: str = "cpu,cpu", **options: object) -> Processes:
    return Processes(parse_devices(devices), SETUP, **options)  # type: ignore[arg-type]


@pytest.fixture
def many(tmp_path: Path, crops: Path) -> Path:
    """Six hundred links to ten crops, and a bad file in the middle."""
    folder = tmp_path / "many"
    folder.mkdir()
    files = sorted(crops.rglob("*.jpg"))
    for index in range(600):
        os.link(files[index % 10], folder / f"{index:05}.jpg")
    (folder / "00300.jpg").unlink()
    (folder / "00300.jpg").write_bytes(b"x")
    return folder


@pytest.mark.slow
def test_the_output_is_that_of_one_process(many: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    score(many, one, lambda: InProcess.open(SETUP))
    summary = score(many, two, processes)
    assert summary.statuses == {"ok": 599, "not_an_image": 1}
    assert pq.read_table(one).equals(pq.read_table(two))
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "kind"), [(None, InProcess), ("cpu", Processes)])
def test_what_is_asked_for_is_opened(devices: str | None, kind: type) -> None:
    said = list[str]()
    executor = open_executor(SETUP, said.append, devices=devices)
    executor.close()
    assert type(executor) is kind
    place = devices or executor.info.device
    assert said[-1].endswith(f" on {place}, fp32 (run as fp32), batch 4; decoder: {executor.decoder}")


def test_every_executor_can_be_opened() -> None:
    assert all(callable(importlib.import_module(module).opened) for module in EXECUTORS.values())


@pytest.mark.slow
@pytest.mark.parametrize("victims", [1, 2])
def test_killed_workers(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victims: int) -> None:
    expected, output = tmp_path / "expected.parquet", tmp_path / "s.parquet"
    score(many, expected, lambda: InProcess.open(SETUP))
    said = list[str]()
    workers = processes(say=said.append)
    doomed = [worker.process.pid for worker in workers._workers[:victims]]
    parts = tmp_path / "s.parquet.partial" / "parts"
    hear = workers._hear

    def kill_after_five_units(worker: Worker, dispatch: Dispatch, report: Count) -> None:
        """In the parent, so that none is too late."""
        hear(worker, dispatch, report)
        while doomed and len(list(parts.glob("0*.parquet"))) >= 5:
            pid = doomed.pop()
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(workers, "_hear", kill_after_five_units)
    if victims == 1:
        score(many, output, lambda: workers, said.append)
        assert any("was killed by SIGKILL; its units go to the others" in line for line in said)
    else:
        with pytest.raises(
            RunError, match=r"the last one, was killed by SIGKILL; run the same command again to resume"
        ):
            score(many, output, lambda: workers, said.append)
        assert not output.exists()
        assert score(many, output, processes).scored_now < 600
    assert pq.read_table(output).equals(pq.read_table(expected))


@pytest.mark.slow
@pytest.mark.parametrize("victims", [1, 2])
def test_workers_killed_while_they_start(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victims: int
) -> None:
    said, opened = list[str](), Processes._opened

    def killed(workers: Processes, worker: Worker) -> object:
        if workers._workers.index(worker) == 0 and len(workers._workers) > 2 - victims:
            worker.process.kill()
        return opened(workers, worker)

    monkeypatch.setattr(Processes, "_opened", killed)
    if victims == 1:
        summary = score(many, tmp_path / "s.parquet", lambda: processes(say=said.append))
        assert summary.statuses == {"ok": 599, "not_an_image": 1}
        assert "the process for cpu was killed by SIGKILL while it started; its units go to the others" in said
    else:
        with pytest.raises(RunError, match=r"the last one, was killed by SIGKILL while it started; run the same"):
            processes(say=said.append)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_small_units_do_not_wait_for_each_other(crops: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.parquet"
    workers = Processes(["cpu", "cpu"], SETUP)
    summary = score_dataset(Source((str(crops),)), output, lambda: workers, Options(unit_rows=1))
    assert summary.statuses == {"ok": 10}


@pytest.mark.slow
def test_a_full_disk_ends_all_of_them(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "s.parquet"
    workers = processes()
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        found = real(path, target)
        if Path(target).name == "run.json":
            (Path(target).parent / "parts").rmdir()  # nothing can be written there any more
        return found

    with monkeypatch.context() as patch, pytest.raises(RunError, match="run the same command again"):
        patch.setattr(Path, "replace", replace)
        score(many, output, lambda: workers)
    assert score(many, output, processes).images == 600


def test_devices() -> None:
    assert parse_devices("0,1") == ["cuda:0", "cuda:1"]
    assert parse_devices("cuda:3, 0") == ["cuda:3", "cuda:0"]
    assert parse_devices("cpu,cpu") == ["cpu", "cpu"]
    assert parse_devices("0,0,1") == ["cuda:0", "cuda:0", "cuda:1"]
    for wrong in ("", "gpu", "1,", "cuda", "-1", "²"):
        with pytest.raises(EngineError, match="--devices"):
            parse_devices(wrong)


@pytest.mark.slow
def test_devices_that_cannot_be_used(tmp_path: Path) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineError, match="no GPU"):
        parse_devices("all")
    with pytest.raises(EngineError, match="cuda:0"):
        processes("cpu,0")
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_worker_that_dies_at_its_start(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such directory"):
        Processes(["cpu", "cpu"], Setup(engine=str(tmp_path / "gone")))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_the_command(crops: Path, tmp_path: Path) -> None:
    done = call(
        "score", crops, "-o", tmp_path / "s.csv", "--devices", "cpu,cpu", "--decoder", "dali", "--unit-size", "3"
    )
    assert "on cpu,cpu" in done.stderr
    assert "decoder: dali (cpu)" in done.stderr
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 11
    assert (
        "give either --device or --devices"
        in call("score", crops, "-o", tmp_path / "t.csv", "--devices", "0", "--device", "cpu", code=2).stderr
    )
