from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fiqa_trt.storage.scratch import PREFIX, Scratch, scratch

PROGRAM = """
import sys, time
from pathlib import Path
from fiqa_trt.storage.scratch import Scratch
folder = Scratch(Path(sys.argv[1]))
(folder.path / "work").write_text("x")
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """A process with a folder in `tmp_path`."""
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True)


def test_that_of_a_process_that_was_killed_goes_when_the_next_begins(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert other.stdout is not None
    with other, other.stdout:
        theirs = Path(other.stdout.readline().strip())
        ours = Scratch(tmp_path)
        assert (theirs / "work").exists()  # it lives
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert theirs.exists()
    third = Scratch(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([ours.path, third.path])
    ours.remove()
    third.remove()
    assert not list(tmp_path.iterdir())


def test_what_is_not_of_this_kind_stays(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("fiqa-trt-crops", PREFIX, f"{PREFIX}crops", f"{PREFIX}12345678.jpg", "x")]
    for path in kept:
        path.mkdir()
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / f"{PREFIX}abcdefgh"
    link.symlink_to(tmp_path / "elsewhere")
    Scratch(tmp_path).remove()
    assert all(path.exists() for path in [*kept, link, tmp_path / "elsewhere"])


def test_one_that_was_moved_belongs_to_its_new_name(tmp_path: Path) -> None:
    one = Scratch(tmp_path)
    one.path.rename(tmp_path / "kept")
    one.remove()
    Scratch(tmp_path).remove()
    assert os.listdir(tmp_path) == ["kept"]


def test_a_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ZeroDivisionError), scratch() as folder:
        assert folder.parent == tmp_path
        _ = 1 / 0
    assert not list(tmp_path.iterdir())
