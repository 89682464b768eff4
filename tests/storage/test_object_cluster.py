"""A cluster that reads from an object store and writes to one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fiqa_trt.storage.places import Uri
from tests.helpers import COMMAND, ROOT
from tests.storage.test_object_outputs import begun, objects, rows

pytestmark = pytest.mark.slow
CLUSTER = ("--cluster", "local", "--replicas", "2")


def words(given: str, output: Any, *more: str) -> list[str]:
    return [*COMMAND, "score", given, "-o", os.fspath(output), "--device", "cpu", "--unit-size", "2", "-q", *more]


def parts(store: Any) -> int:
    return sum(".partial/parts/" in path for path in begun(store))


def test_from_store_to_store_though_the_driver_is_killed(uploaded: str, name: str, store: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    subprocess.run(words(uploaded, tmp_path / "o.parquet"), check=True, cwd=ROOT)
    output = Uri(f"s3://{name}/out/scores.parquet")
    first = subprocess.Popen(words(uploaded, output, *CLUSTER), cwd=ROOT)
    deadline = time.monotonic() + 120
    while not parts(store) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = parts(store)
    assert kept
    done = subprocess.run(
        words(uploaded, output, *CLUSTER, "--json"), check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert json.loads(done.stdout)["scored_now"] <= 12 - 2 * kept  # a replica may have finished one more
    assert rows(output) == rows(tmp_path / "o.parquet")
    assert objects(store) == ["out/scores.parquet"]
