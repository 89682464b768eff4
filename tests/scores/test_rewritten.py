"""Scores files that other programs have rewritten, or people, given to everything that reads them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiqa_trt.analysis.evaluation import read_rated
from fiqa_trt.analysis.explain import read_distribution
from fiqa_trt.analysis.report import survey
from fiqa_trt.curation.delivery import write_rows, write_shards
from fiqa_trt.curation.kept import Kept
from fiqa_trt.curation.select import Amount, Rules, select
from fiqa_trt.errors import InputError, UsageError
from fiqa_trt.inputs.source import Source
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.runs.retry import retry_failed
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scores.files import SUFFIXES, read_output, write_output
from fiqa_trt.scores.files.reading import UNKNOWN
from fiqa_trt.scores.schema import own_columns, own_types
from tests.helpers import mean_executor

OWN = own_columns(MEMBERS)
INT96 = {"use_deprecated_int96_timestamps": True}
TEXTS = ("path", "status", "error")
NUMBERS = tuple(name for name in OWN if name not in (*TEXTS, "modified"))


def cast(table: pa.Table, kind: pa.DataType, *names: str) -> pa.Table:
    for name in names:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))
    return table.replace_schema_metadata(None)


def categories(table: pa.Table, *names: str) -> pa.Table:
    for name in names:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].dictionary_encode())
    return table.replace_schema_metadata(None)


def with_nan(table: pa.Table) -> pa.Table:
    for name in NUMBERS:
        values = table[name].cast(pa.float64()).fill_null(float("nan"))
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table.replace_schema_metadata(None)


def pandas(table: pa.Table, path: Path, **options: object) -> None:
    frame = table.to_pandas()
    for name in options.pop("categories", ()):  # type: ignore[attr-defined]
        frame[name] = frame[name].astype("category")
    frame["new"] = frame["score"] > 0.5
    frame.index = [f"row {i}" for i in range(len(frame))]
    writers = {".parquet": frame.to_parquet, ".csv": frame.to_csv}
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True, date_format="iso", date_unit="us")
    else:
        writers[path.suffix](path, **options)


def polars(table: pa.Table, path: Path, **options: object) -> None:
    frame = pytest.importorskip("polars").from_arrow(table)
    import polars as pl

    frame = frame.with_columns(pl.col("status").cast(pl.Categorical), pl.col("error").cast(pl.Categorical))
    writers = {".parquet": frame.write_parquet, ".csv": frame.write_csv, ".jsonl": frame.write_ndjson}
    writers[path.suffix](path, **options)


def duckdb(table: pa.Table, path: Path) -> None:
    connection = pytest.importorskip("duckdb").connect()
    connection.register("scores", table)
    options = {".parquet": "format parquet", ".csv": "format csv, header", ".jsonl": "format json"}[path.suffix]
    connection.execute(f"copy (select *, list_value(1, 2) as l from scores) to '{path}' ({options})")


def parquet(change: Callable[[pa.Table], pa.Table], **options: object) -> Callable[[pa.Table, Path], None]:
    return lambda table, path: pq.write_table(change(table), path, **options)


def excel(table: pa.Table, path: Path) -> None:
    """Byte order mark, semicolons and decimal commas, as a German one saves it."""
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(table.column_names)
        for row in table.to_pylist():
            writer.writerow([str(v).replace(".", ",") if isinstance(v, float) else v for v in row.values()])


def text_csv(**changes: str) -> Callable[[pa.Table, Path], None]:
    """Everything quoted, numbers as others print them."""

    def write(table: pa.Table, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator=changes.get("end", "\n"))
            writer.writerow(table.column_names)
            for row in table.to_pylist():
                for name in NUMBERS:
                    row[name] = changes["nothing"] if row[name] is None else f" {float(row[name])!r}"
                writer.writerow(row.values())

    return write


REWRITTEN: dict[str, tuple[str, Callable[[pa.Table, Path], None]]] = {
    "large strings": (".parquet", parquet(lambda t: cast(t, pa.large_string(), *TEXTS))),
    "string views": (".parquet", parquet(lambda t: cast(t, pa.string_view(), *TEXTS))),
    "binary text": (".parquet", parquet(lambda t: cast(t, pa.binary(), *TEXTS))),
    "categories": (".parquet", parquet(lambda t: categories(t, *TEXTS))),
    "categories of numbers": (".parquet", parquet(lambda t: categories(t, "width"))),
    "float64": (".parquet", parquet(lambda t: cast(t, pa.float64(), *NUMBERS))),
    "float16": (".parquet", parquet(lambda t: cast(t, pa.float16(), "score", *(f"score_{m}" for m in MEMBERS)))),
    "int64 sides": (".parquet", parquet(lambda t: cast(t, pa.int64(), "width", "height"))),
    "uint16 sides": (".parquet", parquet(lambda t: cast(t, pa.uint16(), "width", "height"))),
    "NaN": (".parquet", parquet(with_nan)),
    "numbers as text": (".parquet", parquet(lambda t: cast(t, pa.string(), *NUMBERS))),
    "other order": (".parquet", parquet(lambda t: t.select(OWN[::-1]))),
    "one row a group": (".parquet", parquet(lambda t: t, row_group_size=1)),
    "old timestamps": (".parquet", parquet(
        lambda t: t.append_column("at", pa.array([0] * len(t), pa.timestamp("ns"))), **INT96
    )),
    "list of floats": (".parquet", parquet(lambda t: t.append_column("emb", pa.array([[0.1, 0.2]] * len(t))))),
    "pandas": (".parquet", pandas),
    "pandas categories": (".parquet", lambda t, p: pandas(t, p, categories=("path", "status"))),
    "pandas csv": (".csv", pandas),
    "pandas csv of NaN": (".csv", lambda t, p: pandas(t, p, na_rep="NaN", float_format="%.9f", quoting=2)),
    "pandas json": (".jsonl", pandas),
    "polars": (".parquet", polars),
    "polars, old": (".parquet", lambda t, p: polars(t, p, use_pyarrow=True)),
    "polars csv": (".csv", polars),
    "polars json": (".jsonl", polars),
    "duckdb": (".parquet", duckdb),
    "duckdb csv": (".csv", duckdb),
    "duckdb json": (".jsonl", duckdb),
    "excel": (".csv", excel),
    "tabs": (".csv", lambda t, p: pa_csv.write_csv(t, p, pa_csv.WriteOptions(delimiter="\t"))),
    "quoted": (".csv", text_csv(nothing="")),
    "NA": (".csv", text_csv(nothing="NA", end="\r\n")),
    "None": (".csv", text_csv(nothing="None")),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output as score writes it, of images that are gone."""
    path = tmp_path_factory.mktemp("plain") / "s.parquet"
    bad = np.array([False, False, True, False, True, False])
    score = np.array([0.25, 0.5, 0, 0.75, 0, 0.1], np.float32)
    members = [pa.array(score, mask=bad), pa.array(score / 2, pa.float32(), mask=bad)]
    sides = pa.array([224, 300, 0, 224, 0, 100], pa.int32(), mask=bad)
    columns = [
        pa.array([f"/d/{'ab'[i % 2]}/{i}, \"x\".jpg" for i in range(6)]),
        pa.array(score, mask=bad), *members, sides, sides,
        pa.array(["corrupt" if each else "ok" for each in bad]),
        pa.array(["broken, \"quoted\"" if each else None for each in bad]),
        pa.array([8_192] * 6, pa.int64(), mask=bad),
        pa.array([1_700_000_000_123_456] * 6, pa.timestamp("us"), mask=bad),
    ]  # fmt: skip
    schema = pa.schema(list(own_types(MEMBERS).items()))
    write_output(path, schema, [pa.table(columns, schema=schema)], 6)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", REWRITTEN)
