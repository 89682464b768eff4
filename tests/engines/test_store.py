"""Engine directories: what is written, read, refused, listed and chosen. No engine runs here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from pathlib import Path

import pytest

from fiqa_trt.engines.base import EngineInfo
from fiqa_trt.engines.manifest import MANIFEST, Manifest, Target, new_engine, this_processor
from fiqa_trt.engines.opening import RELEASED
from fiqa_trt.engines.store import best_engine, how_to_speed_up, list_engines
from fiqa_trt.errors import EngineError, RunError
from tests.helpers import MODEL, PAYLOAD, manifest, put


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = manifest(reference=((0.25, 0.5), (0.125, 1.0)))
    folder = put(tmp_path / "deep" / "e", made)
    assert Manifest.read(folder) == made
    assert made.read_payload(folder) == PAYLOAD
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "network.zip"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["e"]


def test_an_engine_is_replaced_whole(tmp_path: Path) -> None:
    folder = put(tmp_path / "e", manifest(rate=1))
    put(folder, manifest(rate=2, payload="other.bin", payload_sha256=hashlib.sha256(b"x").hexdigest()), b"x")
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "other.bin"]
    assert Manifest.read(folder).throughput == 2


def test_a_build_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    folder = put(tmp_path / "e", manifest(rate=1))
    with pytest.raises(EngineError, match="out of tolerance"), new_engine(folder) as draft:
        draft.write(manifest(rate=2), PAYLOAD)
        raise EngineError("out of tolerance")
    assert Manifest.read(folder).throughput == 1
    with pytest.raises(EngineError), new_engine(tmp_path / "new"):
        raise EngineError("out of tolerance")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_nothing_but_an_engine_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").touch()
    (tmp_path / "file").touch()
    put(tmp_path / "e", manifest())
    (tmp_path / "e" / "notes.txt").touch()
    for name in ("mine", "file", "e"):
        with pytest.raises(EngineError, match="choose another -o"), new_engine(tmp_path / name):
            pytest.fail("begun")
    assert (tmp_path / "mine" / "photo.jpg").exists()
    (tmp_path / "empty").mkdir()
    put(tmp_path / "empty", manifest())


@pytest.mark.parametrize("text", ["{", '{"format": 1}'])
def test_a_damaged_or_old_engine_can_be_built_again(tmp_path: Path, text: str) -> None:
    folder = put(tmp_path / "e", manifest())
    (folder / MANIFEST).write_text(text)
    put(folder, manifest())
    assert Manifest.read(folder) == manifest()
    (folder / "network.zip").unlink()
    put(folder, manifest())
    assert manifest().read_payload(folder) == PAYLOAD


def test_two_builds_at_once_do_not_harm_each_other(tmp_path: Path) -> None:
    errors = list[BaseException]()
    barrier = threading.Barrier(8, timeout=60)

    def make(rate: int) -> None:
        try:
            with new_engine(tmp_path / "e") as draft:
                draft.write(manifest(rate=rate), PAYLOAD)
                barrier.wait()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=make, args=(rate,)) for rate in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert Manifest.read(tmp_path / "e").read_payload(tmp_path / "e") == PAYLOAD
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fiqa_trt.storage.writing.os.fsync", full)
    with pytest.raises(RunError, match="no space left"):
        put(tmp_path / "e", manifest())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", "null", '{"format": 2}', '{"format": 1}', "[" * 100_000], ids=lambda text: text[:15]
)
def test_a_foreign_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(EngineError, match=r"not an engine directory|another version"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "magic"},
        {"payload": "../../etc/passwd"},
        {"batch": [1, 2]},
        {"target": {}},
        {"extra": 1},
        {"model": None},
        {"throughput": "fast"},
        {"gain": [1]},
        {"verified": "no"},
        {"batch": ["a", 2, 3]},
        {"batch": [8, 4, 2]},
        {"target": {"kind": "cuda", "name": "", "features": [86]}},
        {"reference": [[0.5]]},
    ],
    ids=str,
)
def test_a_manifest_that_cannot_be_ours(tmp_path: Path, change: dict[str, object]) -> None:
    values = {**json.loads(manifest().dump()), **change}
    (tmp_path / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(EngineError, match="not an engine directory"):
        Manifest.read(tmp_path)


def test_a_damaged_payload(tmp_path: Path) -> None:
    made = manifest()
    folder = put(tmp_path / "e", made)
    (folder / "network.zip").write_bytes(PAYLOAD[:-1])
    with pytest.raises(EngineError, match=r"is damaged.*fiqa-trt build"):
        made.read_payload(folder)
    (folder / "network.zip").unlink()
    with pytest.raises(EngineError, match="is missing"):
        made.read_payload(folder)


def test_the_list_says_what_can_be_used(tmp_path: Path) -> None:
    put(tmp_path / "good", manifest())
    put(tmp_path / "other-model", manifest(model="b" * 64))
    put(tmp_path / "other-cpu", manifest(target=Target("cpu", "Z80", ())))
    put(tmp_path / "gpu", manifest(backend="tensorrt", target=Target("cuda", "H100", ("sm_90",))))
    put(tmp_path / "onnx", manifest(backend="onnx"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / MANIFEST).write_text("{")
    (tmp_path / ".draft.x").mkdir()
    (tmp_path / ".draft.x" / MANIFEST).write_text("{")
    (tmp_path / "folder").mkdir()
    problems = {entry.folder.name: entry.problem for entry in list_engines(tmp_path, MODEL)}
    assert list(problems) == ["broken", "good", "gpu", "onnx", "other-cpu", "other-model"]
    assert problems["good"] is None
    assert "of another checkpoint (bbbb" in str(problems["other-model"])
    assert f"built on Z80, this is {this_processor()}" in str(problems["other-cpu"])
    assert "GPU" in str(problems["gpu"])
    assert "--engine DIR" in str(problems["onnx"])
    assert "not an engine directory" in str(problems["broken"])
    assert list_engines(tmp_path / "none", MODEL) == []
    assert "gpu" not in {entry.folder.name for entry in list_engines(tmp_path, MODEL, None)}


@pytest.mark.slow
def test_auto_takes_the_quickest(tmp_path: Path) -> None:
    def best(precision: str = "auto") -> str | None:
        found = best_engine(list_engines(tmp_path, MODEL), "cpu", precision)
        return found.folder.name if found else None

    assert best() is None
    put(tmp_path / "int8", manifest("int8", 300))
    assert best() is None  # nothing says that it is quicker than FP16
    assert best("int8") == "int8"
    put(tmp_path / "fp32", manifest("fp32", 250))
    assert best() == "fp32"  # as before: this processor has BF16, in which it may be quicker
    put(tmp_path / "fp16", manifest("fp16", 200))
    assert best() == "int8"
    put(tmp_path / "fp16", manifest("fp16", 300))
    assert best() == "fp16"  # equally quick, more precise
    put(tmp_path / "fp32", manifest("fp32", 900))
    assert best() == "fp32"
    assert best("fp16") == "fp16"
    put(tmp_path / "foreign", manifest("fp16", 9999, model="b" * 64))
    assert best() == "fp32"
    # Timed on different days: what counts is the gain, where all record it.
    put(tmp_path / "fp32", manifest("fp32", 900, gain=1.0))
    put(tmp_path / "int8", manifest("int8", 300, gain=1.5))
    put(tmp_path / "fp16", manifest("fp16", 100, gain=1.4))
    assert best() == "int8"
    put(tmp_path / "fp16", manifest("fp16", 100, gain=1.45))
    assert best() == "fp16"  # as quick, but for noise
    for name in ("fp32", "fp16", "int8"):
        put(tmp_path / name, manifest(name, 900, gain=0.9))
    assert best() is None  # slower than what runs without any
    assert best("int8") == "int8"
    assert best_engine(list_engines(tmp_path, MODEL), "cuda") is None


def test_what_would_be_quicker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIQA_TRT_ENGINES", str(tmp_path))
    plain = EngineInfo("openvino 1", "x", "fp32", "fp32", 8, MODEL, ("a", "b"), "f" * 64)
    wanted = ("fp16", "int8")

    def said(info: EngineInfo = plain) -> str:
        return how_to_speed_up(info, "cpu", wanted)

    both = "fiqa-trt build --precision fp16 --device cpu; fiqa-trt build --precision int8 --device cpu"
    assert said() == f"build what may be quicker ({both})"
    put(tmp_path / "fp16", manifest("fp16", gain=1.5))
    assert said() == f"take the engine {tmp_path}/fp16 (1.50 times the speed without it)"
    ours = dataclasses.replace(plain, payload=hashlib.sha256(PAYLOAD).hexdigest())
    assert said(ours) == "build what may be quicker (fiqa-trt build --precision int8 --device cpu)"
    put(tmp_path / "int8", manifest("int8", gain=0.7, payload_sha256="e" * 64))
    assert "int8" not in said(ours)  # it is there, and slower
    assert "are there" in said(ours)
    assert how_to_speed_up(plain, "cuda", ("fp16",)) == "build what may be quicker (fiqa-trt build --precision fp16)"


def test_the_released_directory_is_an_engine() -> None:
    released = Manifest.read(RELEASED)
    assert released.backend == "onnx"
    assert len(released.reference) == 64
    assert hashlib.sha256((RELEASED / "ensemble.safetensors").read_bytes()).hexdigest() == released.model
    released.read_payload(RELEASED)
