"""Agreement with ratings and the EDC, against scipy and against an example worked out by hand."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from fiqa_trt.analysis.evaluation import (
    PairForm,
    read_pairs,
    read_rated,
)
from fiqa_trt.cli import group
from fiqa_trt.errors import InputError


def write(path: Path, header: str, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


# Ten mated pairs by rising quality; F marks those below the threshold of 0.5.    F     F           F


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    rows = [[f"/d/{i}.jpg", i / 40, "ok"] for i in range(40)] + [["/d/bad.jpg", "", "corrupt"]]
    return write(tmp_path / "scores.csv", "path,score,status", rows)


def test_rows_are_matched_by_path_and_the_rest_is_counted(scores: Path, tmp_path: Path) -> None:
    rows = [[f"./{i}.jpg", 3 * i, "ab"[i % 2]] for i in (5, 3, 30)] + [["bad.jpg", 1, "a"], ["gone.jpg", 2, "a"]]
    labels = write(tmp_path / "l.csv", "path,score,camera", rows)
    rated = read_rated(scores, labels, Path("/d"), by="camera")
    assert rated.scores == pytest.approx([5 / 40, 3 / 40, 30 / 40])
    assert rated.ratings.tolist() == [15, 9, 90]
    assert (rated.groups, rated.failed, rated.unmatched) == (["b", "b", "a"], 1, 1)
    with pytest.raises(InputError, match="not even by the name of a file"):
        read_rated(scores, write(tmp_path / "o.csv", "path,score", [["x.jpg", 1]]))


def test_a_pair_is_as_good_as_its_worse_image(scores: Path, tmp_path: Path) -> None:
    rows = [["1.jpg", "9.jpg", 1, 0.5], ["8.jpg", "2.jpg", 0, 0.1], ["3.jpg", "bad.jpg", 1, 0.3]]
    found = read_pairs(scores, write(tmp_path / "p.csv", "a,b,same,similarity", rows), Path("/d"))
    assert found.quality == pytest.approx([1 / 40, 2 / 40])
    assert (found.same.tolist(), found.dropped) == ([True, False], 1)


def call(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(group, ["eval", *map(str, arguments)], catch_exceptions=code == 2)
    assert done.exit_code == code or isinstance(done.exception, InputError), done.output
    return done.output or str(done.exception)


@pytest.mark.slow
def test_eval_of_ratings(scores: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [[f"/d/{i}.jpg", i + rng.normal(0, 4), "ab"[i % 2] if i < 39 else "c"] for i in range(40)]
    labels = write(tmp_path / "l.csv", "path,score,camera", rows)
    options = ("--labels", labels, "--resamples", 20, "--by", "camera", "--plot", tmp_path / "plot.png")
    text = call(scores, *options)
    assert "40 images, 0 without a score" in text
    assert "left out: 1 group with fewer than 8 images" in text
    assert f"written to {tmp_path / 'plot.png'}" in text
    result = json.loads(call(scores, *options, "-q", "--json"))
    assert set(result["groups"]) == {"a", "b"}
    assert 0.8 < result["measures"]["srcc"]["value"] < 1
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_eval_of_pairs(scores: Path, tmp_path: Path) -> None:
    rows = [[f"/d/{i}.jpg", f"/d/{i + 1}.jpg", int(i % 3 > 0), 0.9 - (i < 10) * 0.6] for i in range(39)]
    pairs = write(tmp_path / "p.csv", "a,b,same,similarity", rows)
    result = json.loads(call(scores, "--pairs", pairs, "--fnmr", 0.25, "--plot", tmp_path / "edc.png", "-q", "--json"))
    assert result["mated"] == 26
    assert result["fnmr"]["0.3"] == 0 < result["fnmr"]["0"]
    assert result["pauc"]["0.2"] == pytest.approx(result["pauc_ideal"]["0.2"])
    assert (tmp_path / "edc.png").read_bytes().startswith(b"\x89PNG")
    assert "pAUC to 30%" in call(scores, "--pairs", pairs, "--fmr", 0.1)


@pytest.mark.slow
def test_groups_have_columns_of_their_own_and_numbers(tmp_path: Path) -> None:
    """Long names, and groups whose bootstrap draws lie on one side of a steep logistic."""
    rng, names = np.random.default_rng(0), ["a", "a rather long name of a camera", "x|y_&%"]
    values = rng.random(36)
    rated = [[f"{i}.jpg", 1 + (value > 0.9) + 1e-9 * i, names[i % 3]] for i, value in enumerate(values)]
    scores = write(tmp_path / "s.csv", "path,score,status", [[f"{i}.jpg", v, "ok"] for i, v in enumerate(values)])
    labels = write(tmp_path / "l.csv", "path,score,camera", rated)
    python = [sys.executable, "-W", "error", "-m", "fiqa_trt"]
    command = [*python, "eval", str(scores), "--labels", str(labels), "--by", "camera"]
    for form in ("text", "markdown", "latex"):
        done = subprocess.run([*command, "--format", form], capture_output=True, text=True, check=True)
        assert "nan" not in done.stdout
        lines = done.stdout.splitlines()
        if form == "text":
            assert all(len(re.split(r"\s{2,}", line.strip())) == 7 - (at == 0) for at, line in enumerate(lines))
        assert "36 images" in done.stderr
        assert "ratings from 1 to 2: RMSE is on their scale" in done.stderr
        if form == "markdown":
            assert {line.count("|") for line in lines} == {8}
            assert "| RMSE (logistic) |" in lines[0]
            assert "| RMSE |" not in lines[0]
        if form == "latex":
            assert {len(re.findall(r"(?<!\\)&", line)) for line in lines if line.endswith(r"\\")} == {6}
            assert r"x\textbar{}y\_\&\%" in done.stdout


def test_distances_are_refused_or_meant(scores: Path, tmp_path: Path) -> None:
    values = [0.2 + 0.5 * (i % 2 == 0) + i / 1000 for i in range(39)]
    rows = [[f"/d/{i}.jpg", f"/d/{i + 1}.jpg", i % 2, value] for i, value in enumerate(values)]
    distances = write(tmp_path / "d.csv", "a,b,same,similarity", rows)
    assert "give --distance" in call(scores, "--pairs", distances, code=2)
    alike = write(
        tmp_path / "s.csv", "a,b,same,similarity", [[*row[:3], -v] for row, v in zip(rows, values, strict=True)]
    )
    assert "leave out --distance" in call(scores, "--pairs", alike, "--distance", code=2)
    named = write(tmp_path / "n.csv", "a,b,same,distance", rows)
    assert "of distances, give --distance" in call(scores, "--pairs", named, code=2)
    expected = json.loads(call(scores, "--pairs", alike, "--fnmr", 0.1, "-q", "--json"))
    for table in (distances, named):
        found = json.loads(call(scores, "--pairs", table, "--distance", "--fnmr", 0.1, "-q", "--json"))
        assert found["fnmr"] == expected["fnmr"]
        assert found["threshold"] == -expected["threshold"] > 0
    assert "\\hline" in call(scores, "--pairs", alike, "--fnmr", 0.1, "--format", "latex")


def test_mistakes_are_named(scores: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "l.csv", "path,score", [["/d/1.jpg", "good"]])
    for arguments, message in {
        (): "either --labels",
        ("--labels", labels, "--fmr", 0.1): "belong to --pairs",
        ("--pairs", labels): "no column `a`",
        ("--labels", labels): "line 2: the score 'good'",
        ("--labels", labels, "--by", "camera"): "no column `camera`",
        ("--labels", labels, "--column", "score_mobilenet"): "has no such column; scores in it: score",
        ("--labels", labels, "--column", "status"): "--column status: no score; scores in it: score",
        ("--labels", labels, "--column", "width"): "--column width: no score; scores in it: score",
        ("--labels", tmp_path / "gone.csv"): "gone.csv",
        ("--labels", write(tmp_path / "e.csv", "path,score", [])): "no rows",
        (
            "--pairs",
            write(tmp_path / "p.csv", "a,b,same,similarity", [["/d/1.jpg", "/d/2.jpg", 2, 1]]),
        ): "line 2: `same` is '2'",
        ("--pairs", write(tmp_path / "q.csv", "a,b,same,similarity", [["/d/1.jpg", "/d/2.jpg", 0, 1]])): "no pair",
    }.items():
        assert message in call(scores, *arguments, code=2), arguments


def test_groups_that_say_nothing_are_counted_and_those_without_a_name_have_one(scores: Path, tmp_path: Path) -> None:
    def group_of(index: int) -> str:
        return "" if index < 10 else "flat" if index < 20 else "good" if index < 30 else f"tiny {index}"

    rows = [[f"/d/{i}.jpg", 3 if 10 <= i < 20 else i, group_of(i)] for i in range(40)]
    labels = write(tmp_path / "l.csv", "path,score,camera", rows)
    text = call(scores, "--labels", labels, "--by", "camera", "--resamples", 5)
    assert "left out: 10 groups with fewer than 8 images\n" in text
    assert "left out: 1 group with scores or ratings all alike\n" in text
    assert "tiny" not in text
    assert [line.split("  ")[0] for line in text.splitlines()[-3:]] == ["all", "(blank)", "good"]
    result = json.loads(call(scores, "--labels", labels, "--by", "camera", "--resamples", 5, "-q", "--json"))
    assert (set(result["groups"]), result["groups_left_out"]) == ({"", "good"}, 11)


def test_without_resamples_there_is_no_interval(scores: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "l.csv", "path,score", [[f"/d/{i}.jpg", i * i] for i in range(40)])
    result = json.loads(call(scores, "--labels", labels, "--resamples", 0, "-q", "--json"))
    assert {(each["low"], each["high"]) for each in result["measures"].values()} == {(None, None)}
    assert "[" not in call(scores, "--labels", labels, "--resamples", 0, "-q")
    assert "[1.0000, 1.0000]" in call(scores, "--labels", labels, "--resamples", 5, "-q")  # drawn, and all alike


def test_quiet_leaves_the_table(scores: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "l.csv", "path,score", [[f"/d/{i}.jpg", i] for i in range(40)])
    arguments = ["eval", str(scores), "--labels", str(labels), "--resamples", "0"]
    loud, quiet = (CliRunner().invoke(group, [*arguments, *more]) for more in ([], ["-q"]))
    assert loud.stdout == quiet.stdout
    assert (len(loud.stdout.splitlines()), quiet.stderr) == (2, "")
    assert f"columns of {labels}: path = path, score = score" in loud.stderr


@pytest.mark.slow
def test_a_folder_of_images_that_is_nowhere_is_refused(scores: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "l.csv", "path,score", [[f"{i}.jpg", i] for i in range(40)])
    pairs = write(tmp_path / "p.csv", "a,b,same,similarity", [["1.jpg", "2.jpg", 1, 0.5]])
    assert "40 images" in call(scores, "--labels", labels, "--images", "/d")  # not here, but in the scores
    for option, table in (("--labels", labels), ("--pairs", pairs)):
        assert "--images /gone: no such folder, and no path" in call(scores, option, table, "--images", "/gone", code=2)


def test_the_point_that_the_curve_starts_from_is_told(scores: Path, tmp_path: Path) -> None:
    rows = [[f"/d/{i}.jpg", f"/d/{i + 1}.jpg", int(i % 3 > 0), i % 3 + i / 100] for i in range(39)]
    pairs = write(tmp_path / "p.csv", "a,b,same,similarity", rows)
    text = call(scores, "--pairs", pairs, "--fmr", 0.3)
    assert re.search(
        r"mated pairs +26\nnon-mated pairs +13\nthreshold \(similarity\) +0\.27\nFMR there +0\.231\n", text
    )
    assert "rests on 3 false matches" in text
    assert "no mated pair is below the threshold" in text
    result = json.loads(call(scores, "--pairs", pairs, "--fmr", 0.3, "-q", "--json"))
    assert (result["non_mated"], result["fmr"]) == (13, 3 / 13)


def test_pairs_have_the_columns_and_blanks_that_tables_have(scores: Path, tmp_path: Path) -> None:
    rows = [[f"/d/{i}.jpg", f"/d/{i + 1}.jpg", i % 2, f"0,{i + 10}"] for i in range(39)]
    plain = read_pairs(scores, write(tmp_path / "p.csv", "a,b,same,similarity", rows))
    for header in (
        "image1,image2,label,cosine",
        "img_a,img_b,match,score",
        "probe,reference,genuine,sim",
        "p1,p2,is_mated,cos_sim",
    ):
        found = read_pairs(scores, write(tmp_path / "q.csv", header, rows))
        assert found.similarity.tolist() == plain.similarity.tolist()
        assert f"similarity = {header.split(',')[3]}" in found.notes[0]
    blank: list[list[object]] = [
        *rows,
        ["/d/1.jpg", "/d/2.jpg", 1, ""],
        ["/d/1.jpg", "/d/2.jpg", "NA", "0,2"],
        ["", "", "", ""],
    ]
    table = write(tmp_path / "b.csv", "left,right,who,how", blank)
    with pytest.raises(InputError, match=r"no column `a`.*--path-column \(given twice\) says which"):
        read_pairs(scores, table)
    options = ["--path-column", "left", "--path-column", "right", "--same-column", "who", "--score-column", "how"]
    assert "line 41: the how is blank; --skip-blank" in call(scores, "--pairs", table, *options, code=2)
    text = call(scores, "--pairs", table, *options, "--skip-blank", "--fnmr", 0.1)
    assert "2 rows with a blank left out" in text
    assert "19 mated, 20 non-mated pairs; 0 more dropped" in text
    form = PairForm(("left", "right"), "who", "how", skip_blank=True)
    assert read_pairs(scores, table, form=form).similarity.tolist() == plain.similarity.tolist()


def test_verdicts_on_pairs_are_words_as_well(scores: Path, tmp_path: Path) -> None:
    def same(yes: object, no: object, header: str = "enroll,verif,Label,score") -> list[bool]:
        rows = [[f"/d/{i}.jpg", f"/d/{i + 1}.jpg", yes if i % 2 else no, 0.1 + i % 2] for i in range(9)]
        return list(map(bool, read_pairs(scores, write(tmp_path / "p.csv", header, rows)).same))

    wanted = [bool(i % 2) for i in range(9)]
    for yes, no in ((1, -1), ("1.0", "0.0"), ("Genuine", "Impostor"), ("mated", "non-mated"), ("match", "Non_Match")):
        assert same(yes, no) == wanted
    with pytest.raises(InputError, match=r"line 2: `Label` is 'maybe', not 1 or 0 \(nor true"):
        same(1, "maybe")
    with pytest.raises(InputError, match="`Label` is both 0 and -1"):
        read_pairs(
            scores, write(tmp_path / "p.csv", "a,b,Label,score", [["/d/1.jpg", "/d/2.jpg", i, 1] for i in (-1, 0, 1)])
        )


@pytest.mark.slow
def test_plots_are_of_the_kind_that_their_name_says(scores: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "l.csv", "path,score", [[f"/d/{i}.jpg", i % 7] for i in range(40)])
    for kind, start in {"pdf": b"%PDF", "svg": b"<?xml", "PNG": b"\x89PNG"}.items():
        call(scores, "--labels", labels, "--resamples", 0, "--plot", tmp_path / f"p.{kind}")
        assert (tmp_path / f"p.{kind}").read_bytes().startswith(start)


def test_groups_that_are_numbers_are_in_their_order(scores: Path, tmp_path: Path) -> None:
    names = ["-5", "10", "2", "x", "nan"]
    labels = write(tmp_path / "l.csv", "path,score,yaw", [[f"/d/{i}.jpg", i, names[i % 5]] for i in range(40)])
    text = call(scores, "--labels", labels, "--resamples", 0, "--by", "yaw", "-q")
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["-5", "2", "10", "nan", "x"]


def test_scores_and_labels_in_each_others_place(scores: Path, tmp_path: Path) -> None:
    for header, scale, message in (
        ("image,mos", 1, "holds no scores"),
        ("path,score", 1, "holds no scores"),
        ("path,score", 0.01, "has no column `status`"),
    ):
        labels = write(tmp_path / "l.csv", header, [[f"/d/{i}.jpg", i * scale] for i in range(40)])
        refused = message == "holds no scores"
        text = call(labels, "--labels", scores, "--skip-blank", "--resamples", 0, code=2 if refused else 0)
        assert message in text
        if refused:
            assert f"give `{scores} --labels {labels}`" in text
        assert message not in call(scores, "--labels", labels, "--resamples", 0)


@pytest.mark.slow
def test_scores_against_others(scores: Path, tmp_path: Path) -> None:
    rows = [[f"/d/{i}.jpg", i, "ab"[i % 2]] for i in range(40)]
    labels = write(tmp_path / "l.csv", "path,score,camera", rows)
    worse = write(
        tmp_path / "w.csv", "path,score,status", [[f"/e/{i}.jpg", (i * 7) % 31 / 40, "ok"] for i in range(36)]
    )
    options = ("--labels", labels, "--against", worse, "--by", "camera", "--resamples", 20)
    result = json.loads(call(scores, *options, "-q", "--json"))
    assert result["rows"] == 36
    own = stats.spearmanr(range(36), [(i * 7) % 31 for i in range(36)]).statistic
    assert result["against"]["measures"]["srcc"]["value"] == pytest.approx(own)
    assert result["difference"]["srcc"]["value"] == pytest.approx(1 - own)
    assert result["difference"]["srcc"]["low"] > 0
    assert result["groups"]["b"]["difference"].keys() == result["measures"].keys()
    text = call(scores, *options)
    assert [line.split("  ")[0] for line in text.splitlines()[-9:-6]] == ["all", f"all, {worse}", "all, difference"]
    assert f"{worse}: 0 without a score, 4 not among the scores" in text
    other = write(tmp_path / "l2.csv", "path,score", [["/d/38.jpg", 1], ["/e/1.jpg", 2]])
    one = write(tmp_path / "s2.csv", "path,score,status", [["/d/38.jpg", 0.1, "ok"]])
    assert "no rated image has both" in call(one, "--labels", other, "--against", worse, code=2)
