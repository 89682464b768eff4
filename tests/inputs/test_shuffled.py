"""Lists in any order over shards: the rows stay in the order of the list, the reading follows the shards."""

from __future__ import annotations

import io
import itertools
import os
import random
import resource
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fiqa_trt.inputs import reader as shards
from fiqa_trt.inputs.address import Address
from fiqa_trt.inputs.containers import tar as tar_module
from fiqa_trt.inputs.containers.tar import TarContainer
from fiqa_trt.inputs.read_ahead import Reader
from fiqa_trt.inputs.reader import ContainerReader, open_container, read_recorded
from fiqa_trt.inputs.source import Source
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.storage.base import MAX_BYTES
from tests.helpers import mean_executor, tar


def shade(level: int) -> bytes:
    """An image whose score under the mean engine is its own."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 24, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Recorded paths of images in tars, tables and files, each with its level."""
    root, levels = tmp_path_factory.mktemp("mixed"), dict[str, int]()
    images = [shade(level) for level in range(256)]
    for number in range(5):
        own = range(number * 40, number * 40 + 40)
        kind = ("tar", "parquet", "arrow", "stream", "files")[number]
        path = root / f"{number}.{'arrow' if kind == 'stream' else kind}"
        if kind == "tar":
            tar(path, [(f"{level}.png", images[level]) for level in own])
            levels |= {f"{path}::{level}.png": level for level in own}
        elif kind == "files":
            path.mkdir()
            for level in own:
                (path / f"{level}.png").write_bytes(images[level])
                levels[f"{path}/{level}.png"] = level
        else:
            table = pa.table({"image": [images[level] for level in own]})
            if kind == "parquet":
                pq.write_table(table, path, row_group_size=7)
            else:
                new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
                with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
                    writer.write_table(table, max_chunksize=7)
            levels |= {f"{path}::{row}": level for row, level in enumerate(own)}
    return levels


def scored(paths: list[str], folder: Path, unit_rows: int) -> list[dict[str, object]]:
    (folder / "l.txt").write_text("\n".join(paths) + "\n")
    options = Options(unit_rows=unit_rows, restart=True)
    score_dataset(Source(list_file=str(folder / "l.txt")), folder / "s.parquet", lambda: mean_executor(3, 2), options)
    return list(pq.read_table(folder / "s.parquet").to_pylist())


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 120))
def test_any_order_gives_each_row_its_own_score(
    mixed: dict[str, int], tmp_path_factory: pytest.TempPathFactory, rng: random.Random, unit_rows: int
) -> None:
    paths = rng.choices(sorted(mixed), k=rng.randrange(1, 300))
    gone = rng.choice(sorted(mixed)) + "x"
    paths[rng.randrange(len(paths))] = gone
    found = scored(paths, tmp_path_factory.mktemp("run"), unit_rows)
    assert [row["path"] for row in found] == paths
    for row in found:
        if row["path"] == gone:
            assert row["status"] == "missing"
        else:
            assert row["status"] == "ok"
            assert row["score"] == pytest.approx(mixed[str(row["path"])] / 255, abs=1e-6)


def test_a_plan_follows_each_shard_and_restores_the_order(mixed: dict[str, int]) -> None:
    paths = sorted(mixed)
    random.Random(3).shuffle(paths)
    reader = Reader()
    try:
        plan = reader.plan(paths).result()
        assert plan.order is not None
        assert [Address.parse(paths[index]) for index in plan.order] == plan.addresses
        files = [file for file, key, _ in plan.addresses if key is not None]
        assert sum(a != b for a, b in itertools.pairwise(files)) == len(set(files)) - 1  # each at a stretch
        for file in set(files):
            positions = [open_container(file).position(key or "") for place, key, _ in plan.addresses if place == file]
            assert positions == sorted(positions)
        plain = [file for file, key, _ in plan.addresses if key is None]
        assert plain == [path for path in paths if "::" not in path]
        ordered = reader.plan([path for path in paths if "::" not in path]).result()
        assert ordered.order is None
    finally:
        reader.close()


@pytest.mark.slow
def test_progress_counts_every_row_once(mixed: dict[str, int], tmp_path: Path) -> None:
    paths = sorted(mixed)
    random.Random(4).shuffle(paths)
    (tmp_path / "l.txt").write_text("\n".join(paths))
    seen = list[tuple[int, int]]()
    source = Source(list_file=str(tmp_path / "l.txt"))
    score_dataset(
        source, tmp_path / "s.parquet", mean_executor, Options(unit_rows=64), lambda p: seen.append((p.done, p.failed))
    )
    assert seen == sorted(seen)
    assert seen[-1] == (len(paths), 0)


def test_a_shard_is_indexed_once_for_many_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_KEPT", shards._Kept())  # other tests may have readers of their own
    names = [f"{number}.jpg" for number in range(300)]
    path = str(tar(tmp_path / "t.tar", [(name, name.encode()) for name in names]))
    opened = list[str]()

    class Counted(TarContainer):
        def __init__(self, path: str) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(tar_module, "TarContainer", Counted)
    first, second = ContainerReader(), ContainerReader()
    with ThreadPoolExecutor(8) as pool:
        for reader in (first, second):
            random.Random(0).shuffle(names)
            blobs = pool.map(lambda name, reader=reader: reader.read(Address(path, name)), names)
            assert list(blobs) == [name.encode() for name in names]
    assert opened == [path]
    first.close()
    assert second.read(Address(path, "7.jpg")) == b"7.jpg"
    assert opened == [path]
    second.close()  # the last one lets go
    open_container(path)
    assert opened == [path] * 2


