"""Tables of ratings as people have them, given to `eval` and `train`."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiqa_trt.analysis.evaluation import read_rated
from fiqa_trt.cli import group
from fiqa_trt.errors import InputError
from fiqa_trt.inputs.ratings import Form, read_ratings
from fiqa_trt.inputs.whole_tables import Table
from fiqa_trt.training.dataset import read_labels

HEADERS = [("path", "score"), ("image", "mos"), ("Filename", "MOS"), ("File Name", "Mean Opinion Score")]


def rounded(values: npt.NDArray[np.float64]) -> list[float]:
    return [round(value, 4) for value in values.tolist()]  # scores are of single precision


def text(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], separator: str) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=separator).writerows([header, *rows])
    return file.getvalue()


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(HEADERS),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.booleans(),
    st.lists(st.floats(-1e6, 1e6).map(lambda value: round(value, 3)), min_size=1, max_size=20),
)
def test_a_table_is_read_however_it_is_written(
    tmp_path: Path, header: tuple[str, str], separator: str, encoding: str, comma: bool, values: list[float]
) -> None:
    written = [f"{value:.3f}".replace(".", "," if comma else ".") for value in values]
    rows = [(f"ä {index}.jpg", value) for index, value in enumerate(written)]
    (tmp_path / "t.csv").write_bytes(text(header, rows, separator).encode(encoding))
    found = read_ratings(tmp_path / "t.csv")
    assert found.values == pytest.approx(values)
    assert found.paths == [path for path, _ in rows]


def test_columns_can_be_named_and_several_are_not_guessed(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("picture;MOS;rating;score2\na;1,5;2;3\n")
    with pytest.raises(InputError, match=r"no column `path`, only: picture, .*separated by `;`.*--path-column"):
        read_ratings(table)
    with pytest.raises(InputError, match="MOS and rating: --score-column says which"):
        read_ratings(table, Form(path="picture"))
    assert read_ratings(table, Form("picture", ("MOS",))).values == [1.5]
    assert read_ratings(table, Form("picture", ("score2",))).values == [3]
    with pytest.raises(InputError, match="no column `quality`"):
        read_ratings(table, Form("picture", ("quality",)))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("filename;mos\nä.jpg;1\n".encode("cp1252"), "save it in UTF-8"),
        ("filename;mos\na.jpg;1\n".encode("utf-16-le"), "byte-order mark"),
        (b"filename,mos\na.jpg,3,5\n", "a decimal comma, needs quotation marks"),
        (b"a.jpg,3.5\nb.jpg,4\n", "its first row must name the columns"),
    ],
)
def test_what_cannot_be_read_says_the_way_out(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(raw)
    with pytest.raises(InputError, match=message):
        read_ratings(tmp_path / "t.csv")


def test_columns_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path;score;;\na;1,5;;\nb;2;;\n;;;\n")
    found = read_ratings(tmp_path / "t.csv")
    assert (found.paths, found.values.tolist(), set(found.columns)) == (["a", "b"], [1.5, 2], {"path", "score"})


def test_decimals_are_of_one_kind() -> None:
    def numbers(*cells: object) -> list[float]:
        table = Table("t.parquet", {"score": list(cells)}, list(range(len(cells))))
        return [float(value) for value in table.numbers("score")]

    assert numbers("1,5", "2") == [1.5, 2]
    for cells in (["1,5", "2.5"], ["1.234,5"], ["1,234.5"], ["1,2,3"], ["x"], [None], [float("inf")]):
        with pytest.raises(InputError, match=r"t\.parquet, row 1: the score"):
            numbers(*cells)


def test_blank_ratings_are_skipped_on_request_and_rows_of_nothing_always(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,score\na.jpg,1\nb.jpg,\nc.jpg,NA\n,\n,\nd.jpg,2\n")
    with pytest.raises(InputError, match=r"line 3: the score is blank; --skip-blank"):
        read_ratings(table)
    found = read_ratings(table, Form(skip_blank=True))
    assert (found.paths, found.table.blank) == (["a.jpg", "d.jpg"], 2)
    assert [found.table.place(row) for row in range(2)] == ["line 2", "line 7"]
    assert "2 rows with a blank left out" in found.notes()
    table.write_text("path,score\na.jpg,1\n,2\n")
    with pytest.raises(InputError, match="line 3: a row has no path"):
        read_ratings(table)


CELLS = st.sampled_from(["a.jpg", "two\nlines", "three\r\n\r\nlines", "b;c", 'd"e'])


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(CELLS, min_size=1, max_size=6),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.integers(0, 2),
)
def test_a_row_is_named_by_the_line_that_an_editor_shows(
    tmp_path: Path, cells: list[str], separator: str, end: str, encoding: str, gap: int
) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator=end)
    writer.writerow(("path", "score"))
    for cell in cells:
        file.write(end * gap)
        writer.writerow((cell, 1))
    writer.writerow(("here", "x"))
    (tmp_path / "t.csv").write_bytes(file.getvalue().encode(encoding))
    line = 1 + next(at for at, line in enumerate(file.getvalue().splitlines()) if line.startswith("here"))
    with pytest.raises(InputError, match=rf"t\.csv, line {line}: the score 'x' is not"):
        read_ratings(tmp_path / "t.csv")


def test_a_row_of_a_parquet_is_named_by_its_number(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a", "b"], "score": [1.0, None]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet, row 2: the score is blank; --skip-blank"):
        read_ratings(tmp_path / "t.parquet")


def test_the_columns_that_were_taken_are_named(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("image,score,MOS,rating\na,1,2,3\n")
    assert read_ratings(table).notes() == [
        f"columns of {table}: path = image, score = score (not MOS, rating: --score-column takes another)"
    ]
    assert read_ratings(table, Form(scores=("MOS",))).notes() == [f"columns of {table}: path = image, score = MOS"]


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """Scores of `d/p0/0.jpg` to `d/p3/9.jpg`, relative to the folder of the test."""
    rows = [f"d/p{person}/{person}{number}.jpg,0.{person}{number},ok" for person in range(4) for number in range(10)]
    (tmp_path / "s.csv").write_text("\n".join(["path,score,status", *rows]))
    return tmp_path / "s.csv"


def rate(scored: Path, *paths: str) -> Path:
    table = scored.parent / "l.csv"
    table.write_text("\n".join(["path,score", *(f"{path},{index}" for index, path in enumerate(paths))]))
    return table


@pytest.mark.parametrize(
    ("form", "how"),
    [
        ("d/p{0}/{0}{1}.jpg", ""),
        ("./d/p{0}/../p{0}/{0}{1}.jpg", ""),
        ("/elsewhere/d/p{0}/{0}{1}.jpg", "by the end"),
        ("p{0}/{0}{1}.jpg", "by the end"),
        ("/other/q/{0}{1}.jpg", "by the end"),
        ("x\\p{0}\\{0}{1}.jpg", "by the end"),
        ("{0}{1}", "without extension"),
        ("/elsewhere/p{0}/{0}{1}", "without extension"),
    ],
)
def test_images_are_matched_however_their_paths_are_written(scored: Path, form: str, how: str) -> None:
    paths = [form.format(person, number) for person in range(4) for number in range(10)]
    found = read_rated(scored, rate(scored, *paths))
    assert found.scores == pytest.approx(np.arange(40) / 100)
    assert found.ratings.tolist() == list(range(40))
    assert how in " ".join(found.notes[1:])
    assert bool(how) == bool(found.notes[1:])


def test_real_paths(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = scored.parent / "d" / "p1"
    folder.mkdir(parents=True)
    (folder / "11.jpg").touch()
    (scored.parent / "link").symlink_to("d")
    monkeypatch.chdir(scored.parent)
    for path in (folder / "11.jpg", Path("link/p1/11.jpg"), scored.parent / "link" / "p1" / "11.jpg"):
        found = read_rated(scored, rate(scored, os.fspath(path)))
        assert (rounded(found.scores), found.notes[1:]) == ([0.11], ["paths matched: 1 by real path"])


def test_ends_that_fit_several_images_match_none(tmp_path: Path) -> None:
    scores = tmp_path / "s.csv"
    scores.write_text("path,score,status\na/0.jpg,0.1,ok\nb/0.jpg,0.2,ok\nc/1.jpg,0.3,ok\n")
    found = read_rated(scores, rate(scores, "x/0.jpg", "z/b/0.jpg", "1.jpg"))
    assert (rounded(found.scores), found.ratings.tolist(), found.unmatched) == ([0.2, 0.3], [1, 2], 1)
    found = read_rated(scores, rate(scores, "x/1.jpg", "y/1.jpg", "a/0.jpg"))  # which of the two is it?
    assert (rounded(found.scores), found.unmatched) == ([0.1], 2)
    with pytest.raises(InputError, match="--images"):
        read_rated(scores, rate(scores, "x/0.jpg"))


def test_an_image_that_is_rated_twice_counts_once(scored: Path) -> None:
    found = read_rated(scored, rate(scored, "d/p1/11.jpg", "d/p1/12.jpg", "./d/p1/11.jpg", "/q/p1/13.jpg"))
    assert rounded(found.scores) == [0.11, 0.12, 0.13]
    assert found.ratings.tolist() == [1, 1, 3]
    assert "1 image is rated more than once" in found.notes[1]


def test_equal_means_are_equal_whatever_the_order_of_the_ratings(scored: Path) -> None:
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 to the last bit; ranks would be, of what are ties."""
    for scale in (1, 1e-3, 1e6):
        ratings: list[list[float]] = [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.7, 0.1, -0.2], [-5, 0, 0]]
        table = scored.parent / "l.csv"
        rows = [f"d/p1/1{image},{rating * scale:.9g}" for image, own in enumerate(ratings) for rating in own]
        table.write_text("\n".join(["path,score", *rows]))
        found = read_rated(scored, table).ratings
        assert len(set(found.tolist())) == 2
        assert found == pytest.approx(np.array([0.2, 0.2, 0.2, -5 / 3]) * scale, rel=1e-10)


