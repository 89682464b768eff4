"""Images of one table among the scores of another, although the two write their paths differently."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from fiqa_trt.errors import InputError
from fiqa_trt.inputs.address import as_path
from fiqa_trt.scores.files import SUFFIXES, read_output, read_schema
from fiqa_trt.scores.members import causes_of, members_of
from fiqa_trt.scores.schema import own_columns
from fiqa_trt.storage.places import Place, at_hand

WRITTEN, REAL, TAIL = "as written", "by real path", "by the end of the path"
WITHOUT_EXTENSION = "by name without extension"


@dataclasses.dataclass(frozen=True)
class Matches:
    """Which image of the scores each name means.

    Attributes:
        rows: by name, the row among the scores; names that mean none are left out.
        how: how many names were matched in which way.
        ambiguous: names whose end fits several images equally well, or that share one image with another name.
        example: of those matched by their ends, the two paths that have least in common.
    """

    rows: dict[str, int]
    how: dict[str, int]
    ambiguous: int
    example: tuple[str, str] | None = None

    def note(self) -> str:
        """How they were matched, in a line; empty if all were as written."""
        if set(self.how) <= {WRITTEN} and not self.ambiguous:
            return ""
        parts = [f"{count:,} {how}" for how, count in self.how.items()]
        parts += [f"{self.ambiguous:,} not, as their ends fit several images"] if self.ambiguous else []
        example = f" (least alike: {' = '.join(self.example)})" if self.example else ""
        return f"paths matched: {', '.join(parts)}{example}"


class Scores:
    """An output of `fiqa-trt score`, by path."""

    def __init__(self, path: Place, column: str) -> None:
        """Raises InputError if it cannot be read, has no rows, or no numbers in that column."""
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"cannot tell the format of {path}: name it {', '.join(SUFFIXES)}")
        self.path = path
        by_name: dict[str, float | None] = {}
        schema = read_schema(path, ["path"])
        own, known = own_columns(members_of(schema), causes_of(schema)), schema.names
        wrong = column in own and not column.startswith("score")
        if wrong or column not in known:
            # Those of ours that are scores, and what a list brought along, which may be another tool's.
            scores = ", ".join(name for name in known if name.startswith("score") or name not in own)
            what = "no score" if wrong else f"{path} has no such column"
            raise InputError(f"--column {column}: {what}; scores in it: {scores}")
        for table in read_output(path, ("path", column)):
            kind = table.schema.field(column).type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
                raise InputError(f"--column {column}: in {path} it holds {kind}, not numbers")
            for name, value in zip(table["path"].to_pylist(), table[column].to_pylist(), strict=True):
                by_name[_normal(name)] = value
        if not by_name:
            raise InputError(f"{path} has no rows")
        self.names, self.values = list(by_name), list(by_name.values())

    def match(self, names: Iterable[str], table: Place, images: Path | None = None) -> Matches:
        """Find images: as they are written (below `images`), by real path, by the longest common end of both paths if
        that is one image's and one name's only, and all this without the extension.

        Args:
            names: paths as `table` has them.
            table: where relative ones may start as well.
            images: folder that they start from.

        Raises:
            InputError: none is found; `images` is no folder, and no path of the scores starts with it.
        """
        if images is not None and not images.is_dir():  # paths of another machine are as good
            start = os.path.join(os.path.normpath(images), "")
            if not any(name.startswith(start) for name in self.names):
                raise InputError(f"--images {images}: no such folder, and no path of {self.path} starts with it")
        wanted = list(dict.fromkeys(names))
        rows: dict[str, int] = {}
        how = Counter[str]()

        def take(found: dict[str, int], way: str) -> None:
            rows.update(found)
            how.update({way: len(found)} if found else {})

        def rest() -> list[str]:
            return [name for name in wanted if name not in rows]

        known = {name: row for row, name in enumerate(self.names)}
        take({name: known[key] for name in wanted if (key := _normal(name, images)) in known}, WRITTEN)
        if rest():
            take(self._by_real_path(rest(), [images] if images else [Path(), at_hand(table).parent]), REAL)
        ambiguous, example = set[str](), None
        for way, without in ((TAIL, False), (WITHOUT_EXTENSION, True)):
            if rest():
                found, unclear = self._by_tail([(name, _normal(name, images)) for name in rest()], rows, without)
                take(found, way)
                ambiguous = (ambiguous | unclear) - rows.keys()
                if found and not without:
                    alike = {name: len(_common(name, self.names[row])) for name, row in found.items()}
                    least = min(alike, key=lambda name: alike[name])
                    example = (least, self.names[found[least]])
        if not rows:
            raise self._foreign(table, wanted[0], images, len(ambiguous))
        return Matches(rows, dict(how), len(ambiguous), example)

    def _by_real_path(self, names: Sequence[str], folders: Sequence[Path]) -> dict[str, int]:
        real = functools.lru_cache(1 << 16)(os.path.realpath)

        def resolved(path: str) -> str:
            if os.path.islink(path):
                return os.path.realpath(path)
            folder, name = os.path.split(path)
            return os.path.join(real(folder), name)  # many files are in few folders

        known = {resolved(name): row for row, name in enumerate(self.names)}
        found = {}
        for name in names:
            for folder in folders:
                row = known.get(resolved(_normal(name, folder)))
                if row is not None:
                    found[name] = row
                    break
        return found

    def _by_tail(
        self, wanted: Sequence[tuple[str, str]], taken: dict[str, int], without: bool
    ) -> tuple[dict[str, int], set[str]]:
        """Names by the longest end, in whole names of folders, that they share with one image and it with them; and
        those that fit several.
        """
        theirs = {name: _backwards(path, cut=False) for name, path in wanted}
        ours = sorted((_backwards(name, cut=without), row) for row, name in enumerate(self.names))
        keys = [key for key, _ in ours]
        best: dict[int, tuple[int, list[str]]] = {}
        ambiguous = set[str]()
        for name, key in theirs.items():
            at = bisect.bisect_left(keys, key)
            shared = max((_shared(key, other) for other in keys[max(0, at - 1) : at + 1]), key=len, default="")
            if not shared:
                continue
            first = bisect.bisect_left(keys, shared)
            if first + 1 < len(keys) and keys[first + 1].startswith(shared):
                ambiguous.add(name)
                continue
            row = ours[first][1]
            length, names = best.get(row, (0, []))
            if len(shared) > length:
                best[row] = (len(shared), [name])
                ambiguous.update(names)
            elif len(shared) == length:
                names.append(name)
            else:
                ambiguous.add(name)
        used = set(taken.values())
        found = {}
        for row, (_, names) in best.items():
            if len(names) == 1 and row not in used:
                found[names[0]] = row
            else:
                ambiguous.update(names)
        return found, ambiguous

    def _foreign(self, table: Place, name: str, images: Path | None, ambiguous: int) -> InputError:
        """What to say when not one path of `table` is known."""
        theirs, ours = _normal(name, images), self.names[0]
        start = f"no path of {table} is in {self.path} ({theirs} there, {ours} here)"
        if ambiguous:
            return InputError(
                f"{start}: the ends of {ambiguous:,} of them fit several images, or several of them one; give the "
                f"folder that they start from as --images, so that DIR/{name} is a path of {self.path.name}"
            )
        return InputError(f"{start}, not even by the name of a file: are they of the same images?")


def _normal(name: str | None, folder: Path | None = None) -> str:
    if not name:
        raise InputError("a row has no path")
    return os.path.normpath(os.path.join(folder or "", as_path(name)))


def _backwards(path: str, *, cut: bool) -> str:
    """A path from its end, a slash behind each name; a shard or a table counts as a folder of what it holds."""
    if "/" not in path:
        path = path.replace("\\", "/")
    names = path.replace("::", "/").strip("/").split("/")
    if cut:
        names[-1] = os.path.splitext(names[-1])[0]
    return "".join(f"{name}/" for name in reversed(names))


def _common(one: str, other: str) -> str:
    return _shared(_backwards(one, cut=False), _backwards(other, cut=False))


def _shared(one: str, other: str) -> str:
    """What two paths from their ends have in common, in whole names."""
    head, slash, _ = os.path.commonprefix([one, other]).rpartition("/")  # noqa: RUF071  (whole names: the next step)
    return head + slash
