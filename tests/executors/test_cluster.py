"""Replicas of a Ray cluster: the same output as this process's, whatever dies, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fiqa_trt.engines.opening import RELEASED
from fiqa_trt.errors import RunError
from fiqa_trt.executors.cluster import Cluster
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.executors.ray import OnRay
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from tests.executors.clusters import SETUP, UNIT, Nodes, nodes, on, once_at, score
from tests.executors.test_deadly import errors, kill
from tests.helpers import COMMAND, ROOT, call, jpeg, spoil, tar

__all__ = ["nodes"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, portrait: Image.Image) -> Path:
    """Links to ten crops, and a bad file in the middle."""
    folder = tmp_path_factory.mktemp("many")
    for index in range(10):
        (folder / f"{index:05}.jpg").write_bytes(jpeg(portrait.rotate(9 * index)))
    for index in range(10, 480):
        os.link(folder / f"{index % 10:05}.jpg", folder / f"{index:05}.jpg")
    (folder / "00300.jpg").unlink()
    (folder / "00300.jpg").write_bytes(b"x")
    return folder


@pytest.fixture(scope="module")
def expected(many: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    output = tmp_path_factory.mktemp("expected") / "s.parquet"
    score(many, output, lambda: InProcess.open(SETUP))
    return pq.read_table(output)


def test_the_output_is_that_of_one_process(nodes: Nodes, crops: Path, tmp_path: Path) -> None:
    """A folder, a shard, a table of images and a list with columns, damaged files among them, and a limit."""
    files = sorted(crops.rglob("*.jpg"))
    shard = tar(tmp_path / "x.tar", [(path.name, path.read_bytes()) for path in files])
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [path.read_bytes() for path in files]}), table)
    spoil(crops)
    listed = tmp_path / "l.csv"
    listed.write_text("".join(f"{name}\n" for name in ("path,person", *(f"{path},{path.stem}" for path in files))))
    for source in (
        Source((str(crops), str(shard), str(table))),
        Source(list_file=str(listed)),
        Source((str(shard),), limit=7),
    ):
        one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
        score_dataset(source, one, lambda: InProcess.open(SETUP), Options(unit_rows=5, restart=True))
        executor = on(nodes)
        score_dataset(source, two, executor, Options(unit_rows=5, restart=True))
        assert pq.read_table(one).equals(pq.read_table(two))
        assert pq.read_schema(one).metadata.keys() == pq.read_schema(two).metadata.keys()


def test_an_engine_is_sent(nodes: Nodes, crops: Path, tmp_path: Path) -> None:
    """A directory that is here, and that the nodes would not find by that path."""
    named = tmp_path / "mine"
    shutil.copytree(RELEASED, named)
    setup = dataclasses.replace(SETUP, engine=str(named))

    def opened() -> OnRay:
        executor = OnRay(Cluster(nodes.address, shared_filesystem=True), setup)
        shutil.rmtree(named)
        return executor

    score(crops, tmp_path / "s.parquet", opened)
    score(crops, tmp_path / "t.parquet", lambda: InProcess.open(SETUP))
    assert pq.read_table(tmp_path / "s.parquet").equals(pq.read_table(tmp_path / "t.parquet"))


def test_a_replica_is_killed(nodes: Nodes, many: Path, tmp_path: Path, expected: pa.Table) -> None:
    said = list[str]()
    report = once_at(100, lambda: nodes.replicas(1)[0].kill())  # noqa: PLW0108, as there is none yet
    summary = score(many, tmp_path / "s.parquet", on(nodes, said.append), report=report, say=said.append)
    assert pq.read_table(tmp_path / "s.parquet").equals(expected)
    assert len(summary.nodes) == 2
    assert sum(summary.nodes.values()) == pytest.approx(
        480 / summary.seconds, rel=0.5
    )  # seconds of work, and of waiting for its end
    assert any("a replica died; others go on with its units" in line for line in said)


def test_a_node_freezes_and_thaws(nodes: Nodes, many: Path, tmp_path: Path, expected: pa.Table) -> None:
    """Its units are given to the other one, and what it writes late changes nothing."""
    frozen = list[int]()

    def freeze() -> None:
        frozen.extend(process.pid for process in (nodes.raylet(1), *nodes.replicas(1)))
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)

    output = tmp_path / "s.parquet"
    try:
        score(many, output, on(nodes), report=once_at(100, freeze))
        assert len(frozen) == 2
        found = output.stat()
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    time.sleep(2)
    assert output.stat() == found
    assert pq.read_table(output).equals(expected)
    assert not (tmp_path / "s.parquet.partial").exists()


def test_the_store_refuses_writes_for_a_while(nodes: Nodes, many: Path, tmp_path: Path, expected: pa.Table) -> None:
    parts, said = tmp_path / "s.parquet.partial" / "parts", list[str]()

    def mend() -> None:
        parts.unlink()
        parts.with_name("away").rename(parts)

    def refuse() -> None:
        parts.rename(parts.with_name("away"))
        parts.write_bytes(b"")
        threading.Timer(2, mend).start()

    score(many, tmp_path / "s.parquet", on(nodes, said.append), report=once_at(100, refuse))
    assert pq.read_table(tmp_path / "s.parquet").equals(expected)
    assert any("cannot write" in line and line.endswith("it is tried again") for line in said)


def test_the_driver_is_killed(nodes: Nodes, many: Path, tmp_path: Path, expected: pa.Table) -> None:
    output = tmp_path / "s.parquet"
    command = ["score", str(many), "-o", str(output), "--device", "cpu", "--precision", "fp32", "--batch-size", "4"]
    command += ["--unit-size", str(UNIT), "--cluster", nodes.address, "--shared-filesystem"]
    with subprocess.Popen([*COMMAND, *command], cwd=ROOT, stderr=subprocess.DEVNULL) as first:
        while len(list(tmp_path.glob("s.parquet.partial/parts/0*"))) < 5:
            assert first.poll() is None
            time.sleep(0.01)
        first.kill()
    done = call(*command)
    assert "resuming: " in done.stderr
    assert pq.read_table(output).equals(expected)


def test_a_node_is_gone_and_another_joins(
    many: Path, tmp_path: Path, expected: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From two to one, and back; at last all are gone, and another cluster goes on."""
    found, said = Nodes(), list[str]()
    try:

        def lose() -> None:
            found.kill(1)
            found.add()

        score(many, tmp_path / "s.parquet", on(found, said.append, replicas=2), report=once_at(100, lose))
        assert pq.read_table(tmp_path / "s.parquet").equals(expected)
        assert any("a replica died" in line for line in said)
        monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")  # Ray waits for a minute
        with pytest.raises(RunError, match="run the same command again to resume"):
            score(many, tmp_path / "t.parquet", on(found, replicas=2), report=once_at(100, found.close))
    finally:
        found.close()
    assert not (tmp_path / "t.parquet").exists()
    found = Nodes(1)
    try:
        summary = score(
            many, tmp_path / "t.parquet", on(found, said.append, replicas=2), report=once_at(200, found.add)
        )
    finally:
        found.close()
    assert 0 < summary.scored_now < 480
    assert pq.read_table(tmp_path / "t.parquet").equals(expected)


def test_an_image_that_ends_the_process(crops: Path, tmp_path: Path) -> None:
    kill(crops / "b" / "5.jpg")
    deadly = os.pathsep.join((str(Path(__file__).parent / "deadly"), str(ROOT)))
    found = Nodes(1, env_vars={"PYTHONPATH": deadly})
    try:
        score(crops, tmp_path / "s.parquet", on(found))
    finally:
        found.close()
    assert errors(tmp_path / "s.parquet") == {"5.jpg": "the decoder died: SIGABRT"}
