"""A dozen sample crops from a public-domain portrait (NASA's Eileen Collins), good, bad and broken.

`python -m fiqa_trt.machine.samples make DIR`, then `fiqa-trt score`, then
`python -m fiqa_trt.machine.samples show SCORES`.
"""

from __future__ import annotations

import io
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from fiqa_trt.models import verification
from fiqa_trt.models.verification import SIZE


def portrait() -> Image.Image:
    """The face, 224 x 224 pixels at the photograph's own resolution."""
    return Image.fromarray(verification.portrait())


def crops() -> dict[str, Image.Image]:
    """The whole crops by name; each but the first is one kind of damage."""
    sharp = portrait()
    pixels = np.asarray(sharp).astype(np.float64)
    noise = np.random.default_rng(0).normal(0, 30, pixels.shape)

    def image(values: npt.NDArray[np.float64]) -> Image.Image:
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))

    return {
        "sharp": sharp,
        **{f"blur_{radius}px": sharp.filter(ImageFilter.GaussianBlur(radius)) for radius in (1, 2, 4)},
        "noise": image(pixels + noise),
        "upscaled_40px": sharp.resize((40, 40), Image.Resampling.BILINEAR).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        ),
        "dark": image(pixels * 0.15),
        "hazy": image(pixels * 0.35 + 150),
    }


def _jpeg(image: Image.Image, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def make(folder: Path) -> None:
    """Write nine JPEGs and three files that are none into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: _jpeg(image) for name, image in crops().items()}
    files["jpeg_8"] = _jpeg(portrait(), quality=8)
    files["truncated"] = files["sharp"][: len(files["sharp"]) // 2]
    files["empty"] = b""
    files["text"] = b"This is not an image.\n"
    for name, data in files.items():
        (folder / f"{name}.jpg").write_bytes(data)


def show(scores: Path) -> str:
    """The rows of a scores file as a table, best first, failures last."""
    import pyarrow.parquet as pq

    rows = pq.read_table(scores).to_pylist()
    rows.sort(key=lambda row: (row["score"] is None, -(row["score"] or 0), row["path"]))
    width = max(len(row["path"]) for row in rows)
    lines = [f"{'path':{width}}  score  status"]
    for row in rows:
        score = "    -" if row["score"] is None else f"{row['score']:.3f}"
        lines.append(f"{row['path']:{width}}  {score}  {row['status']}" + (f": {row['error']}" if row["error"] else ""))
    return "\n".join(lines)


@click.group()
def main() -> None:
    """Make the demo's samples, or show their scores."""


@main.command("make")
@click.argument("folder", type=click.Path(path_type=Path))
def make_command(folder: Path) -> None:
    """Write the samples into FOLDER."""
    make(folder)


@main.command("show")
@click.argument("scores", type=click.Path(path_type=Path))
def show_command(scores: Path) -> None:
    """Print SCORES (.parquet) as a table."""
    click.echo(show(scores))


if __name__ == "__main__":
    main()
