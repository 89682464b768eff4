"""`fiqa-trt doctor`."""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings

import click

from fiqa_trt.cli.common import quiet_and_json
from fiqa_trt.cli.streams import give


@click.command(short_help="Say what works on this machine, and how to mend the rest.")
@quiet_and_json
def command(quiet: bool, as_json: bool) -> None:
    """Say which engines and decoders work on this machine and, for those that do not, what would make them work.

    \b
    Example:
      fiqa-trt doctor
    """
    from fiqa_trt.machine.doctor import NO_GPU, examine

    logging.disable(logging.ERROR)  # libraries complain of each other's absence in many words
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = examine()
    if as_json:
        give(json.dumps(dataclasses.asdict(report)))
        return
    give(f"fiqa-trt {report.version}, Python {report.python}, {report.system}")
    give(f"{report.processor}, {report.cores} core(s): {' '.join(report.arithmetic)}")
    for gpu in report.gpus:
        give(f"{gpu.name}, {gpu.memory / 1e9:.0f} GB, driver {gpu.driver}")
    give("  ".join(f"{name} {version}" for name, version in report.versions.items() if version))
    for check in report.checks:
        if check.works:
            give(f"yes  {check.name}: {check.detail}")
    for remedy in dict.fromkeys(check.remedy for check in report.checks if not check.works):
        failing = [check for check in report.checks if check.remedy == remedy]
        if remedy == NO_GPU:
            give(f"no   {', '.join(check.name for check in failing)}")
        else:
            for check in failing:
                give(f"no   {check.name}: {check.detail}")
        give(f"     -> {remedy}")
