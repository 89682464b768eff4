"""The scripts that are run when a GPU is at hand, without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_sweep, gpu_validation
from benchmarks.gpu_validation import UNFINISHED, main


class DriverError(Exception):
    """As NVML's are, neither ours nor a RuntimeError."""


@pytest.mark.slow
def test_every_section_runs_with_stand_ins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "found.json"
    assert main(["--dry", "-o", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["skipped"] == {}
    assert list(found["sections"]) == list(gpu_validation.sections_of(gpu_validation.Dry(), tmp_path))
    assert found["sections"]["decoders"]["same_outcomes"]
    assert found["sections"]["torch fp32, CUDA graphs"]["agreement"]["max"] < 1e-5
    assert capsys.readouterr().out.endswith("left: nothing\n")


@pytest.mark.slow
def test_the_knobs_are_turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_sweep, "DISTINCT", 8)
    monkeypatch.setattr(gpu_sweep, "PROCESSES", ())  # they are those of `--devices`, and take long to start
    monkeypatch.setattr(gpu_sweep, "turns", lambda: [{}, {"threads": 1, "hardware": 0.0}])
    output = tmp_path / "found.json"
    assert gpu_sweep.main(["--dry", "-o", str(output), "--images", "8", "--decoded", "16", "--sizes", "112"]) == 0
    found = json.loads(output.read_text())
    rates = [figure["images_per_s"] for name in found if name.endswith(" px") for figure in found[name].values()]
    assert len(rates) == 4 + 2
    assert all(rate > 0 for rate in rates)


def test_a_section_that_fails_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, ran = tmp_path / "found.json", list[str]()

    def fails() -> dict[str, Any]:
        ran.append("fails")
        raise DriverError("Not Supported")

    def dies() -> dict[str, Any]:
        assert json.loads(output.read_text())["skipped"]["dies"] == UNFINISHED
        raise SystemExit

    def works() -> dict[str, Any]:
        ran.append("works")
        return {"path": tmp_path}

    sections = {"fails": fails, "dies": dies, "works": works, "works too": works}
    monkeypatch.setattr(gpu_validation, "sections_of", lambda bench, root: sections)
    command = ["--dry", "-o", str(output)]
    with pytest.raises(SystemExit):
        main(command)
    assert main([*command, "--minutes", "0"]) == 0
    assert "left: works; works too\n" in capsys.readouterr().out
    assert main(command) == 0  # goes on after what took the process with it
    assert ran == ["fails", "works", "works"]
    found = json.loads(output.read_text())
    assert found["skipped"] == {"fails": "DriverError: Not Supported", "dies": UNFINISHED}
    assert found["sections"]["works"]["path"] == str(tmp_path)
    assert main([*command, "--only", "works"]) == 0
    assert ran == ["fails"] + 4 * ["works"]
    sections["fails"] = works
    assert main([*command, "--only", "fails"]) == 0
    assert list(json.loads(output.read_text())["skipped"]) == ["dies"]
    with pytest.raises(SystemExit):
        main([*command, "--only", "nothing"])
    assert "there are fails; dies; works" in capsys.readouterr().err


def test_what_a_gpu_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = pytest.importorskip("pynvml")

    def unsupported(*_: object) -> None:
        raise DriverError("Not Supported")

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    for name in ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName", "nvmlSystemGetDriverVersion"):
        monkeypatch.setattr(pynvml, name, lambda *_: "a GPU")
    for name in ("MemoryInfo", "ClockInfo", "MaxClockInfo", "PowerUsage", "EnforcedPowerLimit"):
        monkeypatch.setattr(pynvml, f"nvmlDeviceGet{name}", unsupported)
    found = gpu_validation.gpu()
    assert found["name"] == "a GPU"
    assert found["power_w"] == "Not Supported"
    monkeypatch.setattr(pynvml, "nvmlInit", unsupported)
    assert gpu_validation.gpu() == {"nvml": "Not Supported"}
