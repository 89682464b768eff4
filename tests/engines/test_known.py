"""An engine that does not score as it should is not used: what a damaged cache or a wrong library would bring about."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiqa_trt.decoding.base import Images
from fiqa_trt.engines.base import Engine, Judged, Scores, finished
from fiqa_trt.engines.cache import Slot, cache_folder
from fiqa_trt.engines.known import difference, infer
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.engines.opening import RELEASED, check_known, open_engine
from fiqa_trt.engines.openvino import OpenVinoEngine
from fiqa_trt.errors import EngineError, RunError
from fiqa_trt.models.verification import KNOWN, known_crops, verification_batch
from tests.helpers import MeanEngine


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIQA_TRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.slow
def test_known_crops_are_of_the_verification_batch() -> None:
    assert np.array_equal(known_crops(), verification_batch()[list(KNOWN)])


class _Recorded(MeanEngine):
    """Says what its manifest says, but for one place of a batch in one slot, which `error` is added to."""

    slots = 2

    def __init__(self, batch: int, error: float, place: int) -> None:
        super().__init__(batch, causes=Manifest.read(RELEASED).spec.causes)
        self._error, self._place, self._calls = error, place, 0

    def submit(self, images: Images) -> Future[Judged]:
        self._calls += 1
        rows = [int(np.argmax([np.array_equal(crop, image) for crop in known_crops()])) for image in np.asarray(images)]
        known, places = Manifest.read(RELEASED).known, [KNOWN[row] for row in rows]
        scores, causes = known.scores[places], known.causes[places]
        if self._calls == 2:
            scores[self._place] += self._error
        return finished(scores, *([causes] if causes.size else []))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4, 13])
def test_every_place_and_slot_is_tried(batch: int) -> None:
    manifest = Manifest.read(RELEASED)
    for place in range(batch):
        for error, accepted in ((0.0, True), (5e-5, True), (0.01, False), (-0.3, False), (np.nan, False)):
            found = difference(_Recorded(batch, error, place), manifest)
            assert (found is None) == accepted, (place, error, found)
    with pytest.raises(EngineError, match="mean 1 on none does not score as it should: a known crop scores") as caught:
        check_known(lambda: (_Recorded(batch, 0.2, 0), manifest))
    assert "\n" not in str(caught.value)
    unknown = dataclasses.replace(manifest, reference=())
    assert difference(_Recorded(batch, 0.2, 0), unknown) is None


class _Failing(MeanEngine):
    def submit(self, images: Images) -> Future[Judged]:
        future: Future[Judged] = Future()
        future.set_exception(RunError("no kernel image"))
        return future


def test_an_engine_that_fails_at_once() -> None:
    with pytest.raises(EngineError, match="no kernel image"):
        check_known(lambda: (_Failing(), Manifest.read(RELEASED)))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_no_backend_escapes(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == "torch":
        pytest.importorskip("torch")
    shutil.copytree(RELEASED, tmp_path / "released")
    values = json.loads((RELEASED / "engine.json").read_text())
    values["reference"] = [[value / 2 for value in row] for row in values["reference"]]
    (tmp_path / "released" / "engine.json").write_text(json.dumps(values))
    monkeypatch.setattr("fiqa_trt.engines.opening.RELEASED", tmp_path / "released")
    with pytest.raises(EngineError, match="does not score as it should"):
        open_engine("cpu", engine=engine)
    if engine == "openvino":
        with pytest.raises(EngineError, match="does not score as it should"):
            open_engine(engine=str(tmp_path / "released"))


def _blobs(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def _scores(said: list[str]) -> Scores:
    engine = open_engine("cpu", "fp32", "openvino", 2, said.append)
    try:
        return infer(engine, known_crops())
    finally:
        engine.close()


@pytest.mark.slow
def test_a_cache_is_used(cache: Path, released: Engine) -> None:
    engine = OpenVinoEngine(RELEASED, "fp32", 2)
    assert engine.kept is None
    again = OpenVinoEngine(RELEASED, "fp32", 2)
    assert again.kept is not None
    assert [again.kept.path] == _blobs(cache)
    assert np.array_equal(infer(engine, known_crops()), infer(again, known_crops()))
    for other in (OpenVinoEngine(RELEASED, "fp32", 3), OpenVinoEngine(RELEASED, "auto", 2)):
        assert other.kept is None or other.info.precision == "fp32"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bytes, Scores]]:
    """A cache, its one file, and the scores of what is in it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("kept")
        patch.setenv("FIQA_TRT_CACHE", str(folder))
        expected = _scores([])
        (blob,) = _blobs(folder)
        yield blob, blob.read_bytes(), expected


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), length=st.sampled_from([1, 64, 65536]), cut=st.booleans(), value=st.integers(0, 255))
def test_no_damage_to_the_cache_changes_a_score(
    kept: tuple[Path, bytes, Scores], monkeypatch: pytest.MonkeyPatch, at: float, length: int, cut: bool, value: int
) -> None:
    blob, content, expected = kept
    monkeypatch.setenv("FIQA_TRT_CACHE", str(blob.parents[1]))
    start = round(at * (len(content) - 1))
    damaged = content[:start] if cut else content[:start] + bytes([value]) * length + content[start + length :]
    blob.write_bytes(damaged)
    said = list[str]()
    assert np.array_equal(_scores(said), expected)
    assert len(said) == (damaged != content)
    assert all("is damaged: the network is compiled anew" in line for line in said)
    assert blob.read_bytes() == content or Slot.read(_slot_of(blob)) is not None


