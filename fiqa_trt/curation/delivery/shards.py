"""The kept images as WebDataset tar shards, which appear one after the other, each complete."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, groupby, islice

from fiqa_trt.curation.delivery.common import Delivered, LeftBehind, Skips, image_suffix
from fiqa_trt.curation.delivery.companions import Companion, Companions, Sample, Wish
from fiqa_trt.curation.kept import Kept
from fiqa_trt.errors import OutputError, already_there
from fiqa_trt.inputs.address import Address, as_path
from fiqa_trt.inputs.containers.registry import is_table
from fiqa_trt.inputs.formats import SUFFIXES as IMAGE_SUFFIXES
from fiqa_trt.inputs.reader import ContainerReader, read_addresses, read_recorded
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.progress import Progress, Report, silent
from fiqa_trt.scores.files import check_columns, hold, to_json
from fiqa_trt.storage.places import Place, beside_of
from fiqa_trt.storage.writing import atomic, check_output

SHARD_SIZE = 10_000
_ROWS = ".jsonl"  # the form of the rows beside the images


@dataclasses.dataclass(frozen=True)
class _Member:
    """A file of a sample: its extension, and its bytes."""

    extension: str
    data: bytes


def write_shards(
    kept: Kept,
    output: Place,
    shard_size: int = SHARD_SIZE,
    report: Report = silent,
    *,
    restart: bool = False,
    companions: Wish | None = None,
) -> Delivered:
    """The kept images as WebDataset shards: `faces.tar` becomes `faces-000000.tar`, `faces-000001.tar` and so on.

    Each image is a pair of members, `000000017.jpg` with its own suffix and bytes, and `000000017.json` with its row.
    An image out of a tar brings the other members of its WebDataset sample along, each under its own extension; where
    the sample has a `.json` of its own, the row is `000000017.fiqa.json`.

    Args:
        kept: rows of a scores file.
        output: ends in .tar.
        shard_size: samples of a shard.
        report: receives the images done.
        restart: replace shards of that name that are there; the ones beyond the last new one go when that is written.
        companions: which of the files that go with the images are delivered as well; by default all those of samples,
            and none that lie beside files.

    Raises:
        DifferentRun: shards of that name are there already.
        OutputError: they cannot be written there, cannot hold the columns, or hold images that are to be delivered.
        RunError: the disk is full or fails.
    """
    present = check_shards(kept, output, restart=restart)
    reader = ContainerReader()
    samples, made, number = _Samples(reader, companions), set[Place](), 0
    try:
        for index, part in enumerate(_split(samples.of(kept), shard_size)):
            path = shard_of(output, index)
            made.add(path)
            with atomic(path) as temporary, tarfile.open(temporary, "w") as archive:
                for members in part:
                    for member in members:
                        _add(archive, f"{number:09}{member.extension}", member.data)
                    number += 1
                    report(Progress(samples.images, len(kept), sum(samples.skips.reasons.values())))
    finally:
        reader.close()
    for path in present:
        if path not in made:
            path.unlink()
    return dataclasses.replace(samples.account(str(output.with_name(f"{output.stem}-*.tar"))), shards=len(made))


def shard_of(output: Place, index: int) -> Place:
    """The name of a shard: they are numbered, a single one as well, so that a name does not depend on what is kept."""
    return output.with_name(f"{output.stem}-{index:06}.tar")


def check_shards(kept: Kept, output: Place, *, restart: bool) -> list[Place]:
    """Shards that `write_shards` would replace. Raises what it raises before it begins."""
    check_output(output, (".tar",))
    check_columns(kept.schema, output, _ROWS)
    pattern = re.compile(re.escape(output.stem) + r"-[0-9]{6,}\.tar")
    present = sorted((path for path in beside_of(output) if pattern.fullmatch(path.name)), key=os.fspath)
    if present:
        _refuse_sources(kept, present)
    if present and not restart:
        raise already_there(present[0], other="OUT")
    return present


def _refuse_sources(kept: Kept, present: list[Place]) -> None:
    """Raise OutputError if an image that is to be delivered lies in one of the shards that would be replaced."""
    theirs = {os.path.realpath(path) for path in present}  # of an address it is as good as that
    for image in kept.images():
        if os.path.realpath(image.address.file) in theirs:
            raise OutputError(f"{image.path} is to be delivered, and would be replaced; choose another OUT")


Row = dict[str, object]


class _Samples:
    """Makes the samples of an output, and keeps the account of what is in them and of what is not."""

    def __init__(self, reader: ContainerReader, wish: Wish | None) -> None:
        self.skips, self.images = Skips(), 0
        self._bytes, self._along, self._left_behind = 0, 0, LeftBehind()
        self._reader, self._wish, self._finder = reader, wish, Companions(reader)
        self._whole = set[bytes]()  # samples that were delivered

    def of(self, kept: Kept) -> Iterator[list[_Member]]:
        """The members of one for each kept image, or for neighbours that are of one sample."""
        rows = (row for table in kept.tables() for row in hold(table, _ROWS).to_pylist())
        found = ((Address.parse(str(row["path"])), row) for row in rows)
        for sample, group in groupby(found, lambda one: self._sample_of(one[0]) or one[0]):
            together = dict(group)
            made = (
                self._of_tar(sample, together)
                if isinstance(sample, Sample)
                else self._of_file(sample, *together.values())
            )
            if made:
                self._bytes += sum(len(member.data) for member in made)
                yield made

    def account(self, output: str) -> Delivered:
        """Of everything so far."""
        skips = (dict(self.skips.reasons), self.skips.examples)
        left = (self._left_behind.images, self._left_behind.kinds())
        return Delivered(output, self.images, 0, *skips, self._bytes, self._along, *left)

    def _sample_of(self, image: Address) -> Sample | None:
        return self._finder.sample(image) if image.key and not is_table(image.file) else None

    def _of_file(self, address: Address, row: Row) -> list[_Member]:
        """An image of its own, with those companions that are wished for."""
        image = self._image(row)
        if image is None:
            return []
        found = list(self._finder.of(address, self._wish or Wish()))
        members = [image]
        if self._wish is None:
            self._left_behind.add(found)
        else:
            members += self._read(found)
        return [*members, *_rows_of([(row, image.extension)], members)]

    def _of_tar(self, sample: Sample, rows: dict[Address, Row]) -> list[_Member]:
        """A sample as it is, once, and the rows of those of its images that are kept."""
        name = hashlib.blake2b(os.fsencode(f"{sample.shard}\n{sample.name}"), digest_size=12).digest()
        if name in self._whole:  # the rows are not in the order of the tar
            self.images += len(rows)
            return []
        members, images = list[_Member](), list[tuple[Row, str]]()
        for each in sample.members:
            row = rows.get(each.address)
            if row is None:
                members += self._read([each]) if (self._wish or Wish()).holds(each.extension) else []
            elif (image := self._image(row, each.extension)) is not None:
                members.append(image)
                images.append((row, image.extension))
        if not images:
            return []
        self._whole.add(name)
        return [*members, *_rows_of(images, members)]

    def _image(self, row: Row, extension: str = "") -> _Member | None:
        path = str(row["path"])
        blob = read_recorded(path, self._reader)
        if isinstance(blob, ImageError):
            self.skips.fail(path, blob)
            return None
        self.images += 1
        suffix = os.path.splitext(as_path(path))[1].lower()
        return _Member(extension or (suffix if suffix in IMAGE_SUFFIXES else image_suffix(blob)), blob)

    def _read(self, companions: Sequence[Companion]) -> list[_Member]:
        found = list[_Member]()
        for each in companions:
            blob = read_addresses([each.address], self._reader)[0].blob
            if isinstance(blob, ImageError) and blob.outcome.status is not Status.EMPTY:
                self.skips.fail(each.address.recorded, blob)
                continue
            found.append(_Member(each.extension, b"" if isinstance(blob, ImageError) else blob))
            self._along += 1
        return found


def _rows_of(images: list[tuple[Row, str]], members: list[_Member]) -> Iterator[_Member]:
    """The row of each image as a member that is named like it, and like nothing else of the sample."""
    taken = {member.extension.lower() for member in members}
    for row, extension in images:
        stem = os.path.splitext("x" + extension)[0].removeprefix("x")
        names = chain((f"{stem}.json", f"{stem}.fiqa.json"), (f"{extension}.fiqa{n}.json" for n in count(1)))
        name = next(name for name in names if name.lower() not in taken)
        taken.add(name.lower())
        yield _Member(name, to_json(row).encode())


def _split(items: Iterable[list[_Member]], size: int) -> Iterator[Iterator[list[_Member]]]:
    """Iterators over `size` items each, which must be used up in turn."""
    iterator = iter(items)
    for first in iterator:
        yield chain((first,), islice(iterator, size - 1))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
