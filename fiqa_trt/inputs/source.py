"""Where inputs come from: folders, files, containers, lists, standard input. All become one ordered stream of recorded
paths.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING

from fiqa_trt.errors import InputError, OutputError, number_of, printable
from fiqa_trt.fingerprint import FREE
from fiqa_trt.inputs.address import DEFAULT_COLUMN, Address, as_path, record_path, with_column
from fiqa_trt.inputs.containers.base import Container
from fiqa_trt.inputs.containers.registry import CONTAINERS, TABLES, is_container, is_table
from fiqa_trt.inputs.foreign import is_system_folder, suffix_of, unread_with
from fiqa_trt.inputs.formats import SUFFIXES
from fiqa_trt.inputs.listing import LeftOut, walk
from fiqa_trt.inputs.lists import PATHS, column_of_paths, path_batches, read_list, read_paths
from fiqa_trt.inputs.reader import open_container
from fiqa_trt.inputs.user_tables import KINDS, Column, translated
from fiqa_trt.outcomes import ImageError
from fiqa_trt.progress import Say, silent
from fiqa_trt.storage.base import REMOTE, is_remote, unsigned
from fiqa_trt.storage.places import Place, is_same, place_of
from fiqa_trt.storage.registry import is_stored, store_of

if TYPE_CHECKING:
    import pyarrow as pa

_STDIN = "-"
_LOOKED = 4 << 20  # bytes of the largest member that is looked into
_LISTS = (".txt", ".csv", ".tsv", ".xlsx", ".xls", ".ods")


@dataclasses.dataclass(frozen=True)
class Source:
    """What the user asked to score.

    Attributes:
        inputs: folders, files, containers (see `containers`), or `-` for paths on standard input, in the order given.
        list_file: a .txt, .csv, .tsv or .parquet list, instead of `inputs`.
        all_files: take every file of a folder, not only those with an image's suffix.
        limit: stop after so many inputs.
        image_column: of Parquet and Arrow tables that hold images; given, those in folders are taken as well.
        path_column: of a list that is a table; None to recognise it.
        path_option: what says so, if anything can.
        reserved: names that carried columns may not have; those that do are renamed to `input_<name>`.
        exclude: paths that a folder's listing leaves out (the run's own output).
    """

    # What makes the list is free: the list itself counts, all of it.
    inputs: tuple[str, ...] = dataclasses.field(default=(), metadata=FREE)
    list_file: str | None = dataclasses.field(default=None, metadata=FREE)
    all_files: bool = dataclasses.field(default=False, metadata=FREE)
    limit: int | None = dataclasses.field(default=None, metadata=FREE)
    image_column: str | None = None
    path_column: str | None = None
    path_option: str = dataclasses.field(default=PATHS.option, metadata=FREE)
    reserved: tuple[str, ...] = dataclasses.field(default=(), metadata=FREE)
    exclude: tuple[str, ...] = dataclasses.field(default=(), metadata=FREE)

    def __post_init__(self) -> None:
        """Raises InputError for a column of no list."""
        if self.path_column is not None and not self.list_file:
            raise InputError(f"{self.path_option} {self.path_column}: it is a column of --list; leave it out")

    @property
    def paths(self) -> Column:
        """The column of paths of a list that is a table."""
        return dataclasses.replace(PATHS, option=self.path_option, given=self.path_column)

    def resolved(self) -> Source:
        """With the columns that are taken where nothing is said. Raises InputError as `list_inputs`."""
        called = column_of_paths(self.list_file, self.paths) if self.list_file else None
        return dataclasses.replace(self, image_column=self.image_column or DEFAULT_COLUMN, path_column=called)

    def describe(self) -> str:
        """The inputs as one would name them in a sentence."""
        return self.list_file or " ".join(self.inputs)


def source_of(given: str) -> Source:
    """Images that are given by one path: a folder, a shard, a table that holds them, or a list."""
    if not given.lower().endswith((".txt", *KINDS)) or (is_table(given) and _holds_images(given)):
        return Source((given,))
    return Source(list_file=given, path_option="")


def _holds_images(table: str) -> bool:
    try:
        open_container(table).close()
    except InputError:
        return False
    return True


def check_source(source: Source, output: Place) -> None:
    """Refuse at once what could only fail later.

    Raises:
        InputError: an input that is not there, or not of a kind that is read, or a list without a column of paths.
        OutputError: the output would replace one.
    """
    for given in (source.list_file,) if source.list_file else source.inputs:
        if given == _STDIN and not source.list_file:
            _stdin()
            continue
        folder = _is_folder(given)
        if is_same(output, place_of(given)):
            raise OutputError(f"{output} is one of the inputs; choose another -o")
        if source.list_file:
            column_of_paths(given, source.paths)
        elif not folder:
            _refuse(given, alone=len(source.inputs) == 1)


def _is_folder(given: str) -> bool:
    try:
        return store_of(given).is_folder(given)
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or str(exc)
        if as_path(given) != given:
            why = f"{why}; INPUT takes paths as they are ({as_path(given)}), --list takes file: URIs too"
        elif is_remote(given) and not is_stored(given):
            why = REMOTE
        elif given == _STDIN:
            why = "paths on standard input are INPUT, without --list"
        raise InputError(f"cannot read {given}: {why}") from exc


def _refuse(given: str, *, alone: bool) -> None:
    suffix = suffix_of(given)
    container = unread_with(suffix)
    if container is not None:
        raise InputError(f"{given} is {container.what}: {container.way_out}")
    if alone and suffix in _LISTS:
        raise InputError(f"{given} is not an image by its name: a list of images is given with --list")


def _stdin() -> IO[bytes]:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed:
        raise InputError("cannot read paths from standard input: it is closed")
    return stream  # type: ignore[no-any-return]


def list_inputs(source: Source, say: Say = silent) -> Iterator[pa.RecordBatch]:
    """Batches of inputs in order; column `path` first, then whatever a list carries. At least one batch, maybe empty.

    `say` hears of what was given and holds nothing to score, and of what is left out.

    Raises:
        InputError: a missing folder or file, a list that cannot be read or has no column of paths, nothing to score.
    """
    if bool(source.inputs) == bool(source.list_file):
        raise InputError("give either INPUT... or --list FILE")
    unsaid = list[str]()
    if source.list_file:
        called = column_of_paths(source.list_file, source.paths)
        if called not in (None, "path"):
            say(f"{printable(source.list_file)}: the paths are in the column `{printable(called)}`")
        batches = read_list(source.list_file, source.reserved, source.paths)
    else:
        batches = path_batches(_walk_inputs(source, say, unsaid))
    left, found = source.limit, False
    for batch in batches if source.image_column is None else _with_column(batches, source.image_column):
        taken = batch if left is None else batch.slice(0, left)
        found = found or taken.num_rows > 0
        yield taken
        if left is not None:
            left -= taken.num_rows
            if left <= 0:
                break
    if not found:
        if source.list_file or source.inputs == (_STDIN,):
            raise InputError(f"no paths in {source.list_file or 'standard input'}")
        hint = "" if source.all_files or unsaid else " (--all-files tries every file, whatever its name)"
        raise InputError("; ".join((f"no images in {source.describe()}{hint}", *unsaid)))


def _with_column(batches: Iterable[pa.RecordBatch], column: str) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch.set_column(0, batch.schema.field(0), with_column(batch.column(0), column))


def _walk_inputs(source: Source, say: Say, unsaid: list[str]) -> Iterator[str]:
    """Recorded paths of all inputs. What the only one of them leaves out, if it has nothing else, goes to `unsaid`."""
    if odd := [given for given in source.inputs if suffix_of(given) in _LISTS and not _is_folder(given)]:
        say(
            f"scored as {number_of(len(odd), 'image')}, whatever the name: {printable(odd[0])}"
            f"{' and others' if odd[1:] else ''}; a list of images is given with --list"
        )
    for given in source.inputs:
        if given == _STDIN:
            with translated("standard input"):
                yield from read_paths(_stdin(), "standard input")
            continue
        folder, only = _is_folder(given), len(source.inputs) == 1
        if not folder:
            _refuse(given, alone=only)
        left_out, files = LeftOut(), 0
        for path in _below(given, source, left_out) if folder else _images(given, source, left_out):
            files += 1
            yield path
        if only and not files and left_out:
            unsaid.extend(filter(None, (f"left out: {left_out}", left_out.way_out())))
        elif not only and not files:
            say(f"no images in {printable(given)}" + (f"; left out: {left_out}" if left_out else ""))
        elif left_out:
            say(f"left out in {printable(given)}: {left_out}")


def _below(folder: str, source: Source, left_out: LeftOut) -> Iterator[str]:
    for path in walk(folder, source.all_files, source.exclude, (*SUFFIXES, *CONTAINERS), left_out):
        # Tables of anything lie about; they are opened only when that was asked for.
        passed_over = source.image_column is None and path.lower().endswith(TABLES)
        if passed_over and not source.all_files:
            left_out.table(path)
        elif passed_over or not is_container(path):
            yield record_path(path)
        else:
            found = False
            try:
                for image in _images(path, source, left_out):
                    found = True
                    yield image
            except InputError as exc:
                left_out.table(path, str(exc))
            else:
                if not found:
                    left_out.shard(path)


def _images(path: str, source: Source, left_out: LeftOut) -> Iterator[str]:
    """A file; of a container its images, and itself where something is wrong with it."""
    if not is_container(path):
        if path.lower().startswith(("http:", "https:")) and is_container(path.partition("?")[0]):
            raise InputError(
                f"{unsigned(path)}: what is in a container behind a query (?…) has no name of its own; give the "
                "address without it (s3://… and the usual credentials), or download it"
            )
        yield record_path(path)
        return
    column = (source.image_column or DEFAULT_COLUMN) if is_table(path) else DEFAULT_COLUMN
    container = open_container(path, column)
    try:
        for key in container.keys() if source.all_files or is_table(path) else _members(container, left_out):
            yield Address(path, key, column).recorded
        if container.error is not None:
            yield record_path(path)
    finally:
        container.close()


def _members(container: Container, left_out: LeftOut) -> Iterator[str]:
    """The members of a container that are taken, by the rules for a folder."""
    systems = set[str]()

    def in_system(folder: str) -> bool:
        names = folder.split("/")
        depth = next((depth for depth, name in enumerate(names) if is_system_folder(name)), None)
        if depth is None:
            return False
        top = "/".join(names[: depth + 1])
        if top not in systems:
            systems.add(top)
            left_out.folder(names[depth])
        return True

    for others in (False, True):
        for key in container.keys(SUFFIXES, others=others):
            folder, _, name = key.rstrip("/").rpartition("/")
            head = functools.partial(_head, container, key)
            if in_system(folder):
                continue
            if others:
                left_out.member(name, head)
            elif not left_out.fork(name, head):
                yield key


def _head(container: Container, key: str) -> bytes:
    try:
        return container.read(key, _LOOKED)
    except ImageError:
        return b""
