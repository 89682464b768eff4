"""Imports point down the list of the package's folders, and nothing heavy is imported at the top of what is loaded."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "fiqa_trt"
# From the top; those of one line are of one level. What is in none has no place yet: find it one.
ORDER = """
__init__ __main__
cli
api
machine
analysis
training
runs
ray
scorer
executors
pipeline
building
curation
engines
scores
decoding
inputs
models
storage
fingerprint outcomes
libraries scarcity
errors
progress shell version
"""
LEVEL = {name: level for level, line in enumerate(reversed(ORDER.strip().splitlines())) for name in line.split()}
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
    "tensorrt_rtx",
    "cuda",
    "pynvml",
    "onnx",
    "onnxruntime",
    "ray",
}
# Imported only by what needs torch anyway.
LOADED_LATE = ("models/networks.py", "models/folding.py", "training/")
FILES = sorted(ROOT.rglob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part(path: Path) -> str:
    """The folder of the package that a file belongs to, or the module that it is."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(tree: ast.Module, *, top_only: bool) -> set[str]:
    nodes = ast.walk(tree) if not top_only else iter(tree.body)
    names = set[str]()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts_of_ours(path: Path) -> set[str]:
    """The other parts that a file imports from, anywhere in it."""
    found = set[str]()
    for module in imported(ast.parse(path.read_text()), top_only=False):
        package, _, rest = module.partition(".")
        if package == "fiqa_trt" and rest:
            found.add(rest.partition(".")[0])
    return {one for one in found if (ROOT / one).is_dir() or (ROOT / f"{one}.py").is_file()} - {part(path)}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down_the_list(path: Path) -> None:
    for other in parts_of_ours(path):
        assert LEVEL[other] < LEVEL[part(path)], f"{name(path)} imports from {other}, which is not below {part(path)}"


def test_the_list_has_no_more_than_there_is() -> None:
    assert set(LEVEL) == {part(path) for path in FILES}


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in FILES if not name(path).startswith(LOADED_LATE)], ids=name)
def test_heavy_libraries_are_imported_where_they_are_needed(path: Path) -> None:
    found = {module.split(".")[0] for module in imported(ast.parse(path.read_text()), top_only=True)}
    assert not found & HEAVY


# The two seams. Where bytes live: an object store is a module beside storage/local.py. Who scores: a cluster is a
# module beside executors/processes.py, and knows of a run no more than `executors.base.Units`.
BYTES_BY_STORES = [
    path
    for path in FILES
    if name(path).startswith(("inputs/containers/", "decoding/", "executors/"))
    or name(path) in ("inputs/address.py", "inputs/ahead.py", "inputs/listing.py", "inputs/reader.py", "pipeline.py")
]
DISK = {
    "open",
    "stat",
    "lstat",
    "fstat",
    "pread",
    "scandir",
    "listdir",
    "isfile",
    "isdir",
    "exists",
    "memory_map",
    "OSFile",
}


@pytest.mark.parametrize("path", BYTES_BY_STORES, ids=name)
def test_images_are_read_through_a_store(path: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    modules = {"os", "path", "pa", "io", "Path"}
    found = {call.id for call in calls if isinstance(call, ast.Name)} | {
        call.attr
        for call in calls
        if isinstance(call, ast.Attribute) and ast.unparse(call.value).rpartition(".")[2] in modules
    }
    assert not found & DISK


def test_executors_know_units_and_no_run() -> None:
    folder = [path for path in FILES if part(path) == "executors"]
    assert len(folder) > 1
    for path in folder:
        assert not parts_of_ours(path) & {"runs", "scores"}


EVERY = sorted(path for name in ("fiqa_trt", "tests", "benchmarks") for path in (ROOT.parent / name).rglob("*.py"))


@pytest.mark.parametrize("path", EVERY, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_files_and_functions_are_short(path: Path) -> None:
    """400 lines a file, 60 a function: its statements, as what it takes and what it says of that is no logic."""
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
            first = statements[0].lineno if statements else node.lineno
            assert (node.end_lineno or 0) - first < 60, node.name
