"""The command line. Each command is a module of its own, imported when it is used, so that `--help` is quick."""

from __future__ import annotations

import copy
import errno
import importlib
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

import click

from fiqa_trt.cli import streams
from fiqa_trt.cli.common import end_interrupted
from fiqa_trt.errors import FiqaError
from fiqa_trt.scarcity import starved_program
from fiqa_trt.version import __version__

COMMANDS = {
    "score": "Score images into one file.",
    "show": "Score some images at once, and explain their scores.",
    "report": "Show a scores file as a page.",
    "filter": "Choose the images to keep, and list, copy, link, move or pack them.",
    "build": "Build an engine for this machine.",
    "engines": "List the engines that were built.",
    "doctor": "Say what works on this machine, and how to mend the rest.",
    "bench": "Measure each stage of scoring, and all of it, on this machine.",
    "eval": "Compare scores with ratings, or with what recognition makes of the images.",
    "export": "Write a checkpoint as ONNX.",
    "synthesize": "Make a training set from clean faces.",
    "train": "Train or fine-tune the ensemble on labelled crops.",
}


class _Commands(click.Group):
    """Finds commands by module name; `COMMANDS` holds what the overview says of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"fiqa_trt.cli.{cmd_name}")
        command: click.Command = copy.copy(module.command)
        assert command.callback is not None
        # Around its work alone: click prints its help, which is a result.
        command.callback = streams.results_apart()(command.callback)
        if command.help is None:
            command.help = _docstring(Path(str(module.__file__)), "command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fiqa-trt")
def group() -> None:
    """Quality scores for face crops by the million.

    \b
    Example:
      fiqa-trt score /dataset -o scores.parquet
    """


def _docstring(source: Path, function: str) -> str | None:
    """That of a function in a source file: Python with -OO keeps none, and a command's is its help."""
    import ast

    try:
        nodes = ast.parse(source.read_bytes()).body
    except (OSError, SyntaxError):
        return None
    found = (node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == function)
    return next(map(ast.get_docstring, found), None)


if group.help is None:
    group.help = _docstring(Path(__file__), "group")


def main() -> None:
    """Run the command line; every error becomes one line on stderr and its exit code.

    SIGTERM and the end of the terminal (SIGHUP, unless nohup) count as Ctrl-C.
    """
    _speak_utf8()
    results = streams.secure()
    # DALI would write a complaint about every damaged image to the terminal; our rows hold them.
    os.environ.setdefault("DALI_NVIMGCODEC_LOG_LEVEL", "0")
    # What other libraries warn of (a missing CUDA, their own deprecations) is for those who program with them.
    logging.disable(logging.WARNING)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        code = _run()
    except (KeyboardInterrupt, click.Abort):
        end_interrupted("interrupted")
    sys.stdout.flush()
    if results.failure is not None and results.failure.errno == errno.EPIPE:
        code = code or streams.READER_GONE
    elif results.failure is not None:
        streams.complain(f"cannot write the results to standard output: {results.failure.strerror}")
        code = code or 1
    sys.exit(code)


def _run() -> int:
    """The exit code of the command that was given."""
    try:
        code = group.main(prog_name="fiqa-trt", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        return exc.exit_code
    except click.ClickException as exc:
        context = getattr(exc, "ctx", None)
        way_out = f"; see {context.command_path} --help" if context is not None else ""
        streams.complain(f"{exc.format_message().rstrip('.')}{way_out}")
        return exc.exit_code
    except FiqaError as exc:
        streams.complain(str(exc))
        return exc.exit_code
    except Exception as exc:
        starved = starved_program(exc)
        if starved is None:
            raise
        streams.complain(str(starved))
        return starved.exit_code


def _speak_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding (LC_ALL=C, ISO-8859-1).

    Paths in tables are text, and names of files are bytes; with one encoding between them, there is no file that can be
    named in one way and not in the other. What is printed keeps the locale's encoding.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.flags.utf8_mode or not sys.executable:
        return
    environment = {**os.environ, "PYTHONUTF8": "1"}
    if sys.stderr is not None:
        environment.setdefault("PYTHONIOENCODING", sys.stderr.encoding)
    os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)
