"""`fiqa-trt engines`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fiqa_trt.cli.common import quiet_and_json, speaker
from fiqa_trt.cli.streams import give
from fiqa_trt.errors import EngineError

if TYPE_CHECKING:
    from fiqa_trt.engines.store import Found


@click.command(short_help="List the engines that were built.")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@quiet_and_json
def command(folder: Path | None, quiet: bool, as_json: bool) -> None:
    """List the engines in FOLDER (default: engines), and whether each can be used here.

    \b
    Example:
      fiqa-trt engines
    """
    from fiqa_trt.engines.manifest import MANIFEST, Manifest
    from fiqa_trt.engines.opening import RELEASED
    from fiqa_trt.engines.store import best_engine, is_slower, list_engines, store

    place = folder or store()
    if folder is not None and not folder.is_dir():
        raise EngineError(f"{folder}: no such folder")
    if (place / MANIFEST).exists():
        raise EngineError(f"{place} is itself an engine; give the folder that holds it")
    found = [_whole(entry) for entry in list_engines(place, Manifest.read(RELEASED).model)]
    best = [best_engine(found, kind) for kind in ("cpu", "cuda")] if place == store() else []
    chosen = {entry.folder for entry in best if entry is not None}
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
        give(json.dumps({"engines": entries}))
        return
    if not found:
        speaker(quiet)(f"no engines in {place}; make one with: fiqa-trt build")
    for entry in found:
        manifest = entry.manifest
        if manifest is None:
            give(f"{entry.folder}: {entry.problem}")
            continue
        rate = f"{manifest.throughput:,.0f} images/s" if manifest.throughput else "not timed"
        rate += f" ({manifest.gain:.2f} times the speed without it)" if manifest.gain else ""
        verdict = entry.problem or ("usable, the choice of auto" if entry.folder in chosen else "usable")
        if entry.problem is None and is_slower(manifest):
            verdict += ", but slower than without it: auto leaves it"
        what = f"{manifest.backend} {manifest.precision}, {manifest.target.name or 'any'}, {rate}"
        give(f"{entry.folder}: {what}; {verdict}")


def _whole(entry: Found) -> Found:
    """The entry, with a problem if its payload is not what it was."""
    try:
        if entry.manifest is not None and entry.problem is None:
            entry.manifest.read_payload(entry.folder)
    except EngineError as exc:
        return dataclasses.replace(entry, problem=str(exc))
    return entry
