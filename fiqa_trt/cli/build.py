"""`fiqa-trt build`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from fiqa_trt.cli.common import PlaceType, interruptible, quiet_and_json, speaker
from fiqa_trt.cli.progress import ProgressLine
from fiqa_trt.cli.streams import give
from fiqa_trt.engines.registry import names
from fiqa_trt.storage.places import Place

_PATH = click.Path(path_type=Path)


@click.command(short_help="Build an engine for this machine.")
@click.option("--checkpoint", metavar="FILE", type=_PATH, help="A .safetensors file.  [default: the released one]")
@click.option("--precision", default="fp16", show_default=True, type=click.Choice(["fp32", "fp16", "int8"]))
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]", help="Only auto falls back.")
@click.option("--backend", default="auto", show_default=True, type=click.Choice(["auto", *names()]))
@click.option("--max-batch", type=click.IntRange(2, 4096), help="Largest batch.  [default: 32 on a CPU, 512 on a GPU]")
@click.option(
    "--calibration",
    metavar="DIR|FILE",
    type=PlaceType(),
    help="For int8: crops like yours (a folder, a shard, a list), or a file of ranges.  [default: the shipped ranges]",
)
@click.option(
    "--target", default="here", show_default=True, type=click.Choice(["here", "cuda"]), help="cuda: a GPU elsewhere."
)
@click.option(
    "--compute-capability", metavar="X.Y", help="Of that GPU.  [default: all that an engine is for by default]"
)
@click.option("--version-compatible", is_flag=True, help="For later versions of TensorRT, and its lean runtime, too.")
@click.option(
    "-o", "--output", metavar="DIR", type=_PATH, help="The engine directory.  [default: engines/BACKEND-PRECISION]"
)
@quiet_and_json
def command(
    checkpoint: Path | None,
    precision: str,
    device: str,
    backend: str,
    max_batch: int | None,
    calibration: Place | None,
    target: str,
    compute_capability: str | None,
    version_compatible: bool,
    output: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Build an engine for this machine, verify it against FP32, time it, and keep it where `score` finds it.

    On a CPU it is made by OpenVINO, on a GPU by TensorRT (through Torch-TensorRT), by TensorRT for RTX, or by PyTorch,
    whichever is there. An engine whose scores are too far from FP32 is not written. With --target cuda TensorRT for RTX
    builds for a GPU elsewhere, which verifies the engine when it first opens it.

    \b
    Examples:
      fiqa-trt build --precision fp16
      fiqa-trt build --precision int8 --calibration /crops
      fiqa-trt build --target cuda --compute-capability 8.6
      fiqa-trt build --checkpoint mine.safetensors -o engines/mine
    """
    from fiqa_trt.building import Request, build
    from fiqa_trt.engines.opening import CHECKPOINT
    from fiqa_trt.engines.store import is_slower

    say = speaker(quiet)
    request = Request(
        precision, checkpoint or CHECKPOINT, device, backend, max_batch, calibration, output,
        target, compute_capability, version_compatible,
    )  # fmt: skip
    with interruptible(ProgressLine("", quiet=True), "nothing was written"):
        built = build(request, say)
    manifest = built.manifest
    size = (built.folder / manifest.payload).stat().st_size / 1e6
    what = f"{manifest.backend} {manifest.precision} (run as {manifest.executed})"
    wanted = manifest.target.name or " ".join(manifest.target.features) or "GPUs of the kinds that it knows"
    say(f"{what} for {wanted}, {size:.1f} MB")
    if manifest.verified:
        gain = f", {manifest.gain:.2f} times the speed without it" if manifest.gain else ""
        say(f"batch {manifest.batch[1]}, as none is quicker for sure: {manifest.throughput:,.0f} images/s{gain}")
        say("against FP32: " + ", ".join(f"{name} {value:.5g}" for name, value in manifest.agreement.items()))
    say(f"written to {built.folder} in {manifest.seconds:.0f} s")
    if is_slower(manifest):
        say("score is quicker without it, so auto leaves it; --engine takes it all the same")
    if as_json:
        give(json.dumps({"folder": str(built.folder), **dataclasses.asdict(manifest)}))
