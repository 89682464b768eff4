"""Whatever standard input, output and error are, messages end no run, and results are not lost without a word."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from fiqa_trt.cli import COMMANDS
from fiqa_trt.inputs.marks import OURS
from tests.helpers import jpeg

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "fiqa_trt"]
HEAVY = {"build", "bench", "export", "train", "synthesize", "doctor"}
BROKEN = ("2>&-", "2>/dev/full", "<&- >&- 2>&-", "<&- >&- 2>/dev/full", "2> >(true)")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, portrait: Image.Image) -> Path:
    """A folder with crops, one of which the libraries complain about, their scores, and ratings."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "crops").mkdir()
    lines = ["path,score,group,split"]
    for index in range(40):
        path = folder / "crops" / f"{index}.jpg"
        path.write_bytes(jpeg(portrait.point([min(255, v // 2 + 4 * index) for v in range(256)] * 3)))
        lines.append(f"{path},{(index + 1) / 42},g{index % 4},{'val' if index % 4 == 3 else 'train'}")
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    (folder / "crops" / "cut.jpg").write_bytes((folder / "crops" / "3.jpg").read_bytes()[:2000])
    shell("", "score", folder / "crops", "-o", folder / "s.parquet", "-q")
    return folder


def arguments(name: str, place: Path, out: Path) -> list[object]:
    """A call of a command that succeeds, and writes below `out` if it writes at all."""
    scores, crops = place / "s.parquet", place / "crops"
    calls: dict[str, list[object]] = {
        "score": [crops, "-o", out / "s.parquet"],
        "show": [crops / "0.jpg"],
        "report": [scores, "-o", out / "r.html"],
        "filter": [scores, "-o", out / "kept", "--copy", "--keep", "50%"],
        "build": ["--precision", "fp32", "--device", "cpu", "--max-batch", "2", "-o", out / "engine"],
        "engines": [],
        "doctor": [],
        "bench": [crops, "--images", "10", "-o", out / "b.json"],
        "eval": [scores, "--labels", place / "ratings.csv", "--images", "/", "--resamples", "10"],
        "export": ["-o", out / "onnx"],
        "synthesize": [crops / "9.jpg", "-o", out / "set", "--per-face", "1", "--reference", "none", "--workers", "1"],
        "train": [place / "ratings.csv", "-o", out / "m.safetensors", "--epochs", "1", "--batch-size", "4"],
    }
    return [name, *calls[name]]


def shell(redirection: str, *words: object, code: int = 0, **options: object) -> subprocess.CompletedProcess[str]:
    """A call with redirections of bash."""
    # The shell's own complaint of a descriptor that it cannot use is none of ours.
    call = ["bash", "-c", f'"$@" {redirection}', "bash", *COMMAND, *map(str, words)]
    done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
        call, **{"capture_output": True, "text": True, "timeout": 600, "cwd": ROOT, **options}, check=False
    )
    assert done.returncode == code, (call, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def _cases() -> Iterator[Any]:
    for name in COMMANDS:
        for redirection in BROKEN[-2:] if name in HEAVY else BROKEN:
            yield pytest.param(name, redirection, marks=[pytest.mark.slow] if name in HEAVY else [])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "redirection"), list(_cases()))
def test_messages_end_no_command(name: str, redirection: str, place: Path, tmp_path: Path) -> None:
    if name in HEAVY:
        pytest.importorskip("torch")
        pytest.importorskip("piq")
    shell(redirection, *arguments(name, place, tmp_path))
    if name == "score":
        rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
        assert [row["status"] for row in rows].count("ok") == 40
    elif name == "filter":
        assert len(list((tmp_path / "kept").glob("*.jpg"))) == 20
    elif "-o" in map(str, arguments(name, place, tmp_path)):
        assert list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_in_any_state(name: str) -> None:
    for redirection in BROKEN:
        shell(redirection, name, "--help")
    assert shell("| true; exit ${PIPESTATUS[0]}", name, "--help", code=141).stderr == ""
    lost = shell(">/dev/full", name, "--help", code=1).stderr
    assert lost == "fiqa-trt: cannot write the results to standard output: No space left on device\n"
    plain = shell("", name, "--help", env={**os.environ, "PYTHONIOENCODING": "ascii"}).stdout
    assert plain.isascii()
    assert shell("", name, "--help", env={**os.environ, "PYTHONOPTIMIZE": "2"}).stdout == plain


@pytest.mark.slow
@pytest.mark.parametrize("name", ["show", "eval", "engines", "score", "filter"])
def test_results_that_are_lost_are_an_error(name: str, place: Path, tmp_path: Path) -> None:
    for folder in ("full", "gone", "closed"):
        (tmp_path / folder).mkdir()
    lost = shell(">/dev/full", *arguments(name, place, tmp_path / "full"), "--json", code=1).stderr.splitlines()
    assert lost[-1] == "fiqa-trt: cannot write the results to standard output: No space left on device"
    left = "| true; exit ${PIPESTATUS[0]}"
    assert "fiqa-trt:" not in shell(left, *arguments(name, place, tmp_path / "gone"), "--json", code=141).stderr
    shell(">&-", *arguments(name, place, tmp_path / "closed"), "--json")


def test_a_library_that_prints_is_not_in_the_results(place: Path) -> None:
    """By Python, by C, to the descriptor, in a process that is begun: while a command works, and at its very end."""
    program = """
import atexit, ctypes, os, sys
from fiqa_trt import cli
libc = ctypes.CDLL(None)
def noise():
    print("by print")
    sys.stdout.buffer.write(b"by its buffer\\n")
    os.write(1, b"by descriptor\\n")
    libc.puts(b"by C")
    os.system("echo by process")
atexit.register(lambda: libc.puts(b"by C, later"))
import fiqa_trt.analysis.explain
from fiqa_trt import scorer
class Noisy(scorer.Scorer):
    def score(self, items):
        noise()
        return super().score(items)
scorer.Scorer = Noisy
sys.argv = ["fiqa-trt", "show", sys.argv[1], "--device", "cpu", "--json"]
cli.main()
"""
    call = [sys.executable, "-c", program, str(place / "crops" / "0.jpg")]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=ROOT)
    assert len(json.loads(done.stdout)["images"]) == 1
    for kind in ("print", "its buffer", "descriptor", "C", "process", "C, later"):
        assert f"by {kind}\n" in done.stderr


def _with_json() -> Iterator[Any]:
    import importlib

    for name in COMMANDS:
        command = importlib.import_module(f"fiqa_trt.cli.{name}").command
        if any("--json" in option.opts for option in command.params):
            yield pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else [])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(_with_json()))
