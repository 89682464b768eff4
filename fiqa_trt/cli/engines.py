"""`fiqa-trt engines`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click


@click.command(short_help="List the engines that were built.")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def command(folder: Path | None, as_json: bool) -> None:
    """List the engines in FOLDER (default: engines), and whether each can be used here.

    \b
    Example:
      fiqa-trt engines
    """
    from fiqa_trt.engines import RELEASED, Manifest
    from fiqa_trt.engines.store import best_engine, list_engines, store

    place = folder or store()
    found = list_engines(place, Manifest.read(RELEASED).model)
    chosen = {best.folder for kind in ("cpu", "cuda") if (best := best_engine(found, kind)) is not None}
    if as_json:
        entries = [
            {
                "folder": str(entry.folder),
                "problem": entry.problem,
                "auto": entry.folder in chosen,
                "manifest": entry.manifest and {**dataclasses.asdict(entry.manifest), "reference": None},
            }
            for entry in found
        ]
        click.echo(json.dumps({"engines": entries}))
        return
    if not found:
        click.echo(f"no engines in {place}; make one with: fiqa-trt build", err=True)
    for entry in found:
        manifest = entry.manifest
        if manifest is None:
            click.echo(f"{entry.folder}: {entry.problem}")
            continue
        rate = f"{manifest.throughput:,.0f} images/s" if manifest.throughput else "not timed"
        verdict = entry.problem or ("usable, the choice of auto" if entry.folder in chosen else "usable")
        what = f"{manifest.backend} {manifest.precision}, {manifest.target.name or 'any'}, {rate}"
        click.echo(f"{entry.folder}: {what}; {verdict}")
