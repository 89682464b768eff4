"""Make a trained pair of members the released checkpoint: weights, ONNX, manifest and golden scores.

`python -m benchmarks.release.publish mobilenet.safetensors shufflenet.safetensors [-o DIR]`. Of each file only its own
member is taken. Without -o the files in `fiqa_trt/weights/` and `tests/golden.json` are replaced.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from fiqa_trt.engines import CHECKPOINT, RELEASED
from fiqa_trt.export import export
from fiqa_trt.spec import MEMBERS
from tests import golden


def main() -> None:
    """Merge, export, and compare with PyTorch on the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("members", type=Path, nargs=len(MEMBERS), help=" ".join(MEMBERS))
    parser.add_argument("-o", "--output", type=Path, help="an engine directory to look at first, instead")
    options = parser.parse_args()
    tensors: dict[str, Tensor] = {}
    for name, path in zip(MEMBERS, options.members, strict=True):
        tensors |= {key: value for key, value in load_file(path).items() if key.startswith(f"members.{name}.")}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / CHECKPOINT.name
        save_file(tensors, checkpoint)
        manifest = export(checkpoint, Path(scratch) / "onnx")
        folder: Path = options.output or RELEASED
        folder.mkdir(parents=True, exist_ok=True)
        for path in (checkpoint, *(Path(scratch) / "onnx").iterdir()):
            shutil.copyfile(path, folder / path.name)
    print(f"{manifest.model}: ONNX against PyTorch {manifest.agreement}")
    if options.output is None:
        golden.main()


if __name__ == "__main__":
    main()
