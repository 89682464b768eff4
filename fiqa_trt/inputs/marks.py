"""What `filter` leaves in a folder that it fills: a note of what with, the scores, and a journal of what it moved.

None of them is ever scored, and a folder of copies is no part of the tree that they were made of: its images would be
there twice.
"""

from __future__ import annotations

import dataclasses
import json
import os

NOTE = ".fiqa_trt_filter.json"
JOURNAL = ".fiqa_trt_moved.jsonl"
TABLE = "fiqa_scores.parquet"
OURS = frozenset((NOTE, JOURNAL, TABLE))
MOVE = "move"


@dataclasses.dataclass(frozen=True)
class Mark:
    """The content of a note.

    Attributes:
        call: digest of the call that fills the folder; only the same one goes on with it.
        way: in which it is filled.
        base: folder that its images come from, absolute.
        finished: whether that call came to its end.
        output: the folder as that call named it, with which the paths in its table begin.
        companions: that went along.
    """

    call: str
    way: str = ""
    base: str = ""
    finished: bool = False
    output: str = ""
    companions: str = ""

    def text(self) -> str:
        """As it is written."""
        return json.dumps(dataclasses.asdict(self))


def read_mark(folder: str | os.PathLike[str]) -> Mark | None:
    """The note of a folder, or None if it has none. Raises OSError if that cannot be told."""
    try:
        with open(os.path.join(folder, NOTE), encoding="utf-8", errors="replace") as file:
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = json.loads(text)
        more = (str(found.get(name, "")) for name in ("output", "companions"))
        return Mark(str(found["call"]), str(found["way"]), str(found["base"]), found["finished"] is True, *more)
    except (ValueError, TypeError, KeyError, AttributeError):
        return Mark(text)  # of an earlier version: the digest alone, while the folder was being filled


def holds_copies(folder: str, tree: str) -> bool:
    """Whether the images of a folder below `tree` are, as far as we know, those of the tree once more."""
    try:
        mark = read_mark(folder)
    except OSError:
        return False
    if mark is None or mark.way == MOVE or not mark.base:
        return False
    base, tree = os.path.realpath(mark.base), os.path.realpath(tree)
    return os.path.commonpath([base, tree]) in (base, tree)
