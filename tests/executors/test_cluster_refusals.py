"""What a cluster is not asked for, or cannot be: one line each, and soon."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from fiqa_trt.engines.base import EngineInfo
from fiqa_trt.engines.manifest import MANIFEST
from fiqa_trt.errors import EngineError, InputError, UsageError
from fiqa_trt.executors.base import Setup
from fiqa_trt.executors.cluster import Cluster, Opened, Order, refuse_differences, versions_here
from fiqa_trt.executors.ray import OnRay, opened
from fiqa_trt.executors.replica import Replica
from fiqa_trt.executors.resources import shares
from tests.executors.clusters import Nodes, nodes
from tests.helpers import call, invoke

__all__ = ["nodes"]
INFO = EngineInfo("openvino 1", "a processor", "fp32", "fp32", 8, "0" * 64, ("a", "b"))
GB = 10**9


OTHER_VERSION = """
import json, sys, ray
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

import ray._private.utils
ray._private.utils.check_version_info = lambda *args, **more: None
ray.init(address=sys.argv[1], log_to_driver=False)
value = json.loads(_internal_kv_get(CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER))
value["ray_version"] = sys.argv[2]
_internal_kv_put(CLUSTER_METADATA_KEY, json.dumps(value).encode(), overwrite=True, namespace=KV_NAMESPACE_CLUSTER)
"""


def node(cpus: float = 16, gpus: float = 0, memory: float = 64) -> dict[str, Any]:
    return {"Resources": {"CPU": cpus, "memory": memory * GB} | ({"GPU": gpus} if gpus else {})}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--cluster", "auto", "--devices", "0"), "give either --devices or --cluster"),
        (("--cluster", "auto", "--replicas", "0"), "0 is not in the range x>=1"),
        (("--cluster", "auto", "--gpus-per-replica", "2"), "2.0 is not in the range 0<=x<=1"),
        (("--cluster", "auto", "--memory-per-replica", "0"), "0.0 is not in the range x>0"),
        (("--replicas", "2"), "go with --cluster"),
        (("--shared-filesystem",), "go with --cluster"),
        (("--cluster", "10.0.0.1"), "it is auto, local or HOST:PORT"),
        (("--cluster", "ray://10.0.0.1:10001"), "with ray job submit"),
    ],
)
def test_options(crops: Path, tmp_path: Path, options: tuple[str, ...], expected: str) -> None:
    done = invoke("score", crops, "-o", tmp_path / "s.parquet", *options)
    said = str(done.exception) if done.exception and not isinstance(done.exception, SystemExit) else done.output
    assert expected in said
    assert not list(tmp_path.glob("s.parquet*"))


def test_numbers_from_python() -> None:
    wrongs: list[dict[str, Any]] = [
        {"replicas": 0},
        {"gpus": -0.5},
        {"cpus": 0},
        {"memory": float("nan")},
        {"gpus": 2.0},
        {"memory": float("inf")},
    ]
    for wrong in wrongs:
        with pytest.raises(UsageError, match=r"--\w+"):
            Cluster("auto", **wrong)
    assert Cluster("auto", gpus=0).gpus == 0


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"^--cluster needs Ray: pip install 'fiqa-trt\[ray\]'$"):
        opened(Cluster("auto"), Setup(), print)


@pytest.mark.slow
def test_no_cluster(crops: Path, tmp_path: Path) -> None:
    """Nobody listens, somebody listens who is no cluster, and none is known."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = ("score", crops, "-o", tmp_path / "s.parquet", "--device", "cpu", "--cluster")
        done = call(*command, f"127.0.0.1:{port}", code=2)
        assert f"--cluster 127.0.0.1:{port}: " in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    done = call(*command, f"127.0.0.1:{port}", code=2)
    assert "no Ray cluster answers there: [Errno 111] Connection refused" in done.stderr
    done = call(*command, "auto", code=2, env={**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"})
    assert f"--cluster 127.0.0.1:{port}: no Ray cluster answers there" in done.stderr


@pytest.mark.slow
def test_a_cluster_of_another_version(nodes: Nodes) -> None:
    """As it says of itself."""
    command = [sys.executable, "-c", OTHER_VERSION, nodes.address]
    for version in ("1.0.0", ray.__version__):
        subprocess.run([*command, version], check=True, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"})
        if version != ray.__version__:
            with pytest.raises(EngineError, match=r"another version .* Ray: 1\.0\.0") as caught:
                OnRay(Cluster(nodes.address), Setup(device="cpu"))
    assert f"Ray: {ray.__version__}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_replica_takes() -> None:
    cpu, cuda, auto = (Setup(device=device) for device in ("cpu", "cuda", "auto"))
    found = shares(Cluster("auto"), cpu, [node(16), node(8)])
    assert (found.cpus, found.gpus, found.replicas, found.setup.threads, found.setup.device) == (8, 0, 3, 8, "cpu")
    found = shares(Cluster("auto"), auto, [node(4), node(64, 8), node(32, 2)])
    assert (found.cpus, found.gpus, found.replicas, found.setup.device) == (8, 1, 10, "cuda")
    found = shares(Cluster("auto", gpus=0.5, replicas=5, threads=3), cuda, [node(16, 2)])
    assert (found.cpus, found.room, found.replicas, found.setup.threads) == (4, 4, 5, 3)
    assert [shares(Cluster("auto", gpus=1 / n, cpus=1), cuda, [node(64, 2)]).room for n in (3, 5, 10)] == [6, 10, 20]
    found = shares(Cluster("auto", gpus=1, cpus=1), cpu, [node(1, 1), node(1, 1)])
    assert (found.room, found.setup.device) == (2, "cpu")
    found = shares(Cluster("auto", memory=30), cpu, [node(16, memory=64), node(16, memory=10)])
    assert (found.room, found.memory) == (1, 30 * GB)
    assert shares(Cluster("auto"), cuda, [node(16)]).room == 0  # one with a GPU may join
    assert shares(Cluster("auto"), cpu, [node(0)]).replicas == 1


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"cpus": 64}, "--cpus-per-replica 64: no node of the cluster has more than 16"),
        ({"memory": 100}, "--memory-per-replica 100: no node of the cluster has more than 64 GB"),
    ],
)
def test_more_than_a_node_has(asked: dict[str, Any], expected: str) -> None:
    with pytest.raises(EngineError, match=f"^{expected}$"):
        shares(Cluster("auto", **asked), Setup(device="cpu"), [node(16), node(8)])


