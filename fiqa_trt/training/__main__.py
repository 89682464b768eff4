"""How the shipped checkpoint was trained: `python -m fiqa_trt.training synthesize`, then `… fit`."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.group()
def main() -> None:
    """Make the training pool and train the ensemble on it."""


@main.command()
@click.argument("table", type=_PATH)
@click.option("-o", "--out", type=_PATH, required=True, help="Folder of the pool.")
@click.option("--count", type=click.IntRange(64), default=11000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=2, show_default=True)
def synthesize(table: Path, out: Path, count: int, seed: int, workers: int) -> None:
    """Degrade and label crops of the portraits in TABLE (a `faces.csv`)."""
    from fiqa_trt.training import dataset

    dataset.synthesize(table, out, count, seed, workers)


@main.command()
@click.argument("pool", type=_PATH)
@click.option("-o", "--out", type=_PATH, required=True, help="The checkpoint (.safetensors).")
@click.option("--backbone", help="ShuffleNetV2 weights to start from (.safetensors).")
@click.option("--epochs", default=6, show_default=True)
@click.option("--seed", default=0, show_default=True)
def fit(pool: Path, out: Path, backbone: str | None, epochs: int, seed: int) -> None:
    """Train both members on POOL; SRCC and PLCC on its `val` split are printed after each epoch."""
    from fiqa_trt.training.dataset import load_pool
    from fiqa_trt.training.loop import Recipe
    from fiqa_trt.training.loop import fit as run

    run(load_pool(pool), out, Recipe(epochs=epochs, seed=seed, backbone=backbone))


if __name__ == "__main__":
    main()
