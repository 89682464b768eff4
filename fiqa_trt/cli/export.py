"""`fiqa-trt export`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Write a checkpoint as an engine directory (ONNX).")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="DIR", required=True, type=click.Path(path_type=Path), help="The engine directory."
)
def command(checkpoint: Path | None, output: Path) -> None:
    """Write CHECKPOINT (default: the released one) as an engine directory: ONNX and its manifest.

    \b
    Example:
      fiqa-trt export model.safetensors -o engines/mine
      fiqa-trt score /dataset -o scores.parquet --engine engines/mine
    """
    from fiqa_trt.engines import CHECKPOINT
    from fiqa_trt.export import export

    manifest = export(checkpoint or CHECKPOINT, output)
    agreement = manifest.agreement
    click.echo(f"{output}: {manifest.payload} of {manifest.model[:12]}, within {agreement['max']:.1g} of PyTorch")
