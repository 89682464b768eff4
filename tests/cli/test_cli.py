"""The command as its user meets it: a process with exit codes, stdout and stderr."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from fiqa_trt.cli import COMMANDS, group
from fiqa_trt.cli.score import describe
from fiqa_trt.engines.base import PRECISIONS
from fiqa_trt.runs.run import Summary
from tests.helpers import COMMAND, ROOT, call


def complaint(*arguments: str | Path, code: int = 2, **options: object) -> str:
    """The one line on stderr that a user's mistake gets."""
    done = call("score", *arguments, code=code, **options)
    assert not done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("fiqa-trt:")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.endswith(lines[0] + "\n")
    return lines[0]


@pytest.mark.slow
def test_score_a_folder(crops: Path, tmp_path: Path) -> None:
    (crops / "empty.jpg").touch()
    done = call("score", crops, "-o", tmp_path / "s.parquet")
    assert not done.stdout
    assert "11 images" in done.stderr
    assert "1 empty" in done.stderr
    assert "50%" in done.stderr
    assert "written to" in done.stderr
    again = call("score", crops, "-o", tmp_path / "s.parquet").stderr
    assert "s.parquet is already complete" in again
    assert "written to" not in again
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.num_rows == 11
    assert table["score"].null_count == 1
    assert all(0 <= score <= 1 for score in table["score"].drop_null().to_pylist())


@pytest.mark.slow
def test_json_is_one_object_on_stdout(crops: Path, tmp_path: Path) -> None:
    done = call("score", crops, "-o", tmp_path / "s.csv", "--json", "-q", "--precision", "fp32")
    assert not done.stderr
    summary = json.loads(done.stdout)
    assert summary["statuses"] == {"ok": 10}
    assert summary["engine"]["executed"] == "fp32"
    assert list(summary["quantiles"]) == ["0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99"]


