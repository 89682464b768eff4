"""What one writes without this tool: torchvision networks, DataLoader, Pillow, eager FP32. `plain.py FOLDER`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fiqa_trt.engines import CHECKPOINT
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
    dataset = Crops(Path(sys.argv[1]))
    network = load_checkpoint(CHECKPOINT)
    scores = list[float]()
    with torch.inference_mode():
        for images in DataLoader(dataset, batch_size=32, num_workers=2):
            scores += network(images).mean(dim=1).tolist()
    with Path(sys.argv[2]).open("w", newline="") as file:
        csv.writer(file).writerows(zip(dataset.paths, scores, strict=True))


if __name__ == "__main__":
    main()