def test_what_is_kept_of_shards_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tar(tmp_path / f"{i}.tar", [(f"{j}.jpg", b"%d" % j) for j in range(50)])) for i in range(20)]
    limit = 3 * open_container(paths[0]).weight
    monkeypatch.setattr(shards, "_KEPT_BYTES", limit)
    monkeypatch.setattr(shards, "_KEPT", shards._Kept())
    reader = ContainerReader()
    for turn in range(2):
        for path in paths:
            assert reader.read(Address(path, f"{turn}.jpg")) == b"%d" % turn
            assert shards._KEPT._weight <= limit
    assert 1 <= len(shards._KEPT._containers) <= 3
    reader.close()
    assert not shards._KEPT._containers
    assert shards._KEPT._weight == 0


def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    paths = [str(tar(tmp_path / f"{i}.tar", [("a.jpg", b"x")])) for i in range(60)]
    for number in range(40):
        pq.write_table(pa.table({"image": [b"x"]}), tmp_path / f"{number}.parquet")
        paths.append(str(tmp_path / f"{number}.parquet"))
    recorded = [f"{path}::{'a.jpg' if path.endswith('tar') else '0'}" for path in paths] * 2
    random.Random(0).shuffle(recorded)
    before = len(os.listdir("/proc/self/fd"))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    reader = ContainerReader()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 24, hard))
    try:
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda path: read_recorded(path, reader), recorded)) == {b"x"}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        reader.close()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", ["tar", "parquet", "arrow"])
def test_a_shard_that_is_replaced_is_opened_again(tmp_path: Path, kind: str, *, in_place: bool) -> None:
    path = tmp_path / f"t.{kind}"
    reader = ContainerReader()

    def write(values: list[bytes]) -> None:
        new = path if in_place else tmp_path / f"new.{kind}"
        if kind == "tar":
            tar(new, [(str(number), value) for number, value in enumerate(values)])
        elif kind == "parquet":
            pq.write_table(pa.table({"image": values}), new)
        else:
            table = pa.table({"image": values})
            with pa.OSFile(str(new), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
        os.utime(new, ns=(len(values), 10**9 * len(values)))  # so that it differs, however coarse the clock
        new.replace(path)

    for values in ([b"a", b"b", b"c"], [b"d", b"e"], [b"f", b"g", b"h", b"i"]):
        write(values)
        found = [
            blob if isinstance(blob, bytes) else blob.outcome.status
            for blob, _ in reader.read_all([Address(str(path), key) for key in "3210"])
        ]
        expected = [*values, *[Status.MISSING] * (4 - len(values))][::-1]
        assert found == expected
    path.unlink()
    assert isinstance(reader.read_all([Address(str(path), "0")])[0].blob, ImageError)
    reader.close()


def test_a_shard_that_is_written_to_all_the_time(tmp_path: Path) -> None:
    """Whatever is read is the content of that member at some moment, or a row that says that the file changes."""
    path = tmp_path / "t.tar"
    stop = threading.Event()

    def rewrite() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            members = [(f"{number}.jpg", b"%d " % number * (1 + turn % 5)) for number in range(20)]
            random.Random(turn).shuffle(members)
            tar(tmp_path / "new.tar", members).replace(path)

    tar(path, [("0.jpg", b"0 ")])
    thread = threading.Thread(target=rewrite)
    thread.start()
    reader = ContainerReader()
    try:
        for index in range(300):
            blob = reader.read_all([Address(str(path), f"{index % 20}.jpg")])[0].blob
            if isinstance(blob, bytes):
                assert set(blob.split()) == {b"%d" % (index % 20)}
            else:
                assert blob.outcome.status in (Status.UNREADABLE, Status.MISSING)
    finally:
        stop.set()
        thread.join()
        reader.close()


def test_places_of_many_paths_ask_for_each_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tar(tmp_path / "t.tar", [("a.jpg", b"x")]))
    asked = list[str]()
    real = os.path.isfile

    def isfile(name: str) -> bool:
        asked.append(name)
        return real(name)

    monkeypatch.setattr("fiqa_trt.inputs.address.os.path.isfile", isfile)
    known = dict[str, bool]()
    for number in range(100):
        assert Address.parse(f"{path}::{number}", known) == Address(path, str(number))
        gone = f"{tmp_path}/gone.tar::{number}"
        assert Address.parse(gone, known) == Address(gone)
    assert sorted(asked) == sorted([path, f"{tmp_path}/gone.tar"])


def test_members_in_any_order_and_from_several_threads(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for number in range(2000):
            entry = tarfile.TarInfo(f"{number % 7}/{number}.jpg")
            data = b"%d" % number
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    shard, order = TarContainer(str(tmp_path / "t.tar")), list(range(2000))
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda number: shard.read(f"{number % 7}/{number}.jpg", MAX_BYTES), order)
        assert list(found) == [b"%d" % number for number in order]
