"""`fiqa-trt bench`: what it measures, says, writes and compares."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from fiqa_trt.cli import group
from fiqa_trt.cli.bench import describe, describe_latency
from fiqa_trt.errors import InputError, OutputError, RunError, UsageError
from fiqa_trt.machine.benchmark import STAGES, Benchmark, Usage, bound_of, generate
from fiqa_trt.machine.latency import measure_latency

RESULT = Benchmark(
    "1", "2026-01-01", "x", 100, {"backend": "b", "device": "d", "precision": "fp16", "executed": "bf16", "batch": 8},
    "cpu", {"list": 1000.0, "read": 500.0, "decode": 200.0, "engine": 100.0}, True, 55.0, 50.0, 1.9, None,
    "build an engine (fiqa-trt build)",
)  # fmt: skip


def test_bound() -> None:
    assert bound_of({"a": 10, "b": 15}, shared=True) == pytest.approx(6)
    assert bound_of({"a": 10, "b": 15}, shared=False) == 10


def test_words() -> None:
    assert "slowest stage is engine (100 images/s)" in describe(RESULT)
    assert "91% of the bound" in describe(RESULT)
    stages = {**RESULT.stages, "engine": 9000.0}
    gpu = dataclasses.replace(RESULT, stages=stages, shared=False, gpu=Usage(0.5, 300.0, 2000))
    assert "slowest stage is decode" in describe(gpu)
    assert "GPU: 50% busy, 300 W, 2,000 MiB" in describe(gpu)
    table = describe(RESULT, {"engine": 50.0})
    assert "2.00" in next(line for line in table.splitlines() if line.startswith("engine"))


@pytest.mark.slow
def test_generated_crops(tmp_path: Path) -> None:
    generate(tmp_path / "a", 1200, 112)
    files = sorted((tmp_path / "a").rglob("*.jpg"))
    assert len(files) == 1200
    assert len({file.read_bytes() for file in files}) == 256
    with Image.open(files[0]) as image:
        assert image.size == (112, 112)
    generate(tmp_path / "b", 1, 112)
    assert next((tmp_path / "b").rglob("*.jpg")).read_bytes() == files[0].read_bytes()


@pytest.mark.slow
def test_a_whole_benchmark(crops: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    arguments = ["bench", str(crops), "--device", "cpu", "--precision", "fp32", "-q", "-o", str(output)]
    done = CliRunner().invoke(group, [*arguments, "--json"], catch_exceptions=False)
    facts = json.loads(done.stdout)
    assert facts == json.loads(output.read_text())
    assert set(facts["stages"]) == set(STAGES)
    assert facts["bound"] <= min(facts["stages"].values())
    assert facts["images"] == 10
    assert facts["gpu"] is None
    done = CliRunner().invoke(group, [*arguments[:-2], "--compare", str(output)], catch_exceptions=False)
    assert "before" in done.stdout
    assert "end to end is" in done.stdout


@pytest.mark.slow
def test_wrong_use(crops: Path, tmp_path: Path) -> None:
    def call(*arguments: object) -> None:
        CliRunner().invoke(group, ["bench", *map(str, arguments)], catch_exceptions=False, standalone_mode=False)

    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "bad.jpg").write_text("x")
    with pytest.raises(InputError, match="--compare"):
        call(crops, "--compare", tmp_path / "bad.json")
    with pytest.raises(OutputError, match="does not exist"):
        call(crops, "-o", tmp_path / "gone" / "r.json")
    with pytest.raises(InputError, match="No such file"):
        call(tmp_path / "gone")
    with pytest.raises(InputError, match="nothing to measure"):
        call(tmp_path / "bad.jpg", "--device", "cpu")


@pytest.mark.slow
def test_latency(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (crops / "a" / "bad.jpg").write_bytes(b"x")
    monkeypatch.setattr("fiqa_trt.machine.latency.measure_latency", functools.partial(measure_latency, seconds=0.2))
    arguments = ["bench", str(crops), "--device", "cpu", "--precision", "fp32", "--latency", "-q"]
    output = tmp_path / "r.json"
    done = CliRunner().invoke(group, [*arguments, "-o", str(output), "--json"], catch_exceptions=False)
    facts = json.loads(done.stdout)
    assert facts == json.loads(output.read_text())
    assert facts["images"] == 10
    assert [row["threads"] for row in facts["latency"]] == [1, 16]
    for row in facts["latency"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["calls"] >= row["threads"]
    table = describe_latency(facts).splitlines()
    assert [line.split()[0] for line in table[-2:]] == ["1", "16"]
    with pytest.raises(UsageError, match="leave one out"):
        CliRunner().invoke(group, [*arguments, "--compare", str(output)], catch_exceptions=False, standalone_mode=False)


def test_latency_that_fails_is_an_error() -> None:
    class Failing:
        def score(self, items: list[bytes]) -> list[object]:
            if threading.current_thread().name.startswith("latency"):
                raise RunError("the engine failed")
            return []

    with pytest.raises(RunError, match="the engine failed"):
        measure_latency(Failing(), [b""], 3, 0.1)  # type: ignore[arg-type]