def test_json_is_all_there_is_on_standard_output(name: str, place: Path, tmp_path: Path) -> None:
    if name in HEAVY:
        pytest.importorskip("torch")
        pytest.importorskip("piq")
    assert isinstance(json.loads(shell("", *arguments(name, place, tmp_path), "--json").stdout), dict)


@pytest.mark.slow
def test_json_of_a_build_that_calibrates(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    words = ["--precision", "int8", "--device", "cpu", "--max-batch", "2", "--calibration", place / "crops"]
    done = shell("", "build", *words, "-o", tmp_path / "e", "--json", "-q")
    assert json.loads(done.stdout)["precision"] == "int8"
    assert "nncf" not in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_silent_on_request_and_speaks_json(name: str) -> None:
    import importlib

    options = {
        option for param in importlib.import_module(f"fiqa_trt.cli.{name}").command.params for option in param.opts
    }
    assert {"-q", "--quiet", "--json"} <= options


@pytest.mark.slow
@pytest.mark.parametrize("name", [each.values[0] for each in _with_json()])
def test_nothing_but_a_reason_comes_of_a_failure(name: str, place: Path, tmp_path: Path) -> None:
    """Standard output is empty, standard error ends in a line, and the exit code tells."""
    gone, image = tmp_path / "gone", place / "crops" / "0.jpg"
    calls: dict[str, list[object]] = {
        "score": [gone, "-o", tmp_path / "s.parquet"],
        "show": [image, "--engine", gone],
        "report": [gone, "-o", tmp_path / "r.html"],
        "filter": [gone, "-o", tmp_path / "k.txt"],
        "build": ["--checkpoint", gone, "--device", "cpu", "-o", tmp_path / "e"],
        "engines": [gone],
        "doctor": ["extra"],
        "bench": [gone],
        "eval": [gone, "--labels", place / "ratings.csv"],
        "export": [gone, "-o", tmp_path / "e"],
        "synthesize": [gone, "-o", tmp_path / "set"],
        "train": [gone, "-o", tmp_path / "m.safetensors"],
    }
    call = [*COMMAND, name, *map(str, calls[name]), "--json", "-q"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode in (1, 2), done.stdout) == (True, "")
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["fiqa-trt"]


@pytest.mark.slow
def test_json_though_nothing_could_be_scored(place: Path, tmp_path: Path) -> None:
    cut = place / "crops" / "cut.jpg"
    assert json.loads(shell("", "show", cut, "--json", code=3).stdout)["images"][0]["status"] == "truncated"
    assert json.loads(shell("", "score", cut, "-o", tmp_path / "s.csv", "--json", code=3).stdout)["failed"] == 1


@pytest.mark.slow
def test_what_libraries_warn_of_is_for_their_users(place: Path) -> None:
    program = """
import logging, sys, warnings
from fiqa_trt import cli, scorer
import fiqa_trt.analysis.explain
class Noisy(scorer.Scorer):
    def score(self, items):
        warnings.warn("by warnings")
        logging.getLogger("torch").warning("by logging")
        return super().score(items)
scorer.Scorer = Noisy
sys.argv = ["fiqa-trt", "show", sys.argv[1], "--device", "cpu"]
cli.main()
"""
    call = [sys.executable, "-c", program, str(place / "crops" / "0.jpg")]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == ""


@pytest.mark.slow
def test_pictures_are_written_though_the_reader_of_the_table_left(place: Path, tmp_path: Path) -> None:
    shell("-q | true; exit ${PIPESTATUS[0]}", "show", place / "crops" / "0.jpg", "--explain", "-o", tmp_path, code=141)
    assert (tmp_path / "0.jpg.explain.png").exists()


@pytest.mark.slow
def test_errors_keep_their_exit_codes(place: Path, tmp_path: Path) -> None:
    for redirection in BROKEN:
        shell(redirection, "score", tmp_path / "gone", "-o", tmp_path / "s.parquet", code=2)
        shell(redirection, "show", place / "crops" / "cut.jpg", code=3)
        shell(redirection, "no-such-command", code=2)
        shell(redirection, code=2)


@pytest.mark.slow
def test_several_processes(place: Path, tmp_path: Path) -> None:
    for number, redirection in enumerate(BROKEN[1:4:2]):
        out = tmp_path / f"{number}.parquet"
        shell(redirection, "score", place / "crops", "-o", out, "--devices", "cpu,cpu", "--unit-size", 4)
        assert pq.read_table(out)["status"].to_pylist().count("ok") == 40


@pytest.mark.slow
@pytest.mark.parametrize("limit", [*(f"-v {megabytes}000" for megabytes in (150, 400, 700, 1000)), "-n 8", "-n 20"])
def test_too_little_of_the_machine_is_one_line(limit: str, place: Path, tmp_path: Path) -> None:
    """Or enough of it, and then every good image has its score. Now and then a C library, or what loads it (127), dies
    of it before anything is said; then nothing may be half done.
    """
    output = tmp_path / "s.parquet"
    words = [*COMMAND, "score", place / "crops", "-o", output, "-q"]
    call = ["bash", "-c", f'ulimit {limit}; exec "$@"', "bash", *map(str, words)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("fiqa-trt:")]
    said = {0: 0, 1: 1, 2: 1, 127: 0}.get(done.returncode, 0 if done.returncode < 0 else -1)
    assert len(lines) == said, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert output.exists() == (done.returncode == 0)
    if output.exists():
        assert pq.read_table(output)["status"].to_pylist().count("ok") == 40


@pytest.mark.slow
def test_a_reader_that_sleeps(place: Path, tmp_path: Path) -> None:
    """It holds the run up for some seconds, and not for ever."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, bytes(4096))
    words = [*COMMAND, "score", str(place / "crops"), "-o", str(tmp_path / "s.parquet"), "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=writing, timeout=120, check=True, cwd=ROOT)
    assert json.loads(done.stdout)["images"] == 41
    os.close(writing)
    os.close(reading)


@pytest.mark.slow
def test_a_reader_that_is_slow_gets_all_results(place: Path) -> None:
    """Also through a descriptor that somebody made non-blocking."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = subprocess.Popen(
        [*COMMAND, "show", *[str(place / "crops" / "0.jpg")] * 600, "-q"], stdout=writing, cwd=ROOT
    )
    os.close(writing)
    with open(reading, "rb") as file:
        time.sleep(2)
        assert len(file.read().splitlines()) == 601
    assert process.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize(("nohup", "code"), [(False, 130), (True, 0)])
