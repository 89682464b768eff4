"""What a replica takes of a node, and how many of them a cluster has room for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fiqa_trt.errors import EngineError, InputError
from fiqa_trt.executors.base import Setup
from fiqa_trt.executors.cluster import Cluster

Resources = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Share:
    """What each replica takes.

    Attributes:
        setup: how it scores.
        cpus: of its node.
        gpus: likewise; a part of one for several replicas on each.
        memory: in bytes; 0 to ask for none.
        replicas: that are wanted.
        room: how many of them the nodes have room for now.
        nodes: that there are.
    """

    setup: Setup
    cpus: int
    gpus: float
    memory: int
    replicas: int
    room: int
    nodes: int


def shares(where: Cluster, setup: Setup, nodes: Sequence[Mapping[str, Any]]) -> Share:
    """What each replica takes of nodes as `ray.nodes` describes them.

    Raises:
        EngineError: no node has what a replica needs.
        InputError: files of one machine, and several nodes.
    """
    if where.local and len(nodes) > 1 and not where.shared_filesystem:
        raise InputError(
            f"{where.local} is a file of one machine, and {where} has {len(nodes)} nodes: --shared-filesystem says "
            "that all of them see the same files by the same paths"
        )
    if ":" in setup.device:
        raise EngineError(f"--device {setup.device}: a cluster gives each replica its GPU; --device cuda")
    resources: list[Resources] = [node["Resources"] for node in nodes]
    with_gpus = [found for found in resources if found.get("GPU", 0) >= 1]
    gpus, device = where.gpus, setup.device
    if gpus is None:
        gpus = 1.0 if device == "cuda" or (device == "auto" and with_gpus) else 0.0
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    hosts = with_gpus if gpus else [found for found in resources if found.get("CPU", 0) >= 1]
    cpus = where.cpus or min((_cpus_of(found, gpus) for found in hosts), default=1)
    memory = int((where.memory or 0) * 1e9)
    room = sum(_room(found, cpus, gpus, memory) for found in hosts)
    if hosts and not room:
        raise EngineError(_too_much(hosts, cpus, memory))
    if gpus and not hosts and where.address == "local":  # no other node will join
        asked = "--device cuda" if where.gpus is None else f"--gpus-per-replica {where.gpus:g}"
        raise EngineError(f"{asked}: Ray finds no GPU on this machine; use --cluster local --device cpu")
    own = dataclasses.replace(setup, device=device, threads=where.threads or cpus)
    return Share(own, cpus, gpus, memory, where.replicas or max(1, room), room, len(nodes))


def _cpus_of(found: Resources, gpus: float) -> int:
    """A replica's share of a node: all of it, or as much as of its GPUs."""
    cpus = found.get("CPU", 0)
    return max(1, int(cpus * gpus / found["GPU"]) if gpus else int(cpus))


def _room(found: Resources, cpus: int, gpus: float, memory: int) -> int:
    room = found.get("CPU", 0) // cpus
    if gpus:
        room = min(room, found["GPU"] // 1 * int(1 / gpus + 1e-9))  # none lies across two; 1 // 0.2 is 4
    if memory:
        room = min(room, found.get("memory", 0) // memory)
    return int(room)


def _too_much(hosts: Sequence[Resources], cpus: int, memory: int) -> str:
    most = max(found.get("CPU", 0) for found in hosts)
    if most < cpus:
        return f"--cpus-per-replica {cpus}: no node of the cluster has more than {most:.0f}"
    most = max(found.get("memory", 0) for found in hosts) / 1e9
    return f"--memory-per-replica {memory / 1e9:g}: no node of the cluster has more than {most:.0f} GB"
