"""2,000 damaged files between good ones: every row is there, good scores stay. `python -m benchmarks.damage`."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.common import COMMAND, damage, machine, make_crops, median, record, timed

DAMAGED, GOOD, SEED = 2_000, 2_000, 0
SPEED_IMAGES, ROUNDS = 2_000, 3
DECODERS = ("cpu", "dali")


def main() -> None:
    """Score with and without the damaged files; then the cost of 1 % and 10 % of them."""
    facts, rng = machine(), random.Random(SEED)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        files = [path.read_bytes() for path in make_crops(root / "distinct")]
        for folder in ("good", "mixed"):
            (root / folder).mkdir()
        for index in range(GOOD):
            for folder in ("good", "mixed"):
                (root / folder / f"{index:05}_good.jpg").write_bytes(files[index % len(files)])
        for index in range(DAMAGED):
            suffix = rng.choice(("jpg", "jpg", "jpg", "png", "webp", "tif", "bmp"))
            data = damage(files[index % len(files)], rng)
            (root / "mixed" / f"{rng.randrange(GOOD):05}_{index:05}_bad.{suffix}").write_bytes(data)
        for folder in ("good", "mixed"):
            timed([*COMMAND, "score", root / folder, "-o", root / f"{folder}.parquet", "-q"])
        good = {Path(row["path"]).name: row["score"] for row in pq.read_table(root / "good.parquet").to_pylist()}
        mixed = pq.read_table(root / "mixed.parquet").to_pylist()
        among = {Path(row["path"]).name: row["score"] for row in mixed if Path(row["path"]).name in good}
        bad = [row for row in mixed if Path(row["path"]).name not in good]
        rates: dict[str, list[float]] = {}
        for share in (0, 1, 10):
            place = root / f"share{share}"
            place.mkdir()
            for index in range(SPEED_IMAGES):
                data = files[index % len(files)]
                spoiled = index % 100 < share
                (place / f"{index:05}.jpg").write_bytes(damage(data, rng) if spoiled else data)
        for _ in range(ROUNDS):
            for decoder in DECODERS:
                for share in (0, 1, 10):
                    call: list[str | Path] = [
                        *COMMAND,
                        "score",
                        root / f"share{share}",
                        "-o",
                        root / "speed.parquet",
                        "-q",
                        "--restart",
                    ]
                    seconds, _ = timed([*call, "--device", "cpu", "--decoder", decoder])
                    rates.setdefault(f"{decoder} {share} %", []).append(SPEED_IMAGES / seconds)
    speed = {name: median(values) for name, values in rates.items()}
    record(
        "damage",
        {
            "what": f"{DAMAGED} damaged files between {GOOD} good ones; then whole commands on {SPEED_IMAGES} files",
            "machine": facts,
            "rows": len(mixed),
            "damaged_by_status": dict(Counter(row["status"] for row in bad).most_common()),
            "good_scores_unchanged": among == good,
            "images_per_second_by_damage": speed,
            "of_undamaged_speed": {
                name: median([a / b for a, b in zip(values, rates[f"{name.split()[0]} 0 %"], strict=True)])
                for name, values in rates.items()
            },
        },
    )
    if among != good or len(mixed) != DAMAGED + GOOD:
        raise SystemExit("not as it should be")


if __name__ == "__main__":
    main()
