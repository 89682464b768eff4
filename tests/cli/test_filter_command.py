"""`fiqa-trt filter` as its user meets it: what it prints, its exit codes, and the mistakes that it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from fiqa_trt.cli import group
from fiqa_trt.errors import FiqaError
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.score import score_dataset
from tests.helpers import mean_executor, tree


def call(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(group, ["filter", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.slow
def test_the_command(scores: Path, crops: Path, tmp_path: Path) -> None:
    said = call(scores, "--dry-run", "-o", tmp_path / "out", "--copy", "--top", 3)
    assert "3 of 11 rows kept" in said
    assert "1 failed" in said
    assert "would write 3 images" in said
    assert not (tmp_path / "out").exists()
    call(scores, "-o", tmp_path / "out", "--copy", "--top", 3)
    assert len(tree(tmp_path / "out")) == 3
    facts = json.loads(call(scores, "-o", tmp_path / "k.csv", "--keep", "50%", "-q", "--json"))
    assert facts["kept"] == 5
    assert facts["dropped"] == {"failed": 1, "beyond --keep or --top": 5}
    assert facts["delivered"]["written"] == 5
    said = call(scores, "--dry-run", "--min-score", 0.5, "--group-by", "path", "--per-group", 1)
    assert "groups lose everything" in said


def test_nothing_delivered_is_said(scores: Path, crops: Path, tmp_path: Path) -> None:
    shutil.rmtree(crops)
    arguments = ["filter", str(scores), "-o", str(tmp_path / "out"), "--copy", "--top", "3"]
    done = CliRunner().invoke(group, arguments)
    assert done.exit_code == 3
    assert "not one of the images" in done.output


@pytest.mark.parametrize("form", [["out", "--copy"], ["k.tar"], ["k.txt"], ["k.parquet"], ["k.csv", "--dry-run"]])
def test_nothing_kept_is_said_and_leaves_nothing(scores: Path, tmp_path: Path, form: list[str]) -> None:
    before = sorted(tmp_path.iterdir())
    done = CliRunner().invoke(
        group, ["filter", str(scores), "--min-score", "0.99", "-o", str(tmp_path / form[0]), *form[1:]]
    )
    assert done.exit_code == 3, done.output
    assert "0 of 11 rows kept" in done.output
    assert "written" in done.output.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before
    found = re.search(r"the highest score is (0\.\d+), and --min-score 0\.99 is above it", done.output)
    assert found is not None
    assert call(scores, "--min-score", found[1], "--dry-run").startswith("1 of 11 rows kept")
    done = CliRunner().invoke(group, ["filter", str(scores), "--min-score", "0.99", "--dry-run", "--json", "-q"])
    assert (json.loads(done.stdout)["kept"], done.exit_code) == (0, 3)


def test_words_of_one_and_of_a_dry_run(scores: Path, crops: Path, tmp_path: Path) -> None:
    best = call(scores, "--dry-run", "--top", 1, "-o", tmp_path / "k.txt")
    assert "would write 1 row\n" in best
    for path in crops.rglob("*.jpg"):
        path.with_suffix(".txt").write_text("caption")
    arguments = (scores, "--top", 1, "-o", tmp_path / "out", "--copy")
    assert "1 image has companions (.txt) that stay behind" in call(*arguments, "--dry-run")
    said = call(*arguments, "--companions", "auto", "--dry-run")
    assert "would write 1 image, " in said
    assert "1 companion (captions, labels and the like) would go along" in said
    said = call(*arguments, "--companions", "auto")
    assert "1 companion (captions, labels and the like) went along" in said
    assert "is already complete: 1 image\n" in call(*arguments, "--companions", "auto")


def test_lost_and_unscored_groups_are_named_apart(scores: Path, crops: Path) -> None:
    def said(*arguments: object) -> str:
        return call(scores, "--dry-run", "--group-by", r"([^/]+)\.jpg$", *arguments)

    text = said("--min-score", 0.99, "--keep-at-least", 1)
    assert "10 brought back by --keep-at-least" in text
    assert "1 of 11 groups has no scored image, so nothing can be kept" in text
    assert "bad" in text.splitlines()[-1]
    text = said("--top", 9)
    assert "1 of 11 groups loses everything (--keep-at-least 1 rescues what has scores): " in text
    facts = json.loads(said("--top", 9, "--json", "-q"))
    assert (len(facts["lost_groups"]), facts["unscored_groups"], facts["brought_back"]) == (1, ["bad"], 0)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_where_relative_paths_are_looked_for_is_told(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.chdir(crops.parent)
    score_dataset(Source((crops.name,)), tmp_path / "r.parquet", mean_executor)
    monkeypatch.chdir(crops)
    said = call(tmp_path / "r.parquet", "-o", tmp_path / "out", "--copy", "--top", 3, *more, code=3)
    assert "3 skipped: missing" in said
    assert f"not one of the images could be delivered; relative paths count from {crops}" in said


def test_groups_that_have_too_few_are_named(scores: Path) -> None:
    def said(*arguments: object) -> str:
        return call(scores, "--dry-run", "--top", 1, "--group-by", "/([ab])/", "--keep-at-least", *arguments)

    assert json.loads(said(5, "--json", "-q"))["short_groups"] == []
    assert json.loads(said(6, "--json", "-q"))["short_groups"] == ["a", "b"]
    assert "2 of 2 groups have fewer scored images than --keep-at-least, and keep all of them: a, b\n" in said(6)


@pytest.mark.parametrize("arguments", [["-o", "x"], ["-o", "x.txt", "--root", "/"], ["-o", "s.parquet"]])
def test_a_call_that_cannot_be_has_no_summary(
    scores: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scores.parent)
    done = CliRunner().invoke(group, ["filter", str(scores), "--top", "1", *arguments])
    assert isinstance(done.exception, FiqaError)
    assert "kept" not in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x", "--copy", "--move", "--top", "1"], "give one of --copy and --move"),
        (["-o", "x.txt"], "nothing to filter by"),
        (["--top", "1"], "give -o OUT, or --dry-run"),
        (["-o", "x", "--top", "1"], "cannot tell what x is to be"),
        (["-o", "x.txt", "--top", "1", "--keep", "5%"], "either --keep or --top"),
        (["-o", "x.txt", "--keep", "5"], "takes a percentage"),
        (["-o", "x.txt", "--per-group", "x"], "--per-group x: neither a number"),
        (["-o", "x.txt", "--keep", "0%"], "--keep 0%: neither a number"),
        (["-o", "x.txt", "--top", "1", "--root", "/"], "--root /: it goes with"),
        (["-o", "x.txt", "--min-score", "1.5"], "between 0 and 1"),
        (["-o", "x.txt", "--min-score", "60%"], "60% is no score, which is a number from 0 to 1; for the best share"),
    ],
)
def test_mistakes(scores: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(group, ["filter", str(scores), *arguments])
    said = str(done.exception) if isinstance(done.exception, FiqaError) else done.output
    assert message in said
    assert done.exit_code != 0
    done = CliRunner().invoke(group, ["filter", "nothere.parquet", *arguments])
    assert "'nothere.parquet' does not exist" in done.output or "is no score" in done.output
