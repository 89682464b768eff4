"""The command line. Each command is a module of its own, imported when it is used, so that `--help` is quick."""

from __future__ import annotations

import importlib
import os
import signal
import sys

import click

from fiqa_trt import __version__
from fiqa_trt.cli.common import end_interrupted
from fiqa_trt.errors import FiqaError, printable

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
        command: click.Command = importlib.import_module(f"fiqa_trt.cli.{cmd_name}").command
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


def main() -> None:
    """Run the command line; every error becomes one line on stderr and its exit code. SIGTERM counts as Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # DALI would write a complaint about every damaged image to the terminal; our rows hold them.
    os.environ.setdefault("DALI_NVIMGCODEC_LOG_LEVEL", "0")
    try:
        code = group.main(prog_name="fiqa-trt", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, click.Abort):
        end_interrupted("interrupted")
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except click.ClickException as exc:
        context = getattr(exc, "ctx", None)
        way_out = f"; see {context.command_path} --help" if context is not None else ""
        click.echo(f"fiqa-trt: {printable(exc.format_message().rstrip('.'))}{way_out}", err=True)
        sys.exit(exc.exit_code)
    except FiqaError as exc:
        click.echo(f"fiqa-trt: {printable(str(exc))}", err=True)
        sys.exit(exc.exit_code)
