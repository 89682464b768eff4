"""Imports point only downward, and nothing heavy is imported at the top of what the command line loads."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "fiqa_trt"
LAYERS = {
    0: {
        "spec",
        "outcomes",
        "address",
        "errors",
        "progress",
        "version",
        "formats",
        "foreign",
        "fingerprint",
        "shell",
        "marks",
        "storage",
        "pillow",
        "tiff",
        "jpeg2000",
        "kinds",
        "metadata",
        "colours",
    },
    1: {
        "sources",
        "listing",
        "lists",
        "user_tables",
        "ratings",
        "whole_tables",
        "reading",
        "shards",
        "places",
        "container",
        "container_kinds",
        "tar",
        "members",
        "tables",
        "rows",
        "columns",
        "decode",
        "decoder",
        "decoders",
        "decode_dali",
        "structure",
        "records",
        "outputs",
        "tally",
        "grouping",
        "score",
        "runs",
        "networks",
        "folding",
        "samples",
        "verification",
    },
    2: {"engines", "items", "training", "export", "pipeline", "triton"},
    3: {
        "scoring",
        "workers",
        "executor",
        "in_process",
        "scorer",
        "filtering",
        "retrying",
        "updating",
        "delivery",
        "reporting",
        "groups",
        "benchmark",
        "evaluation",
        "building",
        "doctor",
    },
    4: {"api"},
    5: {"cli", "explaining", "latency", "__init__", "__main__"},
}
LEVEL = {name: level for level, names in LAYERS.items() for name in names}
HEAVY = {
    "torch",
    "torchvision",
    "torch_tensorrt",
    "nvidia",
    "openvino",
    "skimage",
    "piq",
    "nncf",
    "modelopt",
    "tensorrt",
    "pynvml",
    "onnx",
    "onnxruntime",
}
FILES = sorted(ROOT.rglob("*.py"))


def imported(tree: ast.Module, *, top_only: bool) -> set[str]:
    nodes = ast.walk(tree) if not top_only else iter(tree.body)
    names = set[str]()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    mine = LEVEL[part(path)]
    for name in imported(ast.parse(path.read_text()), top_only=False):
        pieces = name.split(".")
        if pieces[0] == "fiqa_trt" and len(pieces) > 1 and pieces[1] in LEVEL and pieces[1] != part(path):
            assert LEVEL[pieces[1]] <= mine, f"{path.name} (layer {mine}) imports {name} (layer {LEVEL[pieces[1]]})"


@pytest.mark.parametrize(
    # The rest is imported only by what needs torch anyway.
    "path",
    [path for path in FILES if part(path) not in ("networks", "folding", "training")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_heavy_libraries_are_imported_where_they_are_needed(path: Path) -> None:
    found = {name.split(".")[0] for name in imported(ast.parse(path.read_text()), top_only=True)}
    assert not found & HEAVY
