"""Make a checkpoint of `fiqa-trt train` the released one: weights, ONNX, manifest and golden scores.

`python -m benchmarks.release.publish ensemble.safetensors [-o DIR]`. Without -o the files in `fiqa_trt/weights/` and
`tests/models/golden.json` are replaced.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from fiqa_trt.building.export import export
from fiqa_trt.engines.opening import CHECKPOINT, RELEASED
from tests.models import golden


def main() -> None:
    """Export, and compare with PyTorch on the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="an engine directory to look at first, instead")
    options = parser.parse_args()
    folder: Path = options.output or RELEASED
    with tempfile.TemporaryDirectory() as scratch:
        manifest = export(options.checkpoint, Path(scratch) / "onnx")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(options.checkpoint, folder / CHECKPOINT.name)
        for path in (Path(scratch) / "onnx").iterdir():
            shutil.copyfile(path, folder / path.name)
    print(f"{manifest.model}: ONNX against PyTorch {manifest.agreement}")
    if options.output is None:
        golden.main()


if __name__ == "__main__":
    main()