def test_rewritten_files_read_as_written(plain: Path, tmp_path: Path, name: str) -> None:
    suffix, rewrite = REWRITTEN[name]
    original, path = pq.read_table(plain), tmp_path / f"s{suffix}"
    rewrite(original, path)
    read = pa.concat_tables(read_output(path, OWN)).select(OWN)
    assert dict(zip(read.schema.names, read.schema.types, strict=True)) == own_types(MEMBERS)
    rough = 1e-3 if name == "float16" else 1e-7
    for here, there in zip(read.to_pylist(), original.to_pylist(), strict=True):
        here["error"] = here["error"] or None  # text that is empty, or is not there: not all formats tell
        assert here == {key: pytest.approx(v, abs=rough) if isinstance(v, float) else v for key, v in there.items()}
    rules = Rules(min_score=0.2, max_disagreement=0.5, per_group=Amount(2), keep_at_least=1, group_by="parent")
    chosen = select(path, rules)
    assert (chosen.mask == select(plain, rules).mask).all()
    for group_by in ("status", "width", "score"):
        select(path, Rules(keep=Amount(3), per_group=Amount(1), group_by=group_by))
        survey(path, group_by=group_by, sheet=0)
    for other in (*SUFFIXES, ".txt"):
        write_rows(Kept(path, chosen.mask), tmp_path / f"kept{other}")
    assert (survey(path, sheet=0).statuses, len(read_distribution(path).scores)) == ({"ok": 4, "corrupt": 2}, 4)
    write_shards(Kept(path, chosen.mask), tmp_path / "shards.tar")
    labels = tmp_path / "labels.csv"
    pa_csv.write_csv(original.select(["path"]).append_column("score", pa.array([1] * 6)), labels)
    assert read_rated(path, labels).failed == 2


