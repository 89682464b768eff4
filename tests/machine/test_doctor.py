"""`fiqa-trt doctor`: what works here, and commands that mend the rest."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiqa_trt.machine import doctor
from tests.helpers import invoke


@pytest.mark.slow
def test_doctor_says_what_works_and_mends_the_rest() -> None:
    report = json.loads(invoke("doctor", "--json").stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["CPU engine (OpenVINO)"]["works"]
    assert checks["CPU decoder (Pillow, libjpeg-turbo)"]["works"]
    assert checks["PyTorch engine"]["works"]
    assert checks["CUDA in PyTorch"]["works"] == torch.cuda.is_available()
    for check in report["checks"]:
        assert check["detail"]
        assert bool(check["remedy"]) != check["works"], check
    assert report["versions"]["openvino"]
    text = invoke("doctor").stdout
    assert "yes  CPU engine" in text
    for check in report["checks"]:
        assert check["works"] or f"-> {check['remedy']}" in text
    remedies = [line for line in text.splitlines() if "->" in line]
    assert len(remedies) == len(set(remedies))  # what one command mends stands together
    if not report["gpus"]:
        assert sum("TensorRT" in line for line in text.splitlines() if line.startswith("no")) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("has_gpu", [False, True])
def test_commands_of_doctor_can_be_pasted(has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [doctor.Gpu("H100", 80, "570")] if has_gpu else []
    monkeypatch.setattr(doctor, "_gpus", lambda: (gpus, doctor.Check("GPU readings", True, "")))
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    checks = {check.name: check for check in doctor.examine().checks}
    for check in checks.values():
        words = shlex.split(check.remedy) if check.remedy.startswith("pip") else ["pip", "install", "x"]
        assert words[:2] == ["pip", "install"]
        assert len([word for word in words[2:] if not word.startswith("--")]) == 1, check
        assert "pip install" not in check.detail  # once is enough
    modelopt = checks["INT8 on a GPU (modelopt)"].remedy
    assert modelopt == ("pip install 'nvidia-modelopt[hf]'" if has_gpu else "needs an NVIDIA GPU")


@pytest.mark.slow
def test_doctor_names_the_right_extra_and_an_unwritable_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("FIQA_TRT_CACHE", str(tmp_path / "file" / "cache"))
        (tmp_path / "file").write_text("")
        patch.setattr("importlib.util.find_spec", lambda name, *_: None)
        checks = {check.name: check for check in doctor.examine().checks}
    cache = checks["cache of compiled networks"]
    assert not cache.works
    assert str(tmp_path / "file" / "cache") in cache.detail
    assert "FIQA_TRT_CACHE" in cache.remedy
    for name, extra in (
        ("export (onnxscript)", "build"),
        ("training (matplotlib)", "train"),
        ("eval (scipy)", "train"),
    ):
        assert checks[name].remedy == f"pip install 'fiqa-trt[{extra}]'"
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for check in checks.values():  # whatever is recommended exists
        assert all(f"\n{name} = [" in project for name in re.findall(r"fiqa-trt\[(\w+)\]", check.remedy))


@pytest.mark.slow
@given(st.text(), st.integers(0, 400))
def test_doctor_cuts_no_word(text: str, words: int) -> None:
    said = doctor._reason(RuntimeError(f"{text} " + "word " * words))
    assert len(said) <= 160
    whole = " ".join(f"{text} {'word ' * words}".split())
    assert said == whole or said.endswith(" ...") or not whole or len(text) > 150
    assert said.removesuffix(" ...") in whole or not whole
