"""What one writes without this tool: torchvision networks, DataLoader, Pillow, eager PyTorch.

`python -m benchmarks.plain FOLDER OUT.csv [--device cuda] [--half] [--workers N]`
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fiqa_trt.engines.opening import CHECKPOINT
from fiqa_trt.engines.torch import load_checkpoint


class Crops(Dataset[torch.Tensor]):
    """Images of a folder, resized and cropped to 224 px."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = Image.open(self.paths[index]).convert("RGB")
        scale = 224 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        return torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224))))


def main() -> None:
    """Score a folder and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    dataset = Crops(options.folder)
    network = load_checkpoint(CHECKPOINT).to(options.device)
    if options.half:
        network.lower(torch.float16)
    scores = list[float]()
    batch = 32 if options.device == "cpu" else 256
    with torch.inference_mode():
        for images in DataLoader(dataset, batch_size=batch, num_workers=options.workers):
            scores += network(images.to(options.device))[0].mean(dim=1).tolist()
    with options.output.open("w", newline="") as file:
        csv.writer(file).writerows(zip(dataset.paths, scores, strict=True))


if __name__ == "__main__":
    main()
