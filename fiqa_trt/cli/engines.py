"""`fiqa-trt engines`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fiqa_trt.cli.common import quiet_and_json, speaker
from fiqa_trt.cli.streams import give
from fiqa_trt.errors import EngineError, FiqaError
from fiqa_trt.progress import Say

if TYPE_CHECKING:
    from fiqa_trt.engines.store import Found


@click.command(short_help="List the engines that were built.")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Open each one that can be used here and compare its scores.")
@quiet_and_json
def command(folder: Path | None, verify: bool, quiet: bool, as_json: bool) -> None:
    """List the engines in FOLDER (default: engines), and whether each can be used here.

    With --verify each of these is opened and compared with the scores that it records; one that was built for a GPU
    elsewhere is timed as well. The exit code is 1 if one is damaged or too far from them.

    \b
    Examples:
      fiqa-trt engines
      fiqa-trt engines --verify
    """
    from fiqa_trt.engines.manifest import MANIFEST, Manifest
    from fiqa_trt.engines.opening import RELEASED
    from fiqa_trt.engines.store import best_engine, list_engines, store

    place = folder or store()
    if folder is not None and not folder.is_dir():
        raise EngineError(f"{folder}: no such folder")
    if (place / MANIFEST).exists():
        raise EngineError(f"{place} is itself an engine; give the folder that holds it")
    listed = list_engines(place, Manifest.read(RELEASED).model)
    found = [_whole(entry) for entry in listed]
    could = set[Path]()
    if verify:
        could = {entry.folder for entry in listed if entry.problem is None}
        found = [_verified(entry, speaker(quiet)) for entry in found]
        if found and not could:
            speaker(quiet)("nothing was verified: none of these can be used here")
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
    elif not found:
        speaker(quiet)(f"no engines in {place}; make one with: fiqa-trt build")
    else:
        _list(found, chosen)
    if could - {entry.folder for entry in found if entry.problem is None}:
        click.get_current_context().exit(1)


def _list(found: Sequence[Found], chosen: set[Path]) -> None:
    """Print a line for each engine."""
    from fiqa_trt.engines.store import is_slower

    for entry in found:
        manifest = entry.manifest
        if manifest is None:
            give(f"{entry.folder}: {entry.problem}")
            continue
        rate = f"{manifest.throughput:,.0f} images/s" if manifest.throughput else "not timed"
        rate += f" ({manifest.gain:.2f} times the speed without it)" if manifest.gain else ""
        verdict = entry.problem or ("usable, the choice of auto" if entry.folder in chosen else "usable")
        if entry.problem is None and not manifest.verified:
            verdict += ", not verified before its first start"
        if entry.problem is None and is_slower(manifest):
            verdict += ", but slower than without it: auto leaves it"
        target = manifest.target.name or " ".join(manifest.target.features) or "any"
        what = f"{manifest.backend} {manifest.precision}, {target}, {rate}"
        give(f"{entry.folder}: {what}; {verdict}")


def _whole(entry: Found) -> Found:
    """The entry, with a problem if its payload is not what it was."""
    try:
        if entry.manifest is not None and entry.problem is None:
            entry.manifest.read_payload(entry.folder)
    except EngineError as exc:
        return dataclasses.replace(entry, problem=str(exc))
    return entry


def _verified(entry: Found, say: Say) -> Found:
    """The entry after its engine was opened and compared, with a problem if that showed one."""
    from fiqa_trt.building.verify import verify

    if entry.problem is not None:
        return entry
    try:
        found, manifest = verify(entry.folder, say)
    except FiqaError as exc:
        return dataclasses.replace(entry, problem=str(exc))
    say(f"{entry.folder} scores as it records: {found}")
    return dataclasses.replace(entry, manifest=manifest)
