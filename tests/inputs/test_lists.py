import csv
import gzip
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiqa_trt.curation.delivery import write_rows
from fiqa_trt.curation.kept import Kept
from fiqa_trt.errors import InputError
from fiqa_trt.inputs.address import as_path
from fiqa_trt.inputs.lists import as_line, read_paths
from fiqa_trt.inputs.source import Source, check_source, list_inputs
from fiqa_trt.inputs.user_tables import read_columns
from fiqa_trt.outcomes import ImageError, Status
from tests.helpers import read_file

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
ENDS = ("\n", "\r\n", "\r")
names = st.text(st.characters(codec="utf-8", exclude_characters='\0\r\n"\ufeff'), min_size=1, max_size=20)
plain = names.filter(lambda name: not set(",;\t|") & set(name))


def listed(file: Path, **options: object) -> dict[str, list[object]]:
    batches = list_inputs(Source(list_file=str(file), **options))  # type: ignore[arg-type]
    return dict(pa.Table.from_batches(batches).to_pydict())


def text(data: bytes) -> list[str]:
    return list(read_paths(io.BytesIO(data), "l.txt"))


@pytest.mark.slow
@given(st.lists(plain, min_size=1), st.sampled_from(ENCODINGS), st.sampled_from(ENDS), st.booleans())
def test_a_text_in_any_encoding(rows: list[str], encoding: str, end: str, closed: bool) -> None:
    assert text((end.join(rows) + end * closed).encode(encoding)) == rows


@pytest.mark.slow
@given(st.lists(plain, min_size=1), st.sampled_from(["utf-16-be", "utf-16-le", "utf-32-be", "utf-32-le"]))
def test_either_byte_order(rows: list[str], encoding: str) -> None:
    assert text(("\ufeff" + "\n".join(rows)).encode(encoding)) == rows


@pytest.mark.slow
@given(st.lists(st.binary(min_size=1).filter(lambda raw: not set(raw) & set(b'\0\r\n"')), min_size=1))
def test_bytes_in_no_encoding_stay_the_bytes_of_names(rows: list[bytes]) -> None:
    data = b"first\n" + b"\n".join(rows)
    assert [os.fsencode(as_path(path)) for path in text(data)[1:]] == [
        row if not row.startswith(b"file:") else os.fsencode(as_path(row.decode(errors="surrogateescape")))
        for row in rows
    ]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1), min_size=1))
def test_what_is_written_as_lines_is_read_back(rows: list[str]) -> None:
    paths = [row for row in rows if not row.startswith("file:")]
    read = text("\n".join(["first", *map(as_line, paths)]).encode())
    assert [as_path(path) for path in read] == ["first", *paths]
    assert [as_path(path) for path in text("\n".join(map(as_line, paths)).encode())] == paths


def test_a_path_like_the_head_of_a_table_is_read_back() -> None:
    assert [as_path(path) for path in text(as_line("image,mos").encode())] == ["image,mos"]


def test_lines_are_taken_as_they_stand_but_for_quotes_and_blanks() -> None:
    data = b'"a b.jpg"\n\n""\n"say ""x"".jpg"\n"a.jpg","b.jpg"\n" \n c.jpg \r\n'
    assert text(data) == ["a b.jpg", 'say "x".jpg', '"a.jpg","b.jpg"', '" ', " c.jpg "]
    assert text(b"Icon\r\r\na\rb\n") == ["Icon", "a\rb"]


