"""Columns of any type and name, through score, filter, report and retry in every format: refused first, or whole."""

from __future__ import annotations

import datetime
import decimal
import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiqa_trt.analysis.report import survey
from fiqa_trt.curation.delivery import write_rows
from fiqa_trt.curation.kept import Kept
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.errors import UsageError
from fiqa_trt.executors.base import Units
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.inputs.source import Source
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.progress import Count
from fiqa_trt.runs.retry import retry_failed
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scores.files import SUFFIXES, check_columns, read_output, to_json, write_output
from fiqa_trt.scores.files.columns import hold
from fiqa_trt.scores.schema import own_columns, own_types
from tests.helpers import MeanEngine, mean_executor

ints = st.integers(-(2**63), 2**63 - 1)
UUID = uuid.UUID(bytes=bytes(range(16)))
text = st.text(st.characters(codec="utf-8"), max_size=6)
LEAVES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.null(), st.none()),
    (pa.bool_(), st.booleans()),
    (pa.int8(), st.integers(-128, 127)),
    (pa.int64(), ints),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float16(), st.floats(width=16)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.string(), text),
    (pa.large_string(), text),
    (pa.string_view(), text),
    (pa.binary(), st.binary(max_size=3)),
    (pa.binary(4), st.binary(min_size=4, max_size=4)),
    (pa.binary_view(), st.binary(max_size=3)),
    (pa.date32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.date64(), st.integers(-10_000_000, 10_000_000).map(lambda days: days * 86_400_000)),
    *((pa.timestamp(unit), ints) for unit in ("s", "ms", "us", "ns")),
    (pa.timestamp("ns", "Europe/Berlin"), ints),
    (pa.timestamp("us", "+05:30"), ints),
    *((pa.duration(unit), ints) for unit in ("s", "ms", "us", "ns")),
    *((pa.time32(unit), st.integers(0, 86_399)) for unit in ("s", "ms")),
    *((pa.time64(unit), st.integers(0, 86_399_999_999)) for unit in ("us", "ns")),
    (pa.decimal128(38, 30), st.decimals(-(10**7), 10**7, places=30)),
    (pa.decimal256(70, 3), st.decimals(-(10**60), 10**60, places=3)),
    (pa.month_day_nano_interval(), st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))),
    (pa.uuid(), st.binary(min_size=16, max_size=16)),
    (pa.bool8(), st.integers(-1, 1)),
    (pa.json_(), st.just("{}")),
]


@st.composite
def columns(draw: st.DrawFn, rows: int, depth: int = 2) -> pa.Array:
    """An array of `rows` values, some of them null, of any type."""
    kinds = ["leaf", "leaf", "dictionary", "runs", "list", "large", "fixed", "view", "struct", "map", "union"]
    kind = draw(st.sampled_from(kinds if depth else ["leaf"]))
    nulls = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), bool)
    if kind in ("leaf", "dictionary", "runs"):
        leaf, values = draw(st.sampled_from(LEAVES))
        drawn = draw(st.lists(values, min_size=rows, max_size=rows))
        array = _leaf([None if null else value for value, null in zip(drawn, nulls, strict=True)], leaf)
        if kind == "leaf" or isinstance(leaf, pa.BaseExtensionType):
            return array
        try:
            return array.dictionary_encode() if kind == "dictionary" else pa.compute.run_end_encode(array)
        except pa.ArrowNotImplementedError:
            return array
    if kind == "struct":
        names = draw(st.lists(text, min_size=0, max_size=3))
        children = [draw(columns(rows, depth - 1)) for _ in names]
        return (
            pa.StructArray.from_arrays(children, names, mask=pa.array(nulls))
            if names
            else pa.nulls(rows, pa.struct([]))
        )
    if kind == "union":
        types = pa.array(np.zeros(rows, np.int8))
        return pa.UnionArray.from_sparse(types, [draw(columns(rows, depth - 1))])
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(draw(columns(2 * rows, depth - 1)), 2, mask=pa.array(nulls))
    lengths = np.array(draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows)), np.int64)
    offsets = np.r_[0, np.cumsum(lengths)]
    marked = pa.array(offsets, pa.int32(), mask=np.r_[nulls, False])
    if kind == "map":
        keys = pa.array([f"k{i}" for i in range(offsets[-1])])
        return pa.MapArray.from_arrays(marked, keys, draw(columns(int(offsets[-1]), depth - 1)))
    values = draw(columns(int(offsets[-1]), depth - 1))
    if kind == "large":
        return pa.LargeListArray.from_arrays(marked.cast(pa.int64()), values)
    if kind == "view":
        where, sizes = pa.array(offsets[:-1], pa.int32()), pa.array(lengths, pa.int32())
        return pa.ListViewArray.from_arrays(where, sizes, values, mask=pa.array(nulls))
    return pa.ListArray.from_arrays(marked, values)


