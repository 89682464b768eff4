"""`fiqa-trt export`."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import click

from fiqa_trt.cli.common import quiet_and_json, speaker
from fiqa_trt.cli.streams import give

_PATH = click.Path(path_type=Path)


@click.command(short_help="Write a checkpoint as ONNX.")
@click.argument("checkpoint", required=False, type=_PATH)
@click.option("-o", "--output", metavar="DIR", type=_PATH, help="The engine directory.")
@click.option(
    "--triton",
    metavar="DIR",
    type=_PATH,
    help="A model repository of Triton, instead of or beside -o: DIR/NAME is added.",
)
@click.option("--name", metavar="NAME", help="Of the model, with --triton.  [default: fiqa]")
@click.option("--format", "_format", default="onnx", show_default=True, type=click.Choice(["onnx"]))
@click.option(
    "--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "int8"]), help="int8: with Q/DQ nodes."
)
@click.option(
    "--calibration",
    metavar="DIR|FILE",
    type=_PATH,
    help="For int8: crops like yours (a folder, a shard, a list), or a file of ranges.  [default: the shipped ranges]",
)
@quiet_and_json
def command(
    checkpoint: Path | None,
    output: Path | None,
    triton: Path | None,
    name: str | None,
    _format: str,
    precision: str,
    calibration: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write CHECKPOINT (default: the released one) as an engine directory: ONNX (opset 18) and its manifest.

    Input `images`: uint8 RGB [batch, 224, 224, 3]; outputs `member_scores`: float32 [batch, 2], and `causes`: float32
    [batch, causes] of a checkpoint that tells of them. For ONNX Runtime, Triton and trtexec; in fp32 also for `score
    --engine`. With --triton, CHECKPOINT may also be an engine directory of ONNX or
    a TensorRT plan, which goes into the repository as it is.

    \b
    Examples:
      fiqa-trt export mine.safetensors -o engines/mine
      fiqa-trt export --precision int8 -o engines/int8-onnx
      fiqa-trt export --triton /models --name face_quality
    """
    from fiqa_trt.building.calibration import int8_ranges
    from fiqa_trt.building.export import export
    from fiqa_trt.building.triton import DEFAULT_NAME, Model, check_engine
    from fiqa_trt.engines.manifest import Manifest
    from fiqa_trt.engines.opening import CHECKPOINT
    from fiqa_trt.errors import EngineError, UsageError

    if output is None and triton is None:
        raise UsageError("export needs -o DIR for an engine directory, or --triton DIR for a model repository")
    if name is not None and triton is None:
        raise UsageError("--name is of the model in --triton DIR; leave it out")
    if calibration is not None and precision != "int8":
        raise EngineError("--calibration is for --precision int8; leave it out")
    file, say = checkpoint or CHECKPOINT, speaker(quiet)
    model = None if triton is None else Model(triton, name or DEFAULT_NAME)
    if file.is_dir() and (output is not None or model is None or precision != "fp32"):
        raise UsageError(f"{file} is a folder: an engine directory goes into --triton DIR as it is, without -o")
    if model is not None:
        model.check()
        if file.is_dir():
            check_engine(file, model)
    facts: dict[str, Any] = {"engine": None, "triton": None}
    lines = list[str]()
    with tempfile.TemporaryDirectory() as scratch:
        if file.is_dir():
            folder, manifest = file, Manifest.read(file)
        else:
            folder = output or Path(scratch) / "onnx"
            ranges = int8_ranges(file, calibration, say) if precision == "int8" else None
            manifest = export(file, folder, ranges)
            within = f"{manifest.payload} of {manifest.model[:12]}, within {manifest.agreement['max']:.1g} of PyTorch"
            facts["engine"] = output and str(output)
            lines.append(f"{output or triton}: {within}")
        if model is not None:
            network = model.write(folder)
            given = ", ".join(f"{each.name} {each.kind} {list(each.shape)}" for each in network.inputs)
            facts["triton"] = {"folder": str(model.folder), **dataclasses.asdict(network)}
            lines.append(f"{model.folder}: {given}")
            if network.batch[0] > 1:
                say(f"it takes {network.batch[0]} images at least, so Triton cannot batch: each request brings its own")
    facts["manifest"] = {**dataclasses.asdict(manifest), "reference": None}
    give(json.dumps(facts) if as_json else "\n".join(lines))