@pytest.mark.parametrize("length", [1 << 16, (1 << 16) - 1, 200_000])
@pytest.mark.parametrize("end", ENDS)
def test_lists_longer_than_what_is_read_at_once(length: int, end: str) -> None:
    rows = [f"{number}/ä.jpg" for number in range(length // 10)]
    for encoding in ENCODINGS:
        assert text(end.join(rows).encode(encoding)) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"a.jpg\n", mtime=0), r"is compressed \(gzip\): unpack it first"),
        (b"PK\3\4rest", "an Excel workbook"),
        ("a.jpg\nb.jpg\n".encode("utf-16-le"), "holds NUL bytes"),
        (b"a.jpg\0b.jpg\0", "holds NUL bytes"),
        (b"a.jpg\n" * 20_000 + b"\0\0\0", "holds NUL bytes"),
        (b"\xff\xfea\0\n", "as txt"),
        (b"\xff\xfe\0\xd8\n\0", "as txt"),
        (b"x" * (2 << 20), "a line of more than 1 MB"),
        ("path\tid\na.jpg\t1\n".encode("utf-16"), "a table with a column `path`"),
        (b'"id","path"\n1,a.jpg\n', "a table with a column `path`"),
        (b"path;id\r\na.jpg;1\r\n", "a table with a column `path`"),
        (b"Image Name,mos\na.jpg,1\n", "a table with a column `Image Name`"),
    ],
)
def test_texts_that_are_no_lists(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "l.txt").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        listed(tmp_path / "l.txt")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(st.tuples(names, names), min_size=1),
    st.sampled_from(ENCODINGS),
    st.sampled_from(ENDS),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_a_csv_however_it_is_written(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    encoding: str,
    end: str,
    separator: str,
    quoting: int,
) -> None:
    written = io.StringIO()
    writer = csv.writer(written, delimiter=separator, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([("id", "path"), *rows])
    file = tmp_path_factory.getbasetemp() / "any.csv"
    file.write_bytes(written.getvalue().encode(encoding))
    assert listed(file) == {"path": [row[1] for row in rows], "id": [row[0] for row in rows]}
    assert read_columns(file, ("path",)) == {"id": [row[0] for row in rows], "path": [row[1] for row in rows]}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_csv_longer_than_what_is_read_at_once(tmp_path: Path, encoding: str) -> None:
    file, rows = tmp_path / "l.csv", [f"{number:0100}.jpg" for number in range(100_000)]
    file.write_bytes("\n".join(["path", *rows]).encode(encoding))
    assert listed(file) == {"path": rows}


def test_tab_separated_and_quoted_headers(tmp_path: Path) -> None:
    (tmp_path / "l.tsv").write_bytes(b'"id"\t"path"\n007\ta, b.jpg\n')
    assert listed(tmp_path / "l.tsv") == {"path": ["a, b.jpg"], "id": ["007"]}
    (tmp_path / "one.csv").write_bytes(b"path\na;b.jpg\n\nc.jpg")
    assert listed(tmp_path / "one.csv") == {"path": ["a;b.jpg", "c.jpg"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", b"path", "no paths in"),
        ("l.csv", b'\xef\xbb\xbf"path","id"\r\n', "no paths in"),
        ("l.csv", b"name;id\na.jpg;1\n", r"no column `path`, only: name, id \(separated by `;`\); --path-column says"),
        ("l.csv", b"file;Image Path\na.jpg;1\n", "no column `path` but file and Image Path: --path-column says which"),
        ("l.csv", b"a.jpg\nb.jpg\n", "no column `path`, only: a.jpg; its first row must name the columns"),
        ("l.csv", b"p/a,x\np/b,x\n", "its first row must name the columns"),
        ("l.csv", b"caf\xe9,path\n1,a.jpg\n", "invalid UTF8 data in its first row; save it in UTF-8"),
        ("l.csv", b"sep=;\r\npath;x\r\na;1\r\n", "its first row must name the columns"),
        ("l.csv", b'path\n"a.jpg\nb.jpg\nc.jpg\n', "a quotation mark that is never closed"),
        ("l.csv", b'id,path\n1,"a.jpg\n2,b.jpg\n', "a quotation mark that is never closed"),
        ("l.csv", "path,id\na.jpg,1\n".encode("utf-16-le"), "holds NUL bytes"),
        ("l.csv", b"path\n" + b"a.jpg\n" * 20_000 + b"\0\n", "holds NUL bytes"),
        ("l.csv", gzip.compress(b"path\na.jpg\n", mtime=0), "compressed"),
        ("l.csv.gz", b"x", "is no list .*: unpack it first"),
        ("l.xlsx", b"x", "is no list .*: save it as .csv first"),
        ("l.jsonl", b"x", "is no list .*: write its paths as .csv or .parquet first"),
        ("l.zip", b"x", "is no list"),
        ("l.tar", b"x", "give it as INPUT"),
        ("l", b"x", "cannot tell what kind of list"),
        ("l.parquet", b"x", "as parquet"),
    ],
)
def test_files_that_are_no_lists(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        listed(tmp_path / name)
    assert "\n" not in str(caught.value)
    if "is no list" in message or "what kind" in message:
        with pytest.raises(InputError, match=message):
            check_source(Source(list_file=str(tmp_path / name)), tmp_path / "o.parquet")


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_parquet_paths_of_every_type(tmp_path: Path, views: bool, raw: bool) -> None:
    file, values = tmp_path / "l.parquet", ["a.jpg", None, "ß.jpg"]
    kinds = (
        [pa.binary(), pa.large_binary(), pa.binary_view()]
        if raw
        else [pa.string(), pa.large_string(), pa.string_view()]
    )
    for kind in kinds:
        column = pa.array([v.encode() if raw and v is not None else v for v in values], kind)
        if views and kind not in (pa.binary_view(), pa.string_view()):
            column = column.dictionary_encode()
        pq.write_table(pa.table({"path": column}), file)
        assert listed(file) == {"path": ["a.jpg", "", "ß.jpg"]}


def test_parquet_paths_that_are_not_utf8(tmp_path: Path) -> None:
    file, raw = tmp_path / "l.parquet", pa.array([b"a\xff.jpg", b"b.jpg"])
    for column in (raw, pa.Array.from_buffers(pa.string(), 2, raw.buffers())):
        pq.write_table(pa.table({"path": column}), file)
        assert listed(file) == {"path": ["file:a%FF.jpg", "b.jpg"]}
    pq.write_table(pa.table({"path": ["a", "b"], "id": pa.Array.from_buffers(pa.string(), 2, raw.buffers())}), file)
    with pytest.raises(InputError, match=r"cannot read .*Invalid UTF8"):
        listed(file)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"path": pa.nulls(2)}), "l.parquet: the column `path` holds null"),
        (pa.table({"path": [{"bytes": b"x"}]}), "holds struct"),
        (pa.table({"path": [["a.jpg"]]}), "holds list"),
        (pa.table({"image": [{"path": "a.jpg"}]}), "the column `image` holds struct.*is given as INPUT"),
        (
            pa.table({"image": [b"\xff\xd8\xff\xe0\0\x10"]}),
            "`image` holds images, not paths; .* as INPUT",
        ),
        (pa.table({"jpg": [b"x"], "key": ["a"]}), "no column `path`, only: jpg, key; --path-column says which"),
        (pa.table([["a.jpg"], ["b.jpg"]], names=["path", "path"]), "more than one column named path"),
        (pa.table([["a.jpg"], ["b.jpg"], [1]], names=["path", "x", "x"]), "more than one column named x"),
        (pa.table({"path": pa.array([], pa.string())}), "no paths in"),
        (pa.table({}), "no column `path`, only: none"),
    ],
)
def test_parquet_that_is_no_list(tmp_path: Path, table: pa.Table, message: str) -> None:
    pq.write_table(table, tmp_path / "l.parquet")
    with pytest.raises(InputError, match=message) as caught:
        listed(tmp_path / "l.parquet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["image", "Filename", "IMAGE PATH", "file-name"])
def test_columns_of_paths_as_people_call_them(tmp_path: Path, column: str) -> None:
    said = list[str]()
    (tmp_path / "l.csv").write_text(f"id;{column};mos\n007;b.jpg;1,5\n", encoding="utf-16")
    pq.write_table(pa.table({"id": ["007"], column: [b"b.jpg"], "mos": ["1,5"]}), tmp_path / "l.parquet")
    for name in ("l.csv", "l.parquet"):
        batches = list_inputs(Source(list_file=str(tmp_path / name)), said.append)
        assert pa.Table.from_batches(batches).to_pydict() == {"path": ["b.jpg"], "id": ["007"], "mos": ["1,5"]}
        assert said.pop() == f"{tmp_path / name}: the paths are in the column `{column}`"
    (tmp_path / "l.csv").write_text("image,path\n1,b.jpg\n")  # our own name before any other, and without a word
    assert dict(pa.Table.from_batches(list_inputs(Source(list_file=str(tmp_path / "l.csv")), said.append)).to_pydict())
    assert not said


def test_blanks_behind_separators_are_none_of_a_path(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"id, path, x\n1, a.jpg, 1\n2,  \xff.jpg,2\n3,c.jpg,3\n")
    assert listed(tmp_path / "l.csv") == {
        "path": ["a.jpg", "file:%20%FF.jpg", "c.jpg"], "id": ["1", "2", "3"], " x": [" 1", "2", "3"]
    }  # fmt: skip


def test_a_column_of_paths_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"path,input_path,name,image\nx,y,a\xff.jpg,z\n")
    found = listed(tmp_path / "l.csv", path_column="name")
    assert found == {"path": ["file:a%FF.jpg"], "input_input_path": ["x"], "input_path": ["y"], "image": ["z"]}
    with pytest.raises(InputError, match="no column `nome`, only: path, input_path, name, image"):
        check_source(Source(list_file=str(tmp_path / "l.csv"), path_column="nome"), tmp_path / "o.parquet")
    (tmp_path / "l.txt").write_text("a.jpg\n")
    with pytest.raises(InputError, match=r"--path-column name: .*l\.txt has a path a line, and no columns"):
        listed(tmp_path / "l.txt", path_column="name")
    with pytest.raises(InputError, match="--path-column name: it is a column of --list"):
        Source((str(tmp_path),), path_column="name")