def _slot_of(path: Path) -> Slot:
    slot = Slot(path.parent, {})
    slot.path = path
    return slot


@pytest.mark.slow
def test_a_wrong_network_of_a_right_digest(cache: Path) -> None:
    """What a broken memory would have written: the blob is whole, and its scores are wrong."""
    expected = _scores([])
    (blob,) = _blobs(cache)
    slot = _slot_of(blob)
    content = bytearray(slot.read() or b"")
    content[len(content) // 2 : len(content) // 2 + 65536] = bytes(65536)
    slot.write(bytes(content))
    said = list[str]()
    assert np.array_equal(_scores(said), expected)
    assert len(said) == 1
    assert "compiled anew" in said[0]
    assert _scores(said) is not None
    assert len(said) == 1
    slot.write(b"not a network at all")
    assert np.array_equal(_scores(said), expected)
    assert "OpenVINO cannot load" in said[1]


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "loop", "nowhere"])
def test_what_is_no_file_is_not_read(what: str, cache: Path) -> None:
    slot = Slot(cache, {})
    cache.mkdir()
    if what == "pipe":
        os.mkfifo(slot.path)
    elif what == "folder":
        slot.path.mkdir()
    else:
        slot.path.symlink_to({"device": "/dev/zero", "loop": slot.path.name, "nowhere": "nowhere"}[what])
    assert slot.read() is None
    slot.write(b"network")
    assert slot.read() == (None if what == "folder" else b"network")


@pytest.mark.slow
def test_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FIQA_TRT_CACHE", str(tmp_path / "file" / "below"))
    assert cache_folder() is None
    assert len(_scores([])) == len(KNOWN)

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("FIQA_TRT_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr(Path, "write_bytes", full)
    assert len(_scores([])) == len(KNOWN)
    assert not _blobs(tmp_path / "full")


def _write(slot: Slot, letter: bytes) -> None:
    for _ in range(100):
        slot.write(letter * 500_000)


@pytest.mark.slow
def test_several_processes_write_at_once(tmp_path: Path) -> None:
    slot = Slot(tmp_path, {"a": 1})
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(slot, letter)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    seen = set[bytes | None]()
    while any(writer.is_alive() for writer in writers):
        blob = slot.read()
        seen.add(blob and blob[:1] + blob[-1:])
    assert seen <= {None, b"aa", b"bb"}
    assert all(writer.exitcode == 0 for writer in writers)
    assert _blobs(tmp_path) == [slot.path]


@pytest.mark.slow
def test_an_engine_of_an_earlier_version(tmp_path: Path) -> None:
    """It recorded no scores: of the released checkpoint, those of FP32 take their place; of another, it is said."""
    folder, said = tmp_path / "e", list[str]()
    shutil.copytree(RELEASED, folder)
    values = {**json.loads((RELEASED / "engine.json").read_text()), "reference": [], "severities": []}
    (folder / "engine.json").write_text(json.dumps(values))
    open_engine(engine=str(folder), precision="fp32", say=said.append).close()
    assert not said
    (folder / "engine.json").write_text(json.dumps({**values, "model": "1" * 64}))
    open_engine(engine=str(folder), precision="fp32", say=said.append).close()
    assert any("does not record what it scores" in line for line in said)