def test_a_gpu_that_this_machine_has_not() -> None:
    for asked, device, name in ((None, "cuda", "--device cuda"), (0.5, "auto", "--gpus-per-replica 0.5")):
        with pytest.raises(EngineError, match=f"^{name}: Ray finds no GPU on this machine"):
            shares(Cluster("local", gpus=asked), Setup(device=device), [node(16)])


def test_a_folder_that_is_no_engine(crops: Path) -> None:
    """It is named as it was given, and neither read nor sent."""
    with pytest.raises(EngineError, match=f"^{crops} is not an engine directory"):
        opened(Cluster("auto"), Setup(engine=str(crops)), print)


def test_a_replica_names_an_engine_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_node_id=lambda: "1")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    replica = Replica(Order(Setup(engine="engines/mine"), "", "1", {"": {MANIFEST: b"{"}}))
    error = replica.opened()
    assert isinstance(error, EngineError)
    assert str(error).startswith("engines/mine is not an engine directory")


def test_files_of_one_machine() -> None:
    with pytest.raises(InputError, match=r"^faces is a file of one machine, and the cluster auto has 2 nodes"):
        shares(Cluster("auto", local="faces"), Setup(), [node(), node()])
    assert shares(Cluster("auto", local="faces"), Setup(), [node()]).nodes == 1
    assert shares(Cluster("auto", local="faces", shared_filesystem=True), Setup(), [node(), node()]).nodes == 2
    with pytest.raises(EngineError, match="--device cuda:1"):
        shares(Cluster("auto"), Setup(device="cuda:1"), [node()])


def test_replicas_that_would_score_differently() -> None:
    here = versions_here("cpu")
    one = Opened(INFO, "cpu", Setup(), here, "1", "first")
    two = dataclasses.replace(one, identity="2", node="second")
    refuse_differences([one, two], here)
    other = dataclasses.replace(two, info=dataclasses.replace(INFO, executed="bf16"))
    with pytest.raises(EngineError, match="executed is fp32 on first and bf16 on second, so their scores would differ"):
        refuse_differences([one, other], here)
    other = dataclasses.replace(two, decoder="dali (gpu)")
    with pytest.raises(EngineError, match=r"the decoder is cpu on first and dali \(gpu\) on second"):
        refuse_differences([one, other], here)
    for name in ("fiqa-trt", "python", "openvino", "decoding"):
        other = dataclasses.replace(two, versions={**here, name: "0"})
        with pytest.raises(EngineError, match=rf"{name} is .* on this machine and 0 on second; install the same"):
            refuse_differences([one, other], here)
    without = {name: version for name, version in here.items() if name != "openvino"}
    refuse_differences([one, two], without)  # a head node scores nothing


@pytest.mark.slow
def test_nodes_that_would_read_other_files(nodes: Nodes) -> None:
    with pytest.raises(InputError, match="faces is a file of one machine"):
        OnRay(Cluster(nodes.address, local="faces"), Setup(device="cpu"))
    with pytest.raises(EngineError, match="--engine nowhere: No such file or directory; it is auto, "):
        OnRay(Cluster(nodes.address), Setup(device="cpu", engine="nowhere"))
