"""Files that hold many images: tar shards, and Parquet or Arrow tables with a column of images.

An image in one is recorded as `shard.tar::member` or `table.parquet::row`. That is all it takes to find it again, so
such paths may stand in lists and outputs like any other. Nothing is unpacked. A damaged shard is read as far as it
goes; that something is wrong with it is said once, for the shard itself.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from fiqa_trt.errors import InputError
from fiqa_trt.inputs.containers.base import Shard
from fiqa_trt.inputs.containers.columns import DEFAULT_COLUMN
from fiqa_trt.inputs.containers.registry import TAR
from fiqa_trt.inputs.containers.tables import TableShard
from fiqa_trt.inputs.containers.tar import TarShard
from fiqa_trt.inputs.places import Place, locate
from fiqa_trt.outcomes import ImageError, Origin, Status, unforeseen
from fiqa_trt.storage.reading import (
    Blob,
    FileChanged,
    Read,
    microseconds,
    read_plain,
    stamp_at,
)

_TRIES = 3
_KEPT_BYTES = max(256 << 20, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 64)
"""What is kept of the shards that were used last takes about this much: indexes of some four million members."""
_KEPT_TABLES = 8
"""Tables that are kept: each holds a file open and some of its rows."""


def open_shard(path: str, column: str = DEFAULT_COLUMN) -> Shard:
    """Open a shard by its suffix, or take it from those that the process has at hand; damage is found in its `error`.

    Args:
        path: ends in .tar, .parquet or .arrow.
        column: of a table, with the images; see `columns.find_column`.

    Raises:
        NoColumn: a table without such a column.
        InputError: a table whose column holds no images.
    """
    return _KEPT.open(path, column)


class _Kept:
    """The shards that were used last, as long as their files stay the same and somebody may use them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gates = [threading.Lock() for _ in range(64)]  # so that each is opened once
        self._shards, self._weight = OrderedDict[tuple[str, str], Shard](), 0
        self._readers = 0

    def open(self, path: str, column: str) -> Shard:
        """See `open_shard`."""
        key = (path, "" if path.lower().endswith(TAR) else column)
        with self._gates[hash(key) % len(self._gates)]:
            with self._lock:
                shard = self._shards.get(key)
                if shard is not None:
                    self._shards.move_to_end(key)
            if shard is None or shard.stamp != stamp_at(path):
                shard = TableShard(path, column) if key[1] else TarShard(path)
                self._keep(key, shard)
            return shard

    def _keep(self, key: tuple[str, str], shard: Shard) -> None:
        with self._lock:
            if key in self._shards:
                self._drop(key)
            if shard.stamp is not None:
                self._shards[key] = shard
                self._weight += _weight(shard)
            while self._weight > _KEPT_BYTES and len(self._shards) > 1:
                self._drop(next(iter(self._shards)))

    def _drop(self, key: tuple[str, str]) -> None:
        shard = self._shards.pop(key)
        self._weight -= _weight(shard)
        shard.close()

    def enter(self) -> None:
        """Somebody is going to read."""
        with self._lock:
            self._readers += 1

    def leave(self) -> None:
        """The last one who leaves lets go of everything."""
        with self._lock:
            self._readers -= 1
            while not self._readers and self._shards:
                self._drop(next(iter(self._shards)))

    def forget(self) -> None:
        """Begin anew in a forked process: locks may be held by threads that it does not have."""
        self.__init__()  # type: ignore[misc]


def _weight(shard: Shard) -> int:
    return shard.weight if isinstance(shard, TarShard) else _KEPT_BYTES // _KEPT_TABLES


_KEPT = _Kept()
os.register_at_fork(after_in_child=_KEPT.forget)


class ShardReader:
    """Reads images out of shards. Safe to use from several threads; all readers share what the process has at hand."""

    def __init__(self, column: str = DEFAULT_COLUMN) -> None:
        self._column, self._closed = column, False
        _KEPT.enter()

    def read(self, shard: str, key: str) -> bytes:
        """Bytes of an image; of the shard itself, with an empty key, there are none. Raises ImageError."""
        blob = self.read_all(shard, [key])[0].blob
        if isinstance(blob, ImageError):
            raise blob
        return blob

    def keys(self, shard: str) -> Iterator[str]:
        """Whatever a shard holds, as `Shard.keys`; nothing if it cannot be opened."""
        try:
            return open_shard(shard, self._column).keys()
        except InputError:
            return iter(())

    def read_all(self, shard: str, keys: Sequence[str]) -> list[Read]:
        """The same of several images of one shard, at once; or why there are no bytes."""
        for _ in range(_TRIES):
            try:
                opened = open_shard(shard, self._column)
                blobs = opened.read_all(keys) if all(keys) else [_read(opened, key) for key in keys]
                modified = None if opened.stamp is None else microseconds(opened.stamp.modified_ns)
                return [Read(blob, Origin(len(blob) if isinstance(blob, bytes) else None, modified)) for blob in blobs]
            except FileChanged:
                continue
            except InputError as exc:
                return [Read(ImageError(Status.UNREADABLE, str(exc)))] * len(keys)
            except Exception as exc:  # the last net: of one image, at the cost of no other
                if len(keys) > 1:
                    return [self.read_all(shard, [key])[0] for key in keys]
                return [Read(unforeseen(exc))]
        return [Read(FileChanged())] * len(keys)

    def positions(self, shard: str, keys: Sequence[str]) -> list[int]:
        """See `Shard.position`."""
        try:
            opened = open_shard(shard, self._column)
        except InputError:
            return [-1] * len(keys)
        return [opened.position(key) for key in keys]

    def close(self) -> None:
        """Nothing more is going to be read."""
        if not self._closed:
            self._closed = True
            _KEPT.leave()


def _read(shard: Shard, key: str) -> Blob:
    if not key:
        return shard.error or ImageError(
            Status.UNSUPPORTED,
            "a shard: what it holds gets rows where it is INPUT of a run (--update adds them), not by its own name",
        )
    return shard.read_all([key])[0]


def read_places(
    places: Sequence[Place], shards: ShardReader, stopped: Callable[[], bool] = lambda: False
) -> list[Read]:
    """The bytes of each image that `locate` found, or why there are none. Neighbours in a shard are read at once.

    If it is `stopped`, the rest is left out.
    """
    found = list[Read]()
    for (path, plain), group in groupby(places, key=lambda place: (place[0], place[1] is None)):
        if plain:
            found += [_read_plain(path) for _ in group if not stopped()]
        elif not stopped():
            found += shards.read_all(path, [key or "" for _, key in group])
    return found


def _read_plain(path: str) -> Read:
    try:
        return read_plain(path)
    except Exception as exc:  # the last net: what is wrong with one file ends no run
        return Read(unforeseen(exc))


def read_recorded(recorded: str, shards: ShardReader) -> Blob:
    """The bytes of an image by its recorded path, or why there are none."""
    return read_places([locate(recorded)], shards)[0].blob


def origin_of(place: Place, known: dict[str, Origin]) -> Origin:
    """What an image that `locate` found comes from, without reading it: of one in a shard the time alone.

    `known` remembers the shards, for many images at a time.
    """
    path, key = place
    if key is None:
        return _stat(path)
    if path not in known:
        known[path] = Origin(None, _stat(path).modified)
    return known[path]


def _stat(path: str) -> Origin:
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return Origin()
    return Origin(info.st_size, microseconds(info.st_mtime_ns)) if stat.S_ISREG(info.st_mode) else Origin()