def _leaf(values: list[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    if pa.types.is_temporal(kind) and kind != pa.month_day_nano_interval():
        wide = pa.int32() if kind.bit_width == 32 else pa.int64()
        return pa.array(values, wide).view(kind)
    if pa.types.is_float16(kind):
        return pa.array([None if value is None else np.float16(value) for value in values], kind)
    return pa.array(values, kind)


@st.composite
def tables(draw: st.DrawFn, rows: int) -> pa.Table:
    """Columns of any type under any names; one of them maybe a slice, maybe in two chunks."""
    names = draw(st.lists(text | st.sampled_from(["", "score", "path x", 'a"b', "a,b", "a\nb", "a\r\nb"]), max_size=3))
    made = {}
    for name in names:
        longer = draw(columns(rows + 1))
        at = draw(st.integers(0, 1))
        made[name] = pa.chunked_array([longer.slice(at, 1), longer.slice(at + 1, rows - 1)])
    return pa.table(made) if made else pa.table({"a": range(rows)})


def output(rows: int) -> pa.Table:
    """Our own columns: every third row has failed."""
    bad = np.arange(rows) % 3 == 2
    scores = pa.array(np.linspace(0, 1, rows, dtype=np.float32), mask=bad)
    sides = pa.array(np.full(rows, 224, np.int32))
    status = pa.array(["corrupt" if each else "ok" for each in bad])
    error = pa.array(["broken" if each else None for each in bad])
    paths = pa.array([f"f/{row}.jpg" for row in range(rows)])
    size, modified = pa.array([9] * rows, pa.int64()), pa.array([0] * rows, own_types(MEMBERS)["modified"])
    columns = [paths, scores, scores, scores, sides, sides, status, error, size, modified]
    return pa.table(columns, names=own_columns(MEMBERS))


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables(5), st.sampled_from(SUFFIXES), st.sampled_from(SUFFIXES))
def test_any_columns_are_held_or_refused_and_filtered(carried: pa.Table, suffix: str, other: str) -> None:
    table, own = output(5), own_columns(MEMBERS)
    for name in carried.column_names:
        if name not in own:
            table = table.append_column(name, carried[name])
    with tempfile.TemporaryDirectory() as folder:
        path, kept = Path(folder) / f"s{suffix}", Path(folder) / f"k{other}"
        try:
            schema = check_columns(table.schema, path)
        except UsageError:
            return
        try:
            write_output(path, schema, [table.slice(0, 2), table.slice(2)], 5)
        except UsageError:  # a value that its type has and Parquet has not: seconds that are no milliseconds
            assert suffix == ".parquet"
            return
        read = pa.concat_tables(read_output(path, own))
        assert read.select(own).to_pydict() == table.select(own).to_pydict()
        assert read.column_names == table.column_names
        held = hold(table, suffix)
        for name in set(table.column_names) - set(own) if suffix != ".parquet" else ():
            values = [json.loads(to_json(value)) for value in held[name].to_pylist()]
            if suffix == ".jsonl":
                assert read[name].to_pylist() == values
            else:
                here, there = read[name].to_pylist(), held[name].to_pylist()
                assert [each is None for each in here] == [each is None for each in there]
        survey(path, sheet=0)
        mask = np.array([True, True, False, True, False])
        try:
            write_rows(Kept(path, mask), kept)
        except UsageError:
            assert not kept.exists()
            return
        again = pa.concat_tables(read_output(kept, own))
        assert (again["path"].to_pylist(), again.column_names) == (["f/0.jpg", "f/1.jpg", "f/3.jpg"], read.column_names)


class _Watched(InProcess):
    """Says that images were read."""

    worked = 0

    def work(self, units: Units, report: Count) -> None:
        _Watched.worked += 1
        super().work(units, report)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), suffix=st.sampled_from(SUFFIXES))
