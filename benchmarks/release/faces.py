"""The list that `fiqa-trt synthesize` reads: photographs with boxes and a `quality` from the pose of the head.

`python -m benchmarks.release.faces FACES.csv -o list.csv`. FACES.csv has the columns file, pool, demographic, group,
split, face_x, face_y, face_w, face_h. `quality` is cos²(yaw) cos²(pitch) of `pose.csv` (made by `pose.py`), after the
pose components of ISO/IEC 29794-5; pitch counts from the median, where heads are upright. `pose` is what it lacks to 1,
empty where no face was found. The landmarks are those of `pose.csv`.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from benchmarks.release.pose import POINTS

POSE = Path(__file__).parent / "pose.csv"
LANDMARKS = tuple(f"{name}_{axis}" for name in POINTS for axis in "xy")
_UNKNOWN_YAW = np.degrees(0.5)  # no face was found: most of these are profiles
_LOWEST = 0.2


def qualities() -> dict[str, float]:
    """Quality in [0.2, 1] by file; the key "" is for a photograph without a pose."""
    with POSE.open(newline="") as file:
        poses = {row["file"]: (float(row["yaw"]), float(row["pitch"])) for row in csv.DictReader(file)}
    upright = float(np.median([pitch for _, pitch in poses.values()]))
    poses[""] = (_UNKNOWN_YAW, upright)
    return {
        name: max(_LOWEST, float(np.cos(np.radians(yaw)) ** 2 * np.cos(np.radians(pitch - upright)) ** 2))
        for name, (yaw, pitch) in poses.items()
    }


def landmarks() -> dict[str, list[str]]:
    """The columns LANDMARKS by file, of photographs in which a face was found."""
    with POSE.open(newline="") as file:
        return {row["file"]: [row[name] for name in LANDMARKS] for row in csv.DictReader(file)}


def main() -> None:
    """Write the list; paths are absolute."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faces", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    known, places_of = qualities(), landmarks()
    box = ("face_x", "face_y", "face_w", "face_h")
    with options.faces.open(newline="") as faces, options.output.open("w", newline="") as output:
        writer = csv.writer(output)
        writer.writerow(["path", "group", "split", "pool", "demographic", "quality", "pose", *box, *LANDMARKS])
        for row in csv.DictReader(faces):
            quality = known.get(row["file"], known[""])
            path = (options.faces.parent / row["file"]).resolve()
            described = (row[name] for name in ("group", "split", "pool", "demographic"))
            pose = f"{1 - quality:.4f}" if row["file"] in known else ""
            places = places_of.get(row["file"], [""] * len(LANDMARKS))
            writer.writerow([path, *described, f"{quality:.4f}", pose, *(row[name] for name in box), *places])


if __name__ == "__main__":
    main()