def test_a_closed_terminal(nohup: bool, code: int, place: Path, tmp_path: Path) -> None:
    listing = tmp_path / "l.txt"
    listing.write_text(f"{place}/crops/0.jpg\n" * 600)
    words = [*COMMAND, "score", "--list", listing, "-o", tmp_path / "s.parquet", "--unit-size", "64"]
    # These tests may run under nohup themselves, and children inherit what is ignored.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            ["bash", "-c", ("trap '' HUP; " if nohup else "") + 'exec "$@"', "bash", *map(str, words)],
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGHUP, before)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("s.parquet.partial/parts/*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    said = process.communicate(timeout=200)[1]
    assert process.returncode == code, said
    assert ("run the same command again to resume" in said) == (not nohup)
    assert (tmp_path / "s.parquet").exists() == nohup


@pytest.mark.slow
def test_names_outside_the_encoding(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "zä€😀"
    folder.mkdir()
    names = [b"\xc3\xa4\xe2\x82\xac.jpg", b"caf\xe9.jpg", b"\x1b[31m.jpg", "😀.jpg".encode()]
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes((place / "crops" / "1.jpg").read_bytes())
    (folder / "bröken.jpg").write_bytes(b"x")
    paths = [os.fsencode(folder) + b"/" + name for name in names]
    plain = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    wanted = None
    for number, change in enumerate(
        ({}, {"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1:strict"})
    ):
        here, env = tmp_path / str(number), {**plain, **change}
        here.mkdir()
        shell("", "score", folder, "-o", here / "s.parquet", env=env)
        table = pq.read_table(here / "s.parquet")
        wanted = wanted or table["path"].to_pylist()
        assert table["path"].to_pylist() == wanted
        assert table["status"].to_pylist().count("ok") == 4
        call: list[str | bytes] = [*COMMAND, "show", *paths]
        shown = subprocess.run(call, env=env, capture_output=True, check=True, cwd=ROOT).stdout
        assert b"\x1b" not in shown
        assert shown.count(b".jpg") == 4
        if number == 1:
            assert shown.isascii()
        words: list[object] = ["filter", here / "s.parquet", "-o", here / "kept", "--copy", "--keep", "100%"]
        shell("", *words, env=env)
        kept = sorted(set(os.listdir(os.fsencode(here / "kept"))) - {name.encode() for name in OURS})
        assert kept == sorted(names)
        shell("", "report", here / "s.parquet", "-o", here / "r.html", env=env)
        assert "bröken" in (here / "r.html").read_text("utf-8")