def test_several_columns_of_ratings_are_several_ratings(scored: Path) -> None:
    table = scored.parent / "w.csv"
    table.write_text("path;score;R1;R2;R3\nd/p1/11.jpg;9;1,5;2,5;2\nd/p1/12.jpg;9;1;;4\nd/p1/13.jpg;9;;;\n;;;;\n")
    form = Form(scores=("R1", "R2", "R3"), skip_blank=True)
    found = read_rated(scored, table, form=form)
    assert rounded(found.scores) == [0.11, 0.12]
    assert found.ratings.tolist() == [2, 2.5]
    assert found.notes[:2] == [f"columns of {table}: path = path, score = R1 + R2 + R3", "4 blanks left out"]
    assert "2 images are rated more than once" in found.notes[2]
    with pytest.raises(InputError, match="line 4: the R1 is blank; --skip-blank"):
        read_ratings(table, Form(scores=("R1", "R2"), skip_blank=False))
    table.write_text("path;R1;R2\nd/p1/11.jpg;1;x\n")
    with pytest.raises(InputError, match="line 2: the R2 'x' is not a finite number"):
        read_ratings(table, Form(scores=("R1", "R2")))
    with pytest.raises(InputError, match="no column `R3`"):
        read_ratings(table, Form(scores=("R1", "R3")))
    assert read_ratings(table, Form(scores=("R1", "R1"))).values.tolist() == [1]


