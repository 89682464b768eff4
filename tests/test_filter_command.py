"""`fiqa-trt filter` as its user meets it: what it prints, its exit codes, and the mistakes that it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from fiqa_trt.cli import group
from fiqa_trt.errors import FiqaError
from tests.test_delivery import tree


def call(*arguments: object) -> str:
    done = CliRunner().invoke(group, ["filter", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


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
    ],
)
def test_mistakes(scores: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(group, ["filter", str(scores), *arguments])
    said = str(done.exception) if isinstance(done.exception, FiqaError) else done.output
    assert message in said
    assert done.exit_code != 0