def test_whole_tables(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('path;score\na.jpg;0.5\n"";\n', encoding="utf-16")
    assert read_columns(tmp_path / "t.csv", ("path", "score")) == {"path": ["a.jpg", None], "score": ["0.5", None]}
    pq.write_table(pa.table({"path": ["a", "b"], "n": [0, None]}), tmp_path / "t.parquet")
    assert read_columns(tmp_path / "t.parquet", ("path",)) == {"path": ["a", "b"], "n": [0, None]}
    (tmp_path / "head.csv").write_text("path,score\n")
    for name, message in (("head.csv", "has no rows"), ("t.xlsx", "cannot tell"), ("gone.csv", "No such file")):
        with pytest.raises(InputError, match=message):
            read_columns(tmp_path / name, ("path",))


def test_a_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "l.csv")  # opening it would wait for ever
    (tmp_path / "d.csv").mkdir()
    for name in ("l.csv", "d.csv"):
        with pytest.raises(InputError, match="a table must be a file"):
            listed(tmp_path / name)


def test_a_delivered_text_is_read_back(tmp_path: Path) -> None:
    paths = ['"quoted".jpg', '"all of it"', "\ufeffmarked.jpg", "plain.jpg"]
    rows = {"path": paths, "score": pa.array([0.5] * 4, pa.float32()), "status": ["ok"] * 4}
    pq.write_table(pa.table(rows), tmp_path / "scores.parquet")
    write_rows(Kept(tmp_path / "scores.parquet", np.ones(4, bool)), tmp_path / "kept.txt")
    assert [as_path(str(path)) for path in listed(tmp_path / "kept.txt")["path"]] == paths


