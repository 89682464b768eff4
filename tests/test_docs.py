"""Every code block of the docs is run, page by page, where its reader would stand; tables are what is read there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.engines.opening import RELEASED
from fiqa_trt.models.causes import MEANINGS
from tests.helpers import jpeg

ROOT = Path(__file__).parent.parent
FIGURES = ("model-card.md", "scale.md")  # pages without commands
OF_CAUSES = "why-is-this-face-bad.md"
PAGES = sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in FIGURES)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, portrait: Image.Image) -> Path:
    """A folder with `faces`, eight images of eight persons each, all of other sizes, and `ratings.csv`, from 1 to 5."""
    lines = ["image,mos,group,split"]
    for person in range(8):
        folder = tmp_path / "faces" / f"p{person:02}"
        folder.mkdir(parents=True)
        for number in range(8):
            image = portrait.filter(ImageFilter.GaussianBlur(number / 2)).rotate(person)
            image = image.crop((0, 0, image.width - number, image.height - person))
            (folder / f"{number:04}.jpg").write_bytes(jpeg(image, quality=95 - 5 * person))
            mos, side = 4.8 - number * 0.45 - person / 20, ("train", "val", "test")[person % 3]
            lines.append(f"faces/p{person:02}/{number:04}.jpg,{mos:.2f},p{person:02},{side}")
    (tmp_path / "ratings.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page: Path, place: Path) -> None:
    if page.name == OF_CAUSES and not Manifest.read(RELEASED).spec.causes:
        pytest.skip("the released checkpoint tells of no causes")
    blocks = BLOCK.findall(page.read_text())
    assert blocks
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "FIQA_TRT_ENGINES": str(place / "engines")}
    for language, code in blocks:
        if language == "csv":
            assert set(code.splitlines()) <= set((place / "ratings.csv").read_text().splitlines())
            continue
        command = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-W", "error", "-c"]}[
            language
        ]
        done = subprocess.run([*command, code], cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_the_page_of_causes_says_what_each_is() -> None:
    page = (ROOT / "docs" / OF_CAUSES).read_text()
    rows = [f"| `{name}` | `cause_{name}` | {meaning} |" for name, meaning in MEANINGS.items()]
    assert "\n".join(rows) in page


def test_pages_are_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert all(f"docs/{page.name}" in readme for page in PAGES)
