"""Score the image suites of other projects, and compare every file with what Pillow makes of it.

`python -m benchmarks.suites FOLDER...`: every file below the folders is scored in one command, whatever its name; then
each is opened with Pillow alone. Where the two differ is printed in groups, file by file; the counts are recorded in
`results/suites.json`. Good suites are `Tests/images` of Pillow's source distribution, and the images in the source
packages of libtiff, libpng, libwebp, exiv2, gdk-pixbuf and GraphicsMagick.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from benchmarks.common import COMMAND, machine, record
from fiqa_trt.decoding.cpu import decode_image, fit

SAME = 1.0
"""Mean difference in levels up to which pixels count as the same."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What Pillow makes of a file: its format, mode, size and pixels as the networks would see them, or an error."""

    format: str | None = None
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    pixels: Any = None
    error: str = ""


def look(path: Path) -> Seen:
    """Open a file with Pillow, by its content."""
    name, mode, size = None, "", (0, 0)
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            name, mode, size = image.format, image.mode, image.size
            image.load()
            upright = ImageOps.exif_transpose(image)
            if mode.startswith("I;16") or (mode == "I" and name == "PPM"):  # what `convert` would clip
                upright = Image.fromarray((np.asarray(upright).astype(np.uint32) >> 8).astype(np.uint8))
            over = Image.new("RGBA", upright.size, "white")
            over.alpha_composite(upright.convert("RGBA"))
            return Seen(name, mode, size, fit(over.convert("RGB"), 224))
    except Exception as exc:  # whatever a suite provokes
        return Seen(name, mode, size, error=f"{type(exc).__name__}: {exc}"[:120])


def score(folders: Sequence[Path], output: Path) -> list[dict[str, Any]]:
    """Rows of one run over all files of the folders."""
    command = [*COMMAND, "score", *map(str, folders), "--all-files", "--device", "cpu", "-o", str(output), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"exit {done.returncode}: {done.stderr[-2000:]}")
    rows: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return rows


def difference(row: dict[str, Any], seen: Seen) -> tuple[str, str]:
    """Group of a row, and what to say of it."""
    ours, theirs = row["status"], f"{seen.format} {seen.mode}"
    if not Path(row["path"]).is_file():
        return f"in a shard ({ours})", ""
    if ours != "ok":
        if seen.error or seen.format is None:
            return f"neither ({ours})", ""
        return f"{ours}, Pillow reads {seen.format}", f"{seen.mode}: {row['error']}"
    if seen.error:
        return "ok, Pillow fails", f"{theirs}: {seen.error}"
    image = decode_image(Path(row["path"]).read_bytes())
    mean = float(np.abs(fit(image, 224).astype(int) - seen.pixels).mean())
    if image.size not in (seen.size, seen.size[::-1]):
        return "ok, another size", f"{theirs}: {image.size}, {seen.size}"
    if mean > SAME:
        return "ok, other pixels", f"{theirs}: {mean:.1f} levels"
    return "ok, same pixels", ""


def compare(folders: Sequence[Path]) -> Iterator[tuple[str, str, str]]:
    """Path, group and remark of each file."""
    with tempfile.TemporaryDirectory() as place:
        rows = score(folders, Path(place) / "scores.parquet")
    for row in rows:
        group, remark = difference(row, look(Path(row["path"])))
        yield row["path"], group, remark


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    folders = parser.parse_args().folders
    facts: dict[str, Any] = {"machine": machine(), "suites": {}}
    for folder in folders:
        groups, found = Counter[str](), defaultdict[str, list[str]](list)
        for path, group, remark in compare([folder]):
            groups[group] += 1
            if remark:
                found[group].append(f"{Path(path).relative_to(folder)}: {remark}")
        for group, lines in sorted(found.items()):
            print(f"\n{folder.name}: {group} ({len(lines)})")
            print("\n".join(f"  {line}" for line in sorted(lines)))
        facts["suites"][folder.name] = {"files": sum(groups.values()), **dict(sorted(groups.items()))}
    record("suites", facts)


if __name__ == "__main__":
    main()
