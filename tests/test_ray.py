"""ScoreImages, as Ray Data calls it: columns are added, and no image makes it raise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fiqa_trt import Scorer
from fiqa_trt.errors import InputError, UsageError
from fiqa_trt.ray import ScoreImages

pytestmark = pytest.mark.slow
NEW = ["score", "score_mobilenet_v3_small", "score_shufflenet_v2_x1_0", "status", "error"]


@pytest.fixture(scope="module")
def score() -> ScoreImages:
    return ScoreImages("image", device="cpu", precision="fp32", batch=4)


def test_bytes_in_a_table(score: ScoreImages, crops: Path) -> None:
    files = [path.read_bytes() for path in sorted(crops.rglob("*.jpg"))]
    found = score(pa.table({"key": range(13), "image": [*files, b"x", None, b""]}))
    assert found.column_names == ["key", "image", *NEW]
    assert found["status"].to_pylist() == ["ok"] * 10 + ["not_an_image", "empty", "empty"]
    assert found["error"].to_pylist()[9:] == [None, "no known image format", "null", "0 bytes"]
    assert found["score"].null_count == found["score_mobilenet_v3_small"].null_count == 3
    with Scorer("cpu", "fp32", batch=4) as scorer:
        assert found["score"].to_pylist()[:10] == [one.score for one in scorer.score(files)]


def test_paths_and_pixels_in_arrays(score: ScoreImages, crops: Path) -> None:
    paths = np.array([str(crops / "a" / "0.jpg"), "gone.jpg"], object)
    found = score({"image": paths})
    assert list(found) == ["image", *NEW]
    assert found["status"].tolist() == ["ok", "missing"]
    assert found["score"].dtype == np.float32
    assert np.isnan(found["score"]).tolist() == [False, True]
    assert found["error"][0] is None
    pixels = score({"image": np.zeros((2, 300, 260, 3), np.uint8)})
    assert pixels["status"].tolist() == ["ok", "ok"]


def test_what_is_no_image(score: ScoreImages) -> None:
    values = np.array([1.5, np.zeros((2, 2), np.float32), {"bytes": b""}], object)
    assert score({"image": values})["status"].tolist() == ["unsupported"] * 3
    assert score(pa.table({"image": pa.array([], pa.binary())})).num_rows == 0


def test_what_is_no_batch(score: ScoreImages) -> None:
    with pytest.raises(InputError, match=r"^no column image of images, there are jpg, key: ScoreImages\(column\)$"):
        score({"jpg": np.array([b"x"]), "key": np.array(["x"])})
    with pytest.raises(UsageError, match="a batch is a list: use batch_format='pyarrow' or 'numpy'"):
        score([b"x"])