@pytest.mark.parametrize("name", REWRITTEN)
def test_rewritten_files_as_lists_and_retried(plain: Path, tmp_path: Path, name: str) -> None:
    suffix, rewrite = REWRITTEN[name]
    path = tmp_path / f"s{suffix}"
    rewrite(pq.read_table(plain), path)
    if suffix == ".parquet":
        with pytest.raises(InputError, match="does not say which model its scores are from"):
            retry_failed(path, mean_executor)
    else:
        summary = retry_failed(path, mean_executor)
        assert (summary.images, summary.statuses, summary.scored_now) == (6, {"ok": 4, "missing": 2}, 2)
        assert pa.concat_tables(read_output(path, OWN)).num_rows == 6
    if suffix == ".jsonl" or name in ("excel", "tabs"):
        return  # not lists
    out = tmp_path / "again.parquet"
    assert score_dataset(Source(list_file=str(path)), out, mean_executor).statuses == {"missing": 6}


def rows(path: Path) -> list[dict[str, object]]:
    return list(pa.concat_tables(read_output(path, ["path"])).to_pylist())


def test_rows_that_do_not_agree_with_themselves(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(
        "path,score,status,width\na,0.5,ok,1\nb,,ok,2\nc,0.9,corrupt,3\nd,0.7,,4\ne,0.4,from_a_later_version,5\nf,nan,ok,6\n"
    )
    found = [(row["path"], row["score"], row["status"]) for row in rows(path)]
    assert found == [
        ("a", 0.5, "ok"), ("b", None, UNKNOWN), ("c", None, "corrupt"), ("d", None, UNKNOWN),
        ("e", None, "from_a_later_version"), ("f", None, UNKNOWN),
    ]  # fmt: skip
    assert select(path, Rules(keep=Amount(9))).kept == 1
    page = survey(path, sheet=0)
    assert (page.images, page.scored, page.statuses[UNKNOWN]) == (6, 1, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,score,status\na,7,ok\n", "a score of 7, not from 0 to 1"),
        ("path,score,status\na,-0.1,ok\n", "a score of -0.1, not from 0 to 1"),
        ("path,score,status\na,inf,ok\n", "a score of inf, not from 0 to 1"),
        ("path,score,status\na,good,ok\n", "the column `score`"),
        ("path,score,status,width\na,1,ok,1.5\n", "the column `width`"),
        ("path,score,status,width\na,1,ok,9999999999\n", "the column `width`"),
        ("path,score\na,0.5\n", "it has no column status"),
        ("file,score,status\na,0.5,ok\n", "it has no column path"),
        ("path,score,status,path\na,0.5,ok,b\n", "more than one column named path"),
        ("path,score,status\n,0.5,ok\n", "a row has no path"),
        ("path,score,status\na,0.5\n", "Expected 3 columns"),
        ("", "cannot be read|no column path"),
        ("\0\0", "no column path|NUL|Empty CSV"),
    ],
)
def test_what_cannot_be_scores_is_said_in_a_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(content)
    readers: list[Callable[[], object]] = [
        lambda: select(path, Rules(keep=Amount(1))), lambda: survey(path, sheet=0), lambda: read_distribution(path),
    ]  # fmt: skip
    for read in readers:
        with pytest.raises(InputError, match=message):
            read()


