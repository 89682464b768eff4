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
    """Say which engines and decoders work on this machine and, for each that does not, what would make it work.

    \b
    Example:
      fiqa-trt doctor
    """
    from fiqa_trt.machine.doctor import examine

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
        give(f"{'yes' if check.works else 'no ':3}  {check.name}: {check.detail}")
        if check.remedy:
            give(f"     -> {check.remedy}")
