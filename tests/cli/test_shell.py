"""Command lines for pasting: what a shell makes of them, and that no message puts one together in another way."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiqa_trt.machine.doctor import examine
from fiqa_trt.shell import command_line, path_word, printed

ROOT = Path(__file__).parents[2] / "fiqa_trt"
COMMAND = re.compile(r"\b(?:fiqa-trt|pip|python3?|apt|apt-get)\s+(?:-m\s+\w+\s+)?[a-z][\w-]*\s")
MADE = {"command_line", "path_word"}
WORD = st.binary(min_size=1, max_size=12).filter(lambda word: b"\0" not in word).map(os.fsdecode)


@pytest.mark.slow
@given(st.lists(WORD, min_size=1, max_size=4))
def test_a_shell_reads_back_what_was_meant(words: list[str]) -> None:
    line = command_line(*words)
    assert line.isprintable()
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    assert said.split(b"\0")[:-1] == list(map(os.fsencode, words))
    assert printed(line) == line


def test_lines_of_earlier_versions_and_paths() -> None:
    assert printed(shlex.join(["score", "a b", "\x1b[31m"])) == "score 'a b' $'\\033[31m'"
    assert path_word("-s.parquet") == "./-s.parquet"
    assert path_word("my scores.parquet") == "'my scores.parquet'"


def _texts() -> list[tuple[str, ast.JoinedStr | ast.Constant]]:
    found = list[tuple[str, ast.JoinedStr | ast.Constant]]()
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if isinstance(node, (ast.JoinedStr, ast.Constant)) and (text or isinstance(node, ast.JoinedStr)):
                found += [] if id(node) in inner else [(f"{path.relative_to(ROOT)}:{node.lineno}", node)]
    return found


def _careless(node: ast.JoinedStr | ast.Constant) -> bool:
    """Whether a message names a command with a value in it that was not quoted for a shell."""
    before = ""
    for part in node.values if isinstance(node, ast.JoinedStr) else [node]:
        if isinstance(part, ast.Constant):
            before += str(part.value)
            continue
        assert isinstance(part, ast.FormattedValue)
        called = part.value.func if isinstance(part.value, ast.Call) else None
        made = isinstance(called, ast.Name) and called.id in MADE
        tail = re.split(r"[;:,()]", before)[-1]
        if not made and COMMAND.search(tail):
            return True
        before += "x"
    return False


@pytest.mark.slow
def test_every_value_in_a_command_is_quoted() -> None:
    assert [where for where, node in _texts() if _careless(node)] == []


@pytest.mark.parametrize(
    ("code", "careless"),
    [
        ("f'run fiqa-trt filter {path}'", True),
        ("f'run fiqa-trt filter {path_word(path)}'", False),
        ("f'see fiqa-trt doctor, {path}'", False),
        ("f'fiqa-trt {version}'", False),
    ],
)
def test_the_test_above_can_fail(code: str, careless: bool) -> None:
    node = ast.parse(code, mode="eval").body
    assert isinstance(node, ast.JoinedStr)
    assert _careless(node) == careless


@pytest.mark.slow
def test_commands_without_values_are_quoted() -> None:
    """`pip install x[gpu]` is a pattern to zsh, and `a>=1` writes a file in every shell."""
    for where, node in _texts():
        if isinstance(node, ast.Constant) and (found := re.search(r"pip install (.*)", str(node.value))):
            bare = re.sub(r"'[^']*'", "", found[1].split(";")[0])
            assert not re.search(r"[\[<>*?]", bare), f"{where}: {node.value!r}"


@pytest.mark.slow
def test_remedies_of_doctor_can_be_pasted() -> None:
    for check in examine().checks:
        if check.remedy.startswith("pip install"):
            bare = re.sub(r"'[^']*'", "", check.remedy)
            assert not re.search(r"[\[<>*?;&|()$]", bare), check