def test_other_encodings_are_said_in_a_line(tmp_path: Path) -> None:
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "s.csv").write_text("path,score,status\n\u00e9,0.5,ok\n", encoding)
        with pytest.raises(InputError, match=r"s\.csv cannot be read: "):
            select(tmp_path / "s.csv", Rules(keep=Amount(1)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_without_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"s{suffix}"
    schema = pa.schema(list(own_types(MEMBERS).items()))
    write_output(path, schema, [], 0)
    if suffix == ".jsonl":
        path.write_text("\n")
    for read in (lambda: select(path, Rules(keep=Amount(1), per_group=Amount(1))), lambda: survey(path, sheet=0)):
        with pytest.raises(InputError, match=r"has no rows|no column path"):
            read()


@pytest.mark.slow
@pytest.mark.parametrize("length", [1_000_000, 2_500_000, 20_000_000])
def test_text_of_any_length(crops: Path, tmp_path: Path, length: int) -> None:
    paths = sorted(str(path) for path in crops.rglob("*.jpg"))
    notes = ["short"] * 10
    notes[4], notes[8] = "x" * length, "y\n" * (length // 2)
    pq.write_table(pa.table({"path": paths, "note": notes}), tmp_path / "l.parquet")
    for suffix in (".csv", ".jsonl"):
        out = tmp_path / f"s{suffix}"
        (crops / "b" / "9.jpg").unlink(missing_ok=True)
        assert score_dataset(Source(list_file=str(tmp_path / "l.parquet")), out, mean_executor).failed == 1
        assert [row["note"] for row in rows(out)] == notes
        (crops / "b" / "9.jpg").write_bytes(Path(paths[0]).read_bytes())
        assert retry_failed(out, mean_executor).failed == 0
        assert [row["note"] for row in rows(out)] == notes
        assert score_dataset(Source(list_file=str(tmp_path / "l.parquet")), out, mean_executor).scored_now == 0
    again = score_dataset(Source(list_file=str(tmp_path / "s.csv")), tmp_path / "t.csv", mean_executor)
    assert (again.failed, [row["note"] for row in rows(tmp_path / "t.csv")]) == (0, notes)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=1, max_size=30), st.integers(16, 60))
def test_blocks_that_are_too_small_lose_nothing(tmp_path: Path, notes: list[str], block: int) -> None:
    """Rows come once and in order, wherever the blocks had to grow."""
    notes = [note * 7 for note in notes]
    table = pa.table({"path": [str(i) for i in range(len(notes))], "note": notes})
    write_output(tmp_path / "s.csv", table.schema, [table], len(notes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fiqa_trt.inputs.delimited._BLOCK", block)
        assert [row["note"] for row in rows(tmp_path / "s.csv")] == notes


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["x", "y", None, "x", "y", "z"]).dictionary_encode(),
        pa.array([1, 2, None, 1, 2, 3]).dictionary_encode(),
        pa.array(["x", "y", None, "x", "y", "z"], pa.string_view()),
        pa.array([0.5, None, float("nan"), 1, 2, 3]),
        pa.array([0, 1, 2, None, 2**62, 5], pa.timestamp("us", "Europe/Berlin")),
        pa.array([0, 1, 2, None, 4, 5], pa.duration("ns")),
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)] * 6, pa.binary(16))),
        pa.array([True, False, None, True, True, True]),
        pa.nulls(6),
    ],
)
def test_groups_of_any_type(plain: Path, tmp_path: Path, column: pa.Array) -> None:
    path = tmp_path / "s.parquet"
    pq.write_table(pq.read_table(plain).append_column("g", column), path)
    select(path, Rules(per_group=Amount(1), group_by="g"))
    assert survey(path, sheet=0, group_by="g").group_count >= 1


def test_groups_that_cannot_be(plain: Path, tmp_path: Path) -> None:
    table = pq.read_table(plain).append_column("g", pa.array([b"\xff"] * 6)).append_column("l", pa.array([[1]] * 6))
    pq.write_table(table, tmp_path / "s.parquet")
    with pytest.raises(UsageError, match="--group-by g: a column of binary names no groups"):
        select(tmp_path / "s.parquet", Rules(per_group=Amount(1), group_by="g"))


def test_pandas_metadata_does_not_outlive_its_types(plain: Path, tmp_path: Path) -> None:
    frame = pq.read_table(plain).to_pandas()
    frame["status"] = frame["status"].astype("category")
    frame.to_parquet(tmp_path / "s.parquet")
    write_rows(Kept(tmp_path / "s.parquet", np.ones(6, bool)), tmp_path / "k.parquet")
    assert (pytest.importorskip("pandas").read_parquet(tmp_path / "k.parquet")["status"] == frame["status"]).all()