def test_training_takes_the_same_tables(tmp_path: Path) -> None:
    for index in range(34):
        (tmp_path / f"{index}.jpg").touch()
    (tmp_path / "7.png").touch()
    rows = [(str(index) if index != 7 else "7.jpg", f"{index / 40:.3f}".replace(".", ",")) for index in range(34)]
    table = tmp_path / "t.csv"
    table.write_bytes(text(("Filename", "MOS"), [*rows, ("./3.jpg", "0,5"), ("", "")], ";").encode("utf-16"))
    labels = read_labels(table)
    assert labels.paths == [str(tmp_path / f"{index}.jpg") for index in range(34)]
    assert labels.scores[3] == pytest.approx((3 / 40 + 0.5) / 2)
    assert labels.notes[1] == "1 image is rated more than once: the mean counts"
    table.write_bytes(text(("Filename", "MOS"), [*rows, ("7", "0,5")], ";").encode("utf-16"))
    with pytest.raises(InputError, match=r"7 may be 7\.jpg or 7\.png"):
        read_labels(table)


def test_training_finds_images_by_the_end_of_their_paths_in_the_folder_that_is_given(tmp_path: Path) -> None:
    for index in range(34):
        folder = tmp_path / "crops" / f"p{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.jpg").touch()
        (folder / f"{index}.txt").touch()

    def labels(*names: str, images: Path | None = tmp_path / "crops") -> list[str]:
        rows = [f"{name},{index / 40},g{index}" for index, name in enumerate(names)]
        (tmp_path / "t.csv").write_text("\n".join(["image,mos,person", *rows]))
        found = read_labels(tmp_path / "t.csv", images, form=Form(group="person"))
        assert not any("no column `group`" in note for note in found.notes)
        assert any("found by the end of the path" in note for note in found.notes) == (images is not None)
        return found.paths

    whole = [str(tmp_path / "crops" / f"p{index % 3}" / f"{index}.jpg") for index in range(34)]
    assert labels(*(f"{index}.jpg" for index in range(34))) == whole
    assert labels(*(f"{index}" for index in range(33)), "p0/33") == whole
    assert labels(*(f"{index}.jpg" for index in range(33)), "q/33.jpg")[-1] == str(tmp_path / "crops" / "q" / "33.jpg")
    assert labels(*(f"{index}.jpg" for index in range(34)), images=None)[0] == str(tmp_path / "0.jpg")
    (tmp_path / "crops" / "p1" / "0.jpg").touch()
    with pytest.raises(InputError, match=r"0\.jpg may be .*p0/0\.jpg or .*p1/0\.jpg; write more of its path"):
        labels(*(f"{index}.jpg" for index in range(34)))


