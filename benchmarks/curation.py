"""`filter` on ten million rows and `report` on three million: seconds, peak memory. `python -m benchmarks.curation`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import COMMAND, machine, record, timed
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.scores.schema import own_types

FILTER_ROWS, REPORT_ROWS, PER_PERSON, STEP = 10_000_000, 3_000_000, 40, 1 << 17


def scores(path: Path, rows: int) -> None:
    """A scores file of made-up rows, one in a thousand failed, forty images a person."""
    rng = np.random.default_rng(0)
    schema = pa.schema(list(own_types(MEMBERS).items()))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, STEP):
            index = np.arange(start, min(rows, start + STEP))
            members = rng.random((2, len(index)), np.float32)
            bad = index % 1000 == 7
            sides = pa.array(rng.integers(20, 600, len(index)), pa.int32())
            columns = [
                pa.array([f"/data/faces/train/identity_{i // PER_PERSON:07}/{i:09}.jpg" for i in index.tolist()]),
                *(pa.array(values, mask=bad) for values in (members.mean(axis=0), *members)),
                sides,
                sides,
                pa.array(np.where(bad, "corrupt", "ok").tolist()),
                pa.array(np.where(bad, "broken data stream", "").tolist(), mask=~bad),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def main() -> None:
    """Measure and record."""
    facts = machine()
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        scores(root / "s.parquet", FILTER_ROWS)
        call: list[str | Path] = [*COMMAND, "filter", root / "s.parquet", "-q", "-o"]
        rules = {
            "--keep 80%": ["--keep", "80%"],
            "all rules": [
                "--min-score", "0.2", "--max-disagreement", "0.5", "--per-group", "10", "--keep", "80%",
                "--keep-at-least", "1",
            ],
        }  # fmt: skip
        for name, options in rules.items():
            for suffix in ("txt", "parquet"):
                seconds, peak = timed([*call, root / f"{name[:3].strip('-')}.{suffix}", *options])
                found[f"filter {name}, {suffix}"] = {"seconds": round(seconds, 1), "peak_mb": round(peak)}
        scores(root / "r.parquet", REPORT_ROWS)
        seconds, peak = timed([*COMMAND, "report", root / "r.parquet", "-o", root / "r.html", "-q"])
        page = (root / "r.html").stat().st_size / 1e6
        found["report"] = {"seconds": round(seconds, 1), "peak_mb": round(peak), "page_mb": round(page, 2)}
    record("curation", {"what": f"{FILTER_ROWS} and {REPORT_ROWS} rows", "machine": facts, **found})


if __name__ == "__main__":
    main()
