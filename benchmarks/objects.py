"""Object stores: images/s against a disk, listing, kills, faults, on a real S3 server. `python -m benchmarks.objects`.

The server, what delays it, and the run share the cores of this machine: of what is lost against a disk, that is part.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import COMMAND, damage, link_many, machine, make_crops, median, record
from fiqa_trt.scores.files import read_output
from fiqa_trt.storage.places import Uri
from tests.storage.buckets import ADMIN, BUCKET, Proxy, bucket, proxied, served

SEED = 0


class Delay:
    """Passes bytes on to a server, those of requests that much later."""

    def __init__(self, upstream: str, milliseconds: float) -> None:
        self.seconds, self.port = milliseconds / 1000, 0
        self._host, _, port = upstream.removeprefix("http://").partition(":")
        self._port, self._ready = int(port), threading.Event()
        self._loop = asyncio.new_event_loop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)

        async def forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter, wait: float) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    if wait:
                        await asyncio.sleep(wait)
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(forward(reader, back, self.seconds), forward(there, writer, 0))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()

    def __enter__(self) -> str:
        threading.Thread(target=self._run, daemon=True).start()
        self._ready.wait()
        return f"http://127.0.0.1:{self.port}"

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


def sign_in(endpoint: str) -> None:
    """For this process and its children."""
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": ADMIN[0], "AWS_SECRET_ACCESS_KEY": ADMIN[1],
        "AWS_REGION": "us-east-1",
    }  # fmt: skip


def upload(endpoint: str, folder: Path, to: str) -> None:
    """All files of a folder."""
    import obstore

    store = bucket(endpoint, to)
    files = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda path: obstore.put(store, str(path.relative_to(folder)), path.read_bytes()), files))


def scored(*words: str | Path) -> dict[str, float]:
    """Images/s and peak MB of a run."""
    with subprocess.Popen([*COMMAND, "score", *map(str, words), "-q", "--json"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        facts = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words}: exit code {process.returncode}")
    cpu = (usage.ru_utime + usage.ru_stime) / facts["images"] * 1000
    return {"rate": facts["scored_now"] / facts["seconds"], "peak_mb": usage.ru_maxrss / 1024, "cpu_ms": cpu}


def rows(output: Path | Uri, start: str) -> list[dict[str, Any]]:
    """Rows without times, by paths below a place."""
    found = [row for table in read_output(output, ["path"]) for row in table.to_pylist()]
    return [{**row, "path": row["path"].removeprefix(start), "modified": None} for row in found]


def pack(files: Sequence[Path], folder: Path, size: int = 1000) -> None:
    """Tar shards of so many each."""
    folder.mkdir()
    for start in range(0, len(files), size):
        with tarfile.open(folder / f"{start // size:04}.tar", "w") as archive:
            for path in files[start : start + size]:
                archive.add(path, path.name)


def speed(endpoint: str, root: Path, images: int, delay: float, rounds: int) -> dict[str, Any]:
    """Runs in turn: disk, objects, shards of a disk, shards in the store."""
    files = make_crops(root / "distinct")
    link_many(files, root / "many", images)
    pack(sorted((root / "many").rglob("*.jpg")), root / "shards")
    for name in ("many", "shards"):
        upload(endpoint, root / name, name)
    found: dict[str, list[dict[str, float]]] = {}
    with Delay(endpoint, delay) as late:
        sign_in(late)
        for number in range(rounds):
            for name in ("many", "shards"):
                for where, given in (("disk", str(root / name)), ("store", f"s3://{BUCKET}/{name}")):
                    output = root / f"{name}-{where}-{number}.parquet"
                    found.setdefault(f"{name} {where}", []).append(scored(given, "-o", output))
                ours, theirs = (root / f"{name}-{where}-{number}.parquet" for where in ("store", "disk"))
                if rows(ours, f"s3://{BUCKET}/") != rows(theirs, f"{root}/"):
                    raise SystemExit(f"{name}: other rows")
    sign_in(endpoint)
    facts: dict[str, Any] = {
        name: {key: median([each[key] for each in runs]) for key in runs[0]} for name, runs in found.items()
    }
    for name in ("many", "shards"):
        disk, store = facts[f"{name} disk"], facts[f"{name} store"]
        facts[f"{name}: store over disk"] = {key: round(store[key] / disk[key], 3) for key in disk}
    return {"images": images, "added_ms": delay, "rounds": rounds, **facts}


def kills(root: Path, count: int, expected: list[dict[str, Any]]) -> dict[str, Any]:
    """SIGKILLs of a run from the store into it, each resumed."""
    rng, killed, output = random.Random(SEED), list[float](), f"s3://{BUCKET}/out/killed.parquet"
    command = [*COMMAND, "score", f"s3://{BUCKET}/bad", "--unit-size", "256", "-q", "-o", output]
    while len(killed) < count:
        wait = rng.uniform(0.5, 4)
        process = subprocess.Popen(command)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            break
        killed.append(round(wait, 2))
    subprocess.run(command, check=True)
    import obstore

    left = [each["path"] for page in obstore.list(bucket(os.environ["AWS_ENDPOINT_URL"]), "out") for each in page]
    return {"killed_after_seconds": killed, "equal": rows(Uri(output), f"s3://{BUCKET}/") == expected, "left": left}


def faults(proxy: Proxy, root: Path, expected: list[dict[str, Any]]) -> dict[str, Any]:
    """1 % of requests answered by 503 or reset, 0.1 % of bodies cut."""
    rng, counts = random.Random(SEED), {"503": 0, "reset": 0, "short": 0}

    def fault(method: str, path: str) -> str | None:
        drawn = rng.random()
        found = "short" if drawn < 0.001 else "503" if drawn < 0.006 else "reset" if drawn < 0.011 else None
        if found:
            counts[found] += 1
        return found

    sign_in(proxy.endpoint)
    proxy.fault = fault
    subprocess.run([*COMMAND, "score", f"s3://{BUCKET}/bad", "-q", "-o", root / "faulty.parquet"], check=True)
    equal = rows(root / "faulty.parquet", f"s3://{BUCKET}/") == expected
    return {"requests": len(proxy.requests), "faults": counts, "equal": equal}


def listing(endpoint: str, keys: int) -> dict[str, Any]:
    """Keys per second, and by how much listing them raises the peak of memory; twice as many, to see that it stays."""
    import obstore

    store = bucket(endpoint, "keys")
    done, found = 0, list[dict[str, float]]()
    for goal in (keys // 2, keys):
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda number: obstore.put(store, f"{number:08}.jpg", b"x"), range(done, goal)))
        done = goal
        words = [
            COMMAND[0], "-c",
            "import sys, time, resource; from fiqa_trt.inputs.listing import walk; began = time.perf_counter(); "
            "n = sum(1 for _ in walk(sys.argv[1])); print(n, time.perf_counter() - began, "
            "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)",
            f"s3://{BUCKET}/keys",
        ]  # fmt: skip
        count, seconds, peak = map(float, subprocess.run(words, check=True, capture_output=True).stdout.split())
        found.append({"keys": count, "per_second": round(count / seconds), "peak_mb": round(peak, 1)})
    return {"runs": found}


def main() -> None:
    """Everything; fails loudly if rows differ."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--delay", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory() as scratch, served(_made(Path(scratch) / "server"), 200) as endpoint:
        root, rng = Path(scratch), random.Random(SEED)
        sign_in(endpoint)
        result: dict[str, Any] = {"machine": facts}
        result["speed"] = speed(endpoint, root, given.images, given.delay, given.rounds)
        files = make_crops(root / "some", seed=1)
        for path in files[::25]:
            path.write_bytes(damage(path.read_bytes(), rng))
        link_many(files, root / "bad", 5000)
        upload(endpoint, root / "bad", "bad")
        subprocess.run([*COMMAND, "score", root / "bad", "-q", "-o", root / "bad.parquet"], check=True)
        expected = rows(root / "bad.parquet", f"{root}/")
        result["kills"] = kills(root, given.kills, expected)
        with proxied(endpoint) as proxy:
            result["faults"] = faults(proxy, root, expected)
        sign_in(endpoint)
        result["listing"] = listing(endpoint, given.keys)
    record("objects", result)
    equal = result["kills"]["equal"] and result["faults"]["equal"]
    if not equal or result["kills"]["left"] != ["out/killed.parquet"]:
        raise SystemExit("not as it should be")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