def test_on_a_falling_scale_the_lowest_rating_is_the_best(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\n".join(["path,score", *(f"{index}.jpg,{1 + index % 6}" for index in range(36))]))
    labels = read_labels(tmp_path / "t.csv", score_range=(6, 1))
    assert labels.scores[:6] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    assert "on the scale from 6 to 1 lower ratings are the better ones" in labels.notes
    with pytest.raises(InputError, match="runs from 1 to 6, outside 5 to 1"):
        read_labels(tmp_path / "t.csv", score_range=(5, 1))
    with pytest.raises(InputError, match="the score range 6 6 has no width"):
        read_labels(tmp_path / "t.csv", score_range=(6, 6))


def test_the_options_of_eval(scored: Path) -> None:
    rows = [(f"d/p1/1{number}.jpg", f"3,{number}", "") for number in range(9)] + [("d/p2/20.jpg", "", "")]
    table = scored.parent / "t.tsv"
    table.write_text(text(("Bild", "Note", "camera"), rows, "\t"))
    options = ["--path-column", "Bild", "--score-column", "Note", "--resamples", "5"]
    call = ["eval", str(scored), "--labels", str(table), *options]
    assert isinstance(CliRunner().invoke(group, call).exception, InputError)
    done = CliRunner().invoke(group, [*call, "--skip-blank", "--json"])
    result = json.loads(done.stdout)
    assert (result["rows"], result["notes"][1:]) == (9, ["1 row with a blank left out"])
    assert result["measures"]["srcc"]["value"] == 1
    for wrong in (
        ["--pairs", "x.csv", "--by", "x"],
        ["--pairs", "x.csv", "--against", "x.parquet"],
        ["--pairs", "x.csv", "--resamples", "9"],
        ["--pairs", "x.csv", "--score-column", "x", "--score-column", "y"],
        ["--pairs", "x.csv", "--path-column", "x"],
        ["--labels", "x.csv", "--path-column", "x", "--path-column", "y"],
        ["--labels", "x.csv", "--distance"],
        ["--labels", "x.csv", "--same-column", "x"],
    ):
        assert CliRunner().invoke(group, ["eval", str(scored), *wrong]).exit_code == 2


def test_ratings_of_one_image_that_disagree_about_it(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = [(f"{index}.jpg", f"{index / 40}", f"g{index}") for index in range(34)]
    table.write_text(text(("path", "score", "group"), [*rows, ("3.jpg", "1", "g4")], ","))
    with pytest.raises(InputError, match=r"line 5 and line 36: the same image, but `group` is 'g3' and 'g4'"):
        read_labels(table)


SIDES = st.sampled_from(["train", "val", "test", "", "Validation"])


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 5), SIDES), min_size=34, max_size=60))
def test_no_group_is_on_two_sides_whatever_the_table_says(tmp_path: Path, rows: list[tuple[int, str]]) -> None:
    sides: dict[int, str] = {}
    given = [(person, sides.setdefault(person, side)) for person, side in rows]
    cells = [(f"{at}.jpg", f"{at / 100}", f"g{person}", side) for at, (person, side) in enumerate(given)]
    (tmp_path / "t.csv").write_text(text(("path", "score", "group", "split"), cells, ","))
    try:
        split = read_labels(tmp_path / "t.csv").split.tolist()
    except InputError as exc:
        assert "no rows are left" in str(exc)  # noqa: PT017
        return
    assert {"train", "val"} <= set(split)
    found = set(zip([person for person, _ in given], split, strict=True))
    assert len(found) == len(sides)
    assert {person for person, side in found if side == "test"} == {g for g, side in sides.items() if side == "test"}


def test_a_column_that_makes_way_cannot_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,mos,score\na.jpg,1,x\n")
    assert read_ratings(tmp_path / "l.csv", Form(scores=("mos",))).columns["input_score"] == ["x"]
    with pytest.raises(InputError, match="mos and score cannot both be `score`; rename one of them"):
        read_ratings(tmp_path / "l.csv", Form(scores=("mos",)), ["score"])
