"""`fiqa-trt export`."""

from __future__ import annotations

from pathlib import Path

import click

from fiqa_trt.cli.streams import give

_PATH = click.Path(path_type=Path)


@click.command(short_help="Write a checkpoint as ONNX.")
@click.argument("checkpoint", required=False, type=_PATH)
@click.option("-o", "--output", metavar="DIR", required=True, type=_PATH, help="The engine directory.")
@click.option("--format", "_format", default="onnx", show_default=True, type=click.Choice(["onnx"]))
@click.option(
    "--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "int8"]), help="int8: with Q/DQ nodes."
)
@click.option(
    "--calibration",
    metavar="DIR|FILE",
    type=_PATH,
    help="For int8: a folder of crops like yours, or a file of ranges.  [default: the shipped ranges]",
)
def command(checkpoint: Path | None, output: Path, _format: str, precision: str, calibration: Path | None) -> None:
    """Write CHECKPOINT (default: the released one) as an engine directory: ONNX (opset 18) and its manifest.

    Input `images`: uint8 RGB [batch, 224, 224, 3]; output `member_scores`: float32 [batch, 2]. For ONNX Runtime, Triton
    and trtexec; in fp32 also for `score --engine`.

    \b
    Examples:
      fiqa-trt export mine.safetensors -o engines/mine
      fiqa-trt export --precision int8 -o engines/int8-onnx
    """
    from fiqa_trt.building.calibration import int8_ranges
    from fiqa_trt.engines import CHECKPOINT
    from fiqa_trt.errors import EngineError
    from fiqa_trt.export import export

    if calibration is not None and precision != "int8":
        raise EngineError("--calibration is for --precision int8; leave it out")
    file = checkpoint or CHECKPOINT
    manifest = export(file, output, int8_ranges(file, calibration) if precision == "int8" else None)
    agreement = manifest.agreement
    give(f"{output}: {manifest.payload} of {manifest.model[:12]}, within {agreement['max']:.1g} of PyTorch")
