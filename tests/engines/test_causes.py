"""Causes by every engine that runs here: as FP32 has them, checked when it is built and when it is opened."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fiqa_trt.building import build
from fiqa_trt.building.calibration import ranges_file
from fiqa_trt.building.export import export
from fiqa_trt.building.quantize import Ranges
from fiqa_trt.building.request import Request
from fiqa_trt.building.verify import verify
from fiqa_trt.engines.known import agreement, difference, judge
from fiqa_trt.engines.manifest import Manifest, digest_of
from fiqa_trt.engines.opening import open_engine
from fiqa_trt.engines.openvino import OpenVinoEngine
from fiqa_trt.engines.torch import open_torch
from fiqa_trt.errors import EngineError
from fiqa_trt.models.causes import Causes
from fiqa_trt.models.verification import Fidelity, check, compare, verification_batch
from fiqa_trt.scorer import Scorer
from tests.helpers import TOLD, manifest

pytest.importorskip("torch")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_the_exported_network_gives_what_pytorch_gives(telling: Path, precision: str) -> None:
    known = Manifest.read(telling / "onnx")
    assert known.spec.causes == TOLD
    engine = OpenVinoEngine(telling / "onnx", precision)
    found = judge(engine, verification_batch())
    assert found.causes.shape == (64, len(TOLD))
    assert found.causes.std(axis=0).min() > 0.01  # so that an exchange would be seen
    check(agreement(found, known.known), engine.info.precision, "it")
    assert difference(engine, known) is None
    other = np.array(known.severities)[:, ::-1]
    changed = dataclasses.replace(known, severities=tuple(map(tuple, other.tolist())))
    assert "a cause of a known crop differs by 0." in str(difference(engine, changed))
    for told in (TOLD.names[:3], (*TOLD.names, "hat"), ()):
        rows = tuple((*row, 0.5)[: len(told)] for row in known.severities) if told else ()
        spec = dataclasses.replace(known.spec, causes=Causes.untuned(told))
        changed = dataclasses.replace(known, spec=spec, severities=rows)
        assert difference(engine, changed) == f"it tells of 4 causes, not of {len(told)}"
    engine.close()
    eager = open_torch(telling / "ensemble.safetensors")
    assert eager.info.causes == TOLD
    assert np.abs(judge(eager, verification_batch()).causes - np.array(known.severities)).max() < 1e-5
    eager.close()


@pytest.fixture
def int8_ranges(telling: Path, tmp_path: Path) -> Path:
    """The shipped ranges, which serve the same networks with other heads as well."""
    ranges = dataclasses.replace(Ranges.read(ranges_file()), model=digest_of(telling / "ensemble.safetensors"))
    ranges.write(tmp_path / "ranges.json")
    return tmp_path / "ranges.json"


@pytest.mark.slow
def test_a_built_engine_was_verified(telling: Path, tmp_path: Path, int8_ranges: Path) -> None:
    checkpoint, output = telling / "ensemble.safetensors", tmp_path / "engine"
    made = build(Request("int8", checkpoint, "cpu", max_batch=4, calibration=int8_ranges, output=output)).manifest
    assert made.spec.causes == TOLD
    assert 0 <= made.agreement["causes_mean"] <= made.agreement["causes_max"] < 0.2
    assert Manifest.read(output) == made
    assert verify(output, lambda line: None)[0].causes_max == pytest.approx(0, abs=0.02)
    engine = open_engine(engine=str(output))
    assert (engine.info.causes, engine.info.precision) == (TOLD, "int8")
    engine.close()


@pytest.mark.slow
def test_an_int8_network_for_other_runtimes(telling: Path, tmp_path: Path, int8_ranges: Path) -> None:
    made = export(telling / "ensemble.safetensors", tmp_path / "int8", Ranges.read(int8_ranges))
    assert 0 < made.agreement["causes_mean"] < 0.04
    assert made.spec.causes == TOLD


def test_causes_have_a_tolerance_of_their_own() -> None:
    good = Fidelity(64, 0.001, 0.0001, 1.0, 0.01, 0.001)
    check(good, "fp16", "it")
    # BF16 of trained heads: a single severity may be off, all of them may not.
    check(dataclasses.replace(good, causes_max=0.084, causes_mean=0.003), "fp16", "it")
    for most, mean in ((0.25, 0.003), (0.1, 0.02)):
        with pytest.raises(EngineError, match=r"a fp16 engine needs .*causes max <= 0.2, causes mean <= 0.01"):
            check(dataclasses.replace(good, causes_max=most, causes_mean=mean), "fp16", "it")
    check(dataclasses.replace(good, causes_max=0.44, causes_mean=0.032), "int8", "it")
    with pytest.raises(EngineError, match="too far from FP32"):
        check(dataclasses.replace(good, causes_max=0.2, causes_mean=0.1), "int8", "it")
    scores, causes = np.full((3, 2), 0.5, np.float32), np.full((3, 4), 0.5, np.float32)
    assert "causes_max" not in compare(scores, scores).rounded()
    assert compare(scores, scores, causes, causes + 0.25).causes_max == pytest.approx(0.25)
    with pytest.raises(EngineError, match="not numbers"):
        compare(scores, scores, np.full((3, 4), np.nan, np.float32), causes)


def test_a_manifest_of_an_engine_without_them_is_what_it_was() -> None:
    assert "causes" not in manifest().dump()
    assert "severities" not in manifest().dump()


@pytest.mark.slow
def test_a_scorer_tells_of_them(telling: Path, crops: Path) -> None:
    paths = [str(path) for path in sorted(crops.rglob("*.jpg"))]
    with Scorer(engine=str(telling / "onnx")) as scorer:
        *good, bad = scorer.score([*paths, b""])
    assert (bad.causes, bad.cause) == ({}, None)
    for score in good:
        assert tuple(score.causes) == TOLD.names
        severities = np.array([list(score.causes.values())], np.float32)
        assert score.cause == TOLD.worst(severities)[0]
