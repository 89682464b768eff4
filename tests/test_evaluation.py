"""Agreement with ratings and the EDC, against scipy and against an example worked out by hand."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from fiqa_trt.cli import group
from fiqa_trt.errors import InputError
from fiqa_trt.evaluation import (
    MEASURES,
    agreement,
    edc,
    fit_logistic,
    logistic,
    read_pairs,
    read_rated,
    threshold_at_fmr,
    threshold_at_fnmr,
)


def write(path: Path, header: str, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def test_agreement_is_what_scipy_says() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(300)
    ratings = scores**2 + rng.normal(0, 0.2, 300)
    found = agreement(scores, ratings, resamples=50)
    values = {name: estimate.value for name, estimate in found.measures.items()}
    assert tuple(values) == MEASURES
    assert values["srcc"] == pytest.approx(stats.spearmanr(scores, ratings).statistic)
    assert values["krcc"] == pytest.approx(stats.kendalltau(scores, ratings).statistic)
    assert values["plcc"] == pytest.approx(stats.pearsonr(scores, ratings).statistic)
    assert values["rmse"] == pytest.approx(np.sqrt(((scores - ratings) ** 2).mean()))
    mapped = logistic(scores, *found.logistic)
    assert values["plcc_logistic"] == pytest.approx(stats.pearsonr(mapped, ratings).statistic)
    assert values["rmse_logistic"] < values["rmse"]


def test_the_interval_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=200)
    ratings = scores + rng.normal(size=200)
    found = agreement(scores, ratings, resamples=400).measures["plcc"]
    reference = stats.bootstrap(
        (scores, ratings), lambda x, y: stats.pearsonr(x, y).statistic, paired=True, vectorized=False,
        n_resamples=400, method="percentile", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert found.low < found.value < found.high
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.03)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_logistic_finds_its_own_parameters(sign: int) -> None:
    scores = np.linspace(0, 1, 100)
    ratings = logistic(sign * scores, 4.5, 1.2, sign * 0.4, 0.1)
    mapped = logistic(sign * scores, *fit_logistic(sign * scores, ratings))
    assert mapped == pytest.approx(ratings, abs=1e-4)


@pytest.mark.parametrize(
    ("scores", "ratings", "message"),
    [
        ([0.1] * 9, list(range(9)), "every score is 0.1"),
        (list(range(9)), [3.0] * 9, "every rating is 3"),
        ([1.0, 2.0], [1.0, 2.0], "at least 8"),
        ([*range(8), np.nan], list(range(9)), "a score is not a finite"),
    ],
)
def test_what_cannot_be_compared(scores: list[float], ratings: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        agreement(np.array(scores, float), np.array(ratings, float))


# Ten mated pairs by rising quality; F marks those below the threshold of 0.5.    F     F           F
QUALITY = np.arange(10) / 10
SIMILARITY = np.array([0.1, 0.9, 0.2, 0.8, 0.7, 0.9, 0.4, 0.8, 0.9, 0.6])


@pytest.mark.parametrize("curve", [np.exp, np.sqrt, np.log, lambda x: np.exp(8 * x), lambda x: 1 - x])
def test_ratings_on_a_part_of_the_logistic_are_fitted_as_well(curve: Callable[[Any], Any]) -> None:
    """Two models, or two precisions of one: no parameters are best, and those that run on must not count as none."""
    scores = np.random.default_rng(0).uniform(0.2, 0.9, 300)
    ratings = curve(scores)
    found = agreement(scores, ratings / np.ptp(ratings), resamples=0).measures
    assert found["rmse_logistic"].value < 0.01
    assert found["plcc_logistic"].value > abs(found["plcc"].value) - 1e-4


def test_edc_worked_out_by_hand() -> None:
    curve = edc(QUALITY, SIMILARITY, 0.5)
    # Three errors in ten; then 2 of 9, 2 of 8, 1 of 7, 1 of 6, 1 of 5, 1 of 4, 0 of 3, 0 of 2, 0 of 1.
    assert curve.fnmr == pytest.approx([3 / 10, 2 / 9, 2 / 8, 1 / 7, 1 / 6, 1 / 5, 1 / 4, 0, 0, 0])
    assert curve.ideal == pytest.approx([3 / 10, 2 / 9, 1 / 8, 0, 0, 0, 0, 0, 0, 0])
    # Trapezia up to 20 %: (3/10 + 2/9) / 2 * 0.1 + (2/9 + 1/4) / 2 * 0.1.
    assert curve.pauc(0.2) == pytest.approx(0.1 * (3 / 10 + 2 / 9) / 2 + 0.1 * (2 / 9 + 1 / 4) / 2)
    assert curve.at(0.25) == pytest.approx((2 / 8 + 1 / 7) / 2)


def test_the_threshold_is_fixed_before_anything_is_discarded() -> None:
    threshold = threshold_at_fnmr(SIMILARITY, 0.3)
    assert threshold == 0.6
    assert edc(QUALITY, SIMILARITY, threshold).fnmr[0] == pytest.approx(0.3)
    assert threshold_at_fmr(np.array([0.1, 0.2, 0.3, 0.4]), 0.25) == pytest.approx(0.3, abs=1e-9)


def test_pairs_of_equal_quality_have_no_order() -> None:
    quality = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9])
    one = edc(quality, np.array([0.0, 1, 1, 1, 1, 1]), 0.5)
    other = edc(quality, np.array([1, 1, 1, 0.0, 1, 1]), 0.5)
    assert one.fnmr == pytest.approx(other.fnmr)
    assert one.fnmr[2] == pytest.approx(0.5 / 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=5, max_size=60), st.floats(0.05, 0.9))
def test_nothing_is_below_the_ideal_and_areas_are_integrals(rows: list[tuple[int, int]], share: float) -> None:
    quality, similarity = np.array(rows, float).T
    curve = edc(quality, similarity, 5)
    assert (curve.ideal <= curve.fnmr + 1e-12).all()
    grid = np.unique(np.append(np.linspace(0, share, 2001), curve.discard[curve.discard < share]))
    reference = integrate.trapezoid(np.interp(grid, curve.discard, curve.fnmr), grid)
    assert curve.pauc(share) == pytest.approx(reference, abs=1e-9)


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


def test_eval_of_ratings(scores: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [[f"/d/{i}.jpg", i + rng.normal(0, 4), "ab"[i % 2] if i < 39 else "c"] for i in range(40)]
    labels = write(tmp_path / "l.csv", "path,score,camera", rows)
    options = ("--labels", labels, "--resamples", 20, "--by", "camera", "--plot", tmp_path / "plot.png")
    text = call(scores, *options)
    assert "40 images, 0 without a score" in text
    assert "c: too few images" in text
    result = json.loads(call(scores, *options, "--json"))
    assert set(result["groups"]) == {"a", "b"}
    assert 0.8 < result["measures"]["srcc"]["value"] < 1
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_eval_of_pairs(scores: Path, tmp_path: Path) -> None:
    rows = [[f"/d/{i}.jpg", f"/d/{i + 1}.jpg", int(i % 3 > 0), 0.9 - (i < 10) * 0.6] for i in range(39)]
    pairs = write(tmp_path / "p.csv", "a,b,same,similarity", rows)
    result = json.loads(call(scores, "--pairs", pairs, "--fnmr", 0.25, "--plot", tmp_path / "edc.png", "--json"))
    assert result["mated"] == 26
    assert result["fnmr"]["0.3"] == 0 < result["fnmr"]["0"]
    assert result["pauc"]["0.2"] == pytest.approx(result["pauc_ideal"]["0.2"])
    assert (tmp_path / "edc.png").read_bytes().startswith(b"\x89PNG")
    assert "pAUC to 30%" in call(scores, "--pairs", pairs, "--fmr", 0.1)


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
            assert done.stderr == ""
            table = lines[lines.index("") + 1 :]
            assert all(len(re.split(r"\s{2,}", line.strip())) == 8 - (at == 0) for at, line in enumerate(table))
        else:
            assert "36 images" in done.stderr
        if form == "markdown":
            assert {line.count("|") for line in lines} == {9}
        if form == "latex":
            assert {len(re.findall(r"(?<!\\)&", line)) for line in lines if line.endswith(r"\\")} == {7}
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
    expected = json.loads(call(scores, "--pairs", alike, "--json"))
    for table in (distances, named):
        found = json.loads(call(scores, "--pairs", table, "--distance", "--json"))
        assert found["fnmr"] == expected["fnmr"]
        assert found["threshold"] == -expected["threshold"] > 0
    assert "\\hline" in call(scores, "--pairs", alike, "--format", "latex")


def test_mistakes_are_named(scores: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "l.csv", "path,score", [["/d/1.jpg", "good"]])
    for arguments, message in {
        (): "either --labels",
        ("--labels", labels, "--fmr", 0.1): "belong to --pairs",
        ("--pairs", labels): "no column `a`",
        ("--labels", labels): "row 1: the score 'good'",
        ("--labels", labels, "--by", "camera"): "no column `camera`",
        ("--labels", labels, "--column", "sharpness"): "no column sharpness",
        ("--labels", labels, "--column", "status"): "--column status: in",
        ("--labels", tmp_path / "gone.csv"): "gone.csv",
        ("--labels", write(tmp_path / "e.csv", "path,score", [])): "no rows",
        (
            "--pairs",
            write(tmp_path / "p.csv", "a,b,same,similarity", [["/d/1.jpg", "/d/2.jpg", 2, 1]]),
        ): "`same` is '2'",
        ("--pairs", write(tmp_path / "q.csv", "a,b,same,similarity", [["/d/1.jpg", "/d/2.jpg", 0, 1]])): "no pair",
    }.items():
        assert message in call(scores, *arguments, code=2), arguments