def test_any_list_is_scored_and_retried_or_refused_before_an_image_is_read(
    crops: Path, tmp_path: Path, data: st.DataObject, suffix: str
) -> None:
    paths = [*sorted(str(path) for path in crops.rglob("*.jpg"))[:4], str(tmp_path / "later.jpg")]
    carried = data.draw(tables(5))
    table = pa.table({"path": paths})
    for name in carried.column_names:
        table = table.append_column(name, carried[name]) if name != "path" else table
    (tmp_path / "later.jpg").unlink(missing_ok=True)
    out = tmp_path / f"s{suffix}"
    out.unlink(missing_ok=True)
    try:
        pq.write_table(table, tmp_path / "l.parquet")
    except (pa.ArrowException, ValueError):
        return  # no such list can be
    _Watched.worked = 0
    source = Source(list_file=str(tmp_path / "l.parquet"))
    try:
        summary = score_dataset(source, out, lambda: _Watched(MeanEngine(), CpuDecoder(threads=1)))
    except UsageError:
        assert (_Watched.worked, out.exists(), Path(f"{out}.partial").exists()) == (0, False, False)
        return
    assert (summary.images, summary.failed) == (5, 1)
    before = pa.concat_tables(read_output(out, ["path"]))
    assert score_dataset(source, out, mean_executor).scored_now == 0
    (tmp_path / "later.jpg").write_bytes(Path(paths[0]).read_bytes())
    assert retry_failed(out, mean_executor).failed == 0
    after = pa.concat_tables(read_output(out, ["path"]))
    assert after.column_names == before.column_names
    assert after["path"].to_pylist() == paths
    for name in set(after.column_names) - set(own_columns(MEMBERS)):
        assert after[name].equals(before[name]) or str(after[name]) == str(before[name])  # NaN is not NaN


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([1700000000123456789], pa.timestamp("ns")), "2023-11-14T22:13:20.123456789"),
        (pa.array([1700000000123456789], pa.timestamp("ns", "Europe/Berlin")), "2023-11-14T22:13:20.123456789Z"),
        (pa.array([253402300805], pa.timestamp("s")), "10000-01-01T00:00:05"),
        (pa.array([1001], pa.duration("ns")), "PT0.000001001S"),
        (pa.array([-1500], pa.duration("ms")), "-PT1.500S"),
        (pa.array([90], pa.duration("s")), "PT90S"),
        (pa.array([1001], pa.time64("ns")), "00:00:00.000001001"),
        (pa.array([datetime.date(2020, 1, 2)]), "2020-01-02"),
        (pa.array([decimal.Decimal("1.20")]), "1.20"),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([UUID.bytes], pa.binary(16))), str(UUID)),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array([7]).dictionary_encode(), 7),
        (pa.array([[0], [123]], pa.list_(pa.timestamp("ns"))).slice(1), ["1970-01-01T00:00:00.000000123"]),
        (pa.array([{"a": [datetime.date(2020, 1, 2)]}]), {"a": ["2020-01-02"]}),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())), [{"key": "k", "value": 1}]),
        (pa.array([[0.5, float("nan")]]), [0.5, None]),
        (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_what_text_makes_of_a_value(tmp_path: Path, array: pa.Array, expected: object, suffix: str) -> None:
    table = pa.table({"path": ["a"], "x": array})
    write_output(tmp_path / f"s{suffix}", check_columns(table.schema, tmp_path / f"s{suffix}"), [table], 1)
    found = pa.concat_tables(read_output(tmp_path / f"s{suffix}", ["path"]))["x"][0].as_py()
    if suffix == ".csv":
        found, expected = str(found), expected if isinstance(expected, str) else json.dumps(expected)
    assert found == expected


@pytest.mark.parametrize(
    ("array", "suffixes"),
    [
        (pa.array([b"x"]), (".csv", ".jsonl")),
        (pa.array([[b"x"]]), (".csv", ".jsonl")),
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), SUFFIXES),
        (pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]), SUFFIXES),
    ],
)
def test_what_a_format_cannot_hold(tmp_path: Path, array: pa.Array, suffixes: tuple[str, ...]) -> None:
    for suffix in suffixes:
        with pytest.raises(UsageError, match=rf"^{suffix} cannot hold column `x` \(.*; leave it out"):
            check_columns(pa.schema([("x", array.type)]), tmp_path / f"s{suffix}")
    twice = pa.schema([("x", pa.int8()), ("x", pa.int8())])
    with pytest.raises(UsageError, match="more than one column named x"):
        check_columns(twice, tmp_path / "s.jsonl")


def test_large_numbers_within_others_come_back_from_jsonl(tmp_path: Path) -> None:
    carried = [{"n": 2**63, "l": [2**64 - 1]}, {"n": 0, "l": None}, None]
    rows = [{"path": f"{number}.jpg", "carried": one} for number, one in enumerate(carried)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pa.concat_tables(read_output(tmp_path / "s.jsonl", ("path",)))["carried"].to_pylist() == carried