@pytest.mark.slow
def test_standard_input_and_retry(crops: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.parquet"
    listing = "\n".join(str(path) for path in sorted(crops.rglob("*.jpg"))) + f"\n{crops}/late.jpg\n"
    call("score", "-", "-o", output, input=listing)
    shutil.copy(crops / "a" / "0.jpg", crops / "late.jpg")
    call("score", "--retry-failed", output)
    scores = pq.read_table(output)["score"].to_pylist()
    assert scores[-1] == scores[0] is not None


@pytest.mark.slow
def test_names_that_are_not_utf8(crops: Path, tmp_path: Path) -> None:
    name = os.fsencode(crops) + b"/caf\xe9.jpg"
    shutil.copy(crops / "a" / "0.jpg", os.fsdecode(name))
    for output in (tmp_path / "s.parquet", tmp_path / "s.csv", tmp_path / "s.jsonl"):
        call("score", crops, name, "-o", output)
    call("score", "--list", tmp_path / "s.parquet", "-o", tmp_path / "again.parquet")
    again = pq.read_table(tmp_path / "again.parquet")
    assert again["path"] == pq.read_table(tmp_path / "s.parquet")["path"]
    assert set(again["status"].to_pylist()) == {"ok"}


@pytest.mark.slow
def test_users_mistakes(crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    (tmp_path / "none").mkdir()
    (tmp_path / "l.csv").write_text("name\na.jpg\n")
    assert "/gone" in complaint(tmp_path / "gone", "-o", out)
    assert "no images in" in complaint(tmp_path / "none", "-o", out)
    assert "name it .parquet, .csv, .jsonl" in complaint(crops, "-o", tmp_path / "s.xlsx")
    assert "does not exist" in complaint(crops, "-o", tmp_path / "no" / "s.parquet")
    assert "no column `path`" in complaint("--list", tmp_path / "l.csv", "-o", out)
    assert "no int8 engine here yet" in complaint(crops, "-o", out, "--precision", "int8", "--device", "cpu")
    assert "--engine" in complaint(crops, "-o", out, "--engine", tmp_path / "gone")
    assert "one of auto, cpu" in complaint(crops, "-o", out, "--device", "tpu")
    assert "-o OUT" in complaint(crops)
    assert "INPUT" in complaint("-o", out)
    assert "INPUT" in complaint(crops, "--list", tmp_path / "l.csv", "-o", out)
    assert "--retry-failed" in complaint(crops, "--retry-failed", out)
    assert "no such file" in complaint("--retry-failed", out)
    assert "neither a number" in complaint(crops, "-o", out, "--max-failed", "1.5")
    assert "neither a number" in complaint(crops, "-o", out, "--max-failed", "nan%")
    assert "neither a number" in complaint(crops, "-o", out, "--max-failed", "200%")
    out.write_text("mine")
    assert "exists already" in complaint(crops, "-o", out)
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops", "l.csv", "none", "s.parquet"]


@pytest.mark.slow
def test_explicit_cuda_without_cuda(crops: Path, tmp_path: Path) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has a GPU")
    assert "cuda" in complaint(crops, "-o", tmp_path / "s.parquet", "--device", "cuda")


@pytest.mark.slow
def test_read_only_folder(crops: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # root may write everywhere, but for /proc
        folder = Path("/proc")
    assert f"cannot write {folder}" in complaint(crops, "-o", folder / "s.parquet")


@pytest.mark.slow
def test_max_failed_and_nothing_scored(crops: Path, tmp_path: Path) -> None:
    (crops / "bad.jpg").touch()
    for accepted in ("1", "10%"):
        call("score", crops, "-o", tmp_path / "s.csv", "--max-failed", accepted, "--restart")
    for refused in ("0", "5%"):
        done = call("score", crops, "-o", tmp_path / "s.csv", "--max-failed", refused, "--restart", code=3)
        assert "1 of 11 rows failed" in done.stderr
    call("score", crops / "bad.jpg", "-o", tmp_path / "t.csv", code=3)
    assert (tmp_path / "t.csv").exists()


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))


@pytest.mark.slow
def test_full_disk_is_one_line_and_the_run_goes_on_afterwards(crops: Path, tmp_path: Path) -> None:
    """A limit on the size of a file stands for a full disk: the write fails in the same place, for real."""
    listing = tmp_path / "l.txt"
    listing.write_text("".join(f"{crops}/a/{index}.jpg\n" for index in range(0, 10, 2)) + "gone/but/long.jpg\n" * 3000)
    arguments = ("--list", listing, "-o", tmp_path / "s.csv", "--unit-size", "500")
    no_cache = {**os.environ, "FIQA_TRT_CACHE": "/dev/null/x"}
    message = complaint(*arguments, code=1, preexec_fn=_small_files, env=no_cache)
    assert "no space left" in message
    assert not (tmp_path / "s.csv").exists()
    call("score", *arguments)
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 3006


@pytest.fixture
def many(tmp_path: Path, crops: Path) -> Path:
    """Thousands of links to ten crops."""
    folder = tmp_path / "many"
    folder.mkdir()
    files = sorted(crops.rglob("*.jpg"))
    for index in range(3000):
        os.link(files[index % 10], folder / f"{index:05}.jpg")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_resumable(many: Path, tmp_path: Path, number: signal.Signals) -> None:
    arguments = [*COMMAND, "score", str(many), "-o", str(tmp_path / "s.parquet"), "--unit-size", "64"]
    arguments += ["--batch-size", "1", "--workers", "1"]  # as slow as may be, so that it is not over too soon
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    parts = tmp_path / "s.parquet.partial" / "parts"
    deadline = time.monotonic() + 300
    while not (parts.is_dir() and list(parts.glob("0*.parquet"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "run the same command again to resume" in said
    assert "Traceback" not in said
    assert not (tmp_path / "s.parquet").exists()
    done = call("score", many, "-o", tmp_path / "s.parquet", "--unit-size", "64", "--json")
    assert 0 < json.loads(done.stdout)["scored_now"] < 3000
    assert "resuming" in done.stderr
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.num_rows == 3000
    scores = table["score"].to_pylist()
    assert len(set(scores[::10])) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_a_place_in_the_readme(command: str) -> None:
    result = CliRunner().invoke(group, [command, "--help"])
    assert result.exit_code == 0
    assert f"fiqa-trt {command}" in result.output.split("Example")[1]
    assert f"fiqa-trt {command}" in (ROOT / "README.md").read_text()


def test_every_option_of_score_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    score = group.get_command(None, "score")  # type: ignore[arg-type]
    assert score is not None
    missing = [
        name for parameter in score.params for name in parameter.opts if name.startswith("--") and name not in readme
    ]
    assert not missing


@pytest.mark.slow
def test_help_and_scoring_load_no_more_than_they_need(crops: Path, tmp_path: Path) -> None:
    program = "import sys; sys.argv[0] = 'x'\nfrom fiqa_trt.cli import group\n"
    shown = (
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'openvino', 'pyarrow', 'numpy', 'PIL'}))"
    )

    def loaded(*arguments: str) -> str:
        call = f"try: group({list(arguments)!r})\nexcept SystemExit: pass\n"
        done = subprocess.run(
            [sys.executable, "-c", program + call + shown], capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()[-1]

    assert loaded("--help") == "[]"
    assert loaded("score", "--help") == "[]"
    arguments = ("score", str(crops), "-o", str(tmp_path / "s.csv"), "--device", "cpu")
    assert loaded(*arguments) == "['PIL', 'numpy', 'openvino', 'pyarrow']"


def test_interruption_while_it_starts() -> None:
    program = "import fiqa_trt.cli as cli; cli.group.main = lambda **o: exec('raise KeyboardInterrupt'); cli.main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "fiqa-trt: interrupted\n")


def test_a_rate_is_said_of_what_was_scored_now() -> None:
    """Of a retry of three images among a million it is no rate of a million."""
    whole = Summary("s.parquet", 1000, {"ok": 999, "empty": 1}, {}, 1000, 2.0, {})
    assert describe(whole).startswith("1,000 images, 500 images/s, 1 failed\n")
    retried = dataclasses.replace(whole, scored_now=3, seconds=0.1)
    assert describe(retried).startswith("1,000 images, 3 of them scored now, 30 images/s, 1 failed\n")
    assert describe(dataclasses.replace(whole, scored_now=0, seconds=0)).startswith("1,000 images, 1 failed\n")


@pytest.mark.slow
def test_libraries_do_not_complain_of_damaged_images(crops: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 80).save(buffer, "TIFF", compression="tiff_lzw")
    data = bytearray(buffer.getvalue())
    data[1000:3000] = bytes(2000)
    (crops / "noise.tif").write_bytes(data)
    assert not call("score", crops, "-o", tmp_path / "s.parquet", "-q").stderr
    assert pq.read_table(tmp_path / "s.parquet")["status"].to_pylist().count("ok") == 10
    program = (
        "import os, sys; from fiqa_trt.cli.quiet import without_complaints\n"
        "with without_complaints():\n"
        "    os.write(2, b'libpng error: x\\nfatal\\nTIFFRead: y')\n"
        "    print('ours', file=sys.stderr)\n"
        "os.write(2, b'libpng error: after')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "fatal\n" in done.stderr
    assert "ours\n" in done.stderr
    assert "error: x" not in done.stderr
    assert "error: after" in done.stderr


@pytest.mark.slow
def test_no_colour_and_no_bar_where_there_is_no_terminal(crops: Path, tmp_path: Path) -> None:
    done = call("score", crops, "-o", tmp_path / "s.parquet")
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr


def test_launcher_of_the_checkout() -> None:
    done = subprocess.run([sys.executable, "cli.py", "--version"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("fiqa-trt, version ")


def test_precisions_are_those_of_the_engines() -> None:
    help_text = CliRunner().invoke(group, ["score", "--help"]).output
    assert "|".join(("auto", *PRECISIONS)) in help_text