def test_standard_input_is_read_like_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    data = 'a.jpg\r\n"b c.jpg"\r\n'.encode("utf-16")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert [p for batch in list_inputs(Source(("-",))) for p in batch.column(0).to_pylist()] == ["a.jpg", "b c.jpg"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(b"a", mtime=0))))
    with pytest.raises(InputError, match="standard input is compressed"):
        list(list_inputs(Source(("-",))))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"image,mos\na.jpg,1\n")))
    with pytest.raises(
        InputError, match=r"standard input is a table with a column `image`.*: give it to --list as \.csv"
    ):
        list(list_inputs(Source(("-",))))
    with pytest.raises(InputError, match="paths on standard input are INPUT, without --list"):
        check_source(Source(list_file="-"), Path("o.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["<&-", "0>nowhere"])
def test_standard_input_that_cannot_be_read(tmp_path: Path, redirection: str) -> None:
    command = f'exec "$0" -m fiqa_trt score - -o out.parquet --device cpu {redirection}'
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        ["sh", "-c", command, sys.executable],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "standard input" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


ADDRESSES = [
    "FTP://example.invalid/a.jpg?" + "x" * 5000,
    "https:/example.invalid/a.jpg",
    "hdfs://server/a.jpg",
    "hdfs://server/shard.tar::a.jpg",
    "hdfs://server/shard.tar",
    "hdfs://server/a.parquet::3",
    "memory://a/b/c.jpg",
    "zip://a.jpg::/data/x.zip",
    "file://server/share/a.jpg",
    "data:image/jpeg;base64,AAAA",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    from fiqa_trt.inputs.reader import ContainerReader, read_recorded

    monkeypatch.chdir(tmp_path)
    found = read_recorded(address, ContainerReader())
    assert isinstance(found, ImageError)
    assert found.outcome.status is Status.UNSUPPORTED
    assert "mount it, or copy it here" in (found.outcome.error or "")
    for source in (Source((address,)), Source(list_file=address)):
        with pytest.raises(InputError, match=r"cannot read .*mount it, or copy it here"):
            check_source(source, tmp_path / "o.parquet")


def test_files_with_names_like_addresses_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http:/example.invalid/a.jpg", "data:x"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")
        assert read_file(name) == b"x"
    for missing in ("a:b.jpg", "/x:/y.jpg", "C:/faces/a.jpg", "gone.jpg", "run1:/a.jpg"):
        with pytest.raises(ImageError) as caught:
            read_file(missing)
        assert caught.value.outcome.status is Status.MISSING


def test_file_uris_as_input_say_the_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"INPUT takes paths as they are \(/data/a b\.jpg\)"):
        check_source(Source(("file:///data/a%20b.jpg",)), tmp_path / "o.parquet")


def test_a_list_given_as_input_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "faces.csv").write_text("path\na.jpg\n")
    with pytest.raises(InputError, match="a list of images is given with --list"):
        check_source(Source((str(tmp_path / "faces.csv"),)), tmp_path / "o.parquet")
    # Of several inputs it may be one that `*` has brought along: it has a row, and it is said.
    (tmp_path / "a.jpg").write_bytes(b"x")
    both, said = Source((str(tmp_path), str(tmp_path / "faces.csv"))), list[str]()
    check_source(both, tmp_path / "o.parquet")
    assert sum(batch.num_rows for batch in list_inputs(both, said.append)) == 2
    assert any("faces.csv; a list of images is given with --list" in line for line in said)
