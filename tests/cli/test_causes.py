"""Causes as a user meets them: real commands on a real engine."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.engines.opening import RELEASED
from fiqa_trt.errors import EngineError
from fiqa_trt.ray import ScoreImages
from fiqa_trt.scores.members import causes_of
from tests.helpers import TOLD, call

pytestmark = pytest.mark.slow
COLUMNS = ["cause", *(f"cause_{name}" for name in TOLD.names)]


def test_from_the_images_to_the_kept(telling: Path, crops: Path, tmp_path: Path) -> None:
    engine, output = ["--engine", str(telling / "onnx")], tmp_path / "s.parquet"
    (crops / "a" / "bad.jpg").write_bytes(b"x")
    call("score", crops, "-o", output, "--causes", *engine)
    table = pq.read_table(output)
    assert causes_of(table.schema) == TOLD.names
    assert table.column_names[4:9] == COLUMNS
    assert [table[name].null_count for name in COLUMNS[1:]] == [1] * 4
    for how in (["--devices", "cpu,cpu"], ["--precision", "fp32"]):
        call("score", crops, "-o", tmp_path / "other.parquet", "--causes", "--restart", *engine, *how)
        other = pq.read_table(tmp_path / "other.parquet")
        assert other.column_names == table.column_names
        assert other["cause_blur"].to_pylist()[1:] == pytest.approx(table["cause_blur"].to_pylist()[1:], abs=0.05)
    done = call("score", "--retry-failed", output, *engine)
    assert "1 failed" in done.stderr
    assert pq.read_table(output).equals(table)
    limit = sorted(table["cause_blur"].drop_null().to_pylist())[4]
    found = call("filter", output, "-o", tmp_path / "keep.txt", "--max-cause", f"blur={limit + 1e-6}", "--json")
    assert json.loads(found.stdout)["kept"] == 5


def test_it_is_shown(telling: Path, crops: Path, tmp_path: Path) -> None:
    image = crops / "a" / "0.jpg"
    shown = call("show", image, "--explain", "-o", tmp_path, "--engine", telling / "onnx")
    head, line = shown.stdout.splitlines()
    assert head.split()[:2] == ["score", "cause"]
    assert line.split()[1] in (*TOLD.names, "-")
    with Image.open(tmp_path / "0.jpg.explain.png") as picture:
        assert picture.height > 256
    facts = json.loads(call("show", image, "--engine", telling / "onnx", "--json").stdout)["images"][0]
    assert tuple(facts["causes"]) == TOLD.names


def test_a_released_network_that_tells_of_none_says_so(crops: Path, tmp_path: Path) -> None:
    if Manifest.read(RELEASED).spec.causes:
        assert "cause" in pq.read_schema(_scored(crops, tmp_path / "s.parquet")).names
        return
    done = call("score", crops, "-o", tmp_path / "s.parquet", "--causes", code=2)
    assert done.stderr.splitlines()[-1].startswith("fiqa-trt: --causes: the checkpoint of this engine tells of none;")
    assert not list(tmp_path.glob("s.parquet*"))
    with pytest.raises(EngineError, match="causes=True: the checkpoint of this engine tells of none"):
        ScoreImages(causes=True, device="cpu")


def _scored(crops: Path, output: Path) -> Path:
    call("score", crops, "-o", output, "--causes")
    return output


def test_images_of_ray_data(telling: Path, crops: Path) -> None:
    import pyarrow as pa

    score = ScoreImages("image", engine=str(telling / "onnx"), causes=True)
    batch = pa.table({"image": [*(path.read_bytes() for path in sorted(crops.rglob("*.jpg"))[:2]), b""]})
    found = score(batch)
    assert found.column_names[4:9] == COLUMNS
    assert found["cause_blur"].null_count == 1
    arrays = score({"image": batch["image"].to_numpy()})
    assert arrays["cause_blur"].dtype == "float32"
    assert arrays["cause"].tolist() == found["cause"].to_pylist()


def test_a_retry_takes_no_causes(tmp_path: Path) -> None:
    done = call("score", "--retry-failed", tmp_path / "s.parquet", "--causes", code=2)
    assert "--retry-failed takes its inputs from OUT, and tells of causes where OUT does" in done.stderr
