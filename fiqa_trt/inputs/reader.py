"""Reads images by their addresses: files, and what is in containers. Nothing is unpacked.

A damaged container is read as far as it goes; that something is wrong with it is said once, for the container itself.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from fiqa_trt.errors import FiqaError, InputError
from fiqa_trt.inputs.address import DEFAULT_COLUMN, Address
from fiqa_trt.inputs.containers.base import Container
from fiqa_trt.inputs.containers.registry import kind_of
from fiqa_trt.outcomes import ImageError, Origin, Status, unforeseen
from fiqa_trt.storage.base import Blob, FileChanged, Read, microseconds
from fiqa_trt.storage.registry import store_of

_TRIES = 3
_KEPT_BYTES = max(256 << 20, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 64)
"""What is kept of the containers that were used last takes about this much: indexes of some four million members."""


def open_container(path: str, column: str | None = DEFAULT_COLUMN) -> Container:
    """Open a container by its suffix, or take it from those that the process has at hand.

    Args:
        path: ends in one of `registry.CONTAINERS`.
        column: of a table, with the images, see `columns.find_column`; None to learn of its error alone.

    Returns:
        The container. Damage is found in its `error`.

    Raises:
        NoColumn: a table without such a column.
        InputError: a table whose column holds no images.
    """
    return _KEPT.open(path, column)


class _Kept:
    """The containers that were used last, as long as their files stay the same and somebody may use them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gates = [threading.Lock() for _ in range(64)]  # so that each is opened once
        self._containers, self._weight = OrderedDict[tuple[str, str | None], Container](), 0
        self._readers = 0

    def open(self, path: str, column: str | None) -> Container:
        """See `open_container`."""
        kind = kind_of(path)
        key = (path, column if kind.table else None)
        with self._gates[hash(key) % len(self._gates)]:
            with self._lock:
                container = self._containers.get(key)
                if container is not None:
                    self._containers.move_to_end(key)
            if container is None or container.stamp != store_of(path).stamp(path):
                container = kind.open(path, column)
                self._keep(key, container)
            return container

    def _keep(self, key: tuple[str, str | None], container: Container) -> None:
        with self._lock:
            if key in self._containers:
                self._drop(key)
            if container.stamp is not None:
                self._containers[key] = container
                self._weight += container.weight
            while self._weight > _KEPT_BYTES and len(self._containers) > 1:
                self._drop(next(iter(self._containers)))

    def _drop(self, key: tuple[str, str | None]) -> None:
        container = self._containers.pop(key)
        self._weight -= container.weight
        container.close()

    def enter(self) -> None:
        """Somebody is going to read."""
        with self._lock:
            self._readers += 1

    def leave(self) -> None:
        """The last one who leaves lets go of everything."""
        with self._lock:
            self._readers -= 1
            while not self._readers and self._containers:
                self._drop(next(iter(self._containers)))

    def forget(self) -> None:
        """Begin anew in a forked process: locks may be held by threads that it does not have."""
        self.__init__()  # type: ignore[misc]


_KEPT = _Kept()
os.register_at_fork(after_in_child=_KEPT.forget)


class ContainerReader:
    """Reads images out of containers. Safe to use from several threads; they share what is at hand."""

    def __init__(self) -> None:
        self._closed = False
        _KEPT.enter()

    def read(self, address: Address) -> bytes:
        """Bytes of an image; of the container itself there are none. Raises ImageError."""
        blob = self.read_all([address])[0].blob
        if isinstance(blob, ImageError):
            raise blob
        return blob

    def keys(self, file: str) -> Iterator[str]:
        """Whatever a container holds, as `Container.keys`; nothing if it cannot be opened."""
        try:
            return open_container(file).keys()
        except InputError:
            return iter(())

    def read_all(self, addresses: Sequence[Address]) -> list[Read]:
        """The same of several images of one container, and of one column, at once; or why there are no bytes."""
        file, column = addresses[0].file, addresses[0].column
        keys = [address.key or "" for address in addresses]
        for _ in range(_TRIES):
            try:
                opened = open_container(file, column if any(keys) else None)
                blobs = opened.read_all(keys) if all(keys) else [_read(opened, key) for key in keys]
                modified = None if opened.stamp is None else microseconds(opened.stamp.modified_ns)
                return [Read(blob, Origin(len(blob) if isinstance(blob, bytes) else None, modified)) for blob in blobs]
            except FileChanged:
                continue
            except InputError as exc:
                return [Read(ImageError(Status.UNREADABLE, str(exc)))] * len(keys)
            except FiqaError:  # of what holds the images, not of one of them
                raise
            except Exception as exc:  # the last net: of one image, at the cost of no other
                if len(keys) > 1:
                    return [self.read_all([address])[0] for address in addresses]
                return [Read(unforeseen(exc))]
        return [Read(FileChanged())] * len(keys)

    def positions(self, addresses: Sequence[Address]) -> list[int]:
        """See `Container.position`; of several images of one container, and of one column."""
        try:
            opened = open_container(addresses[0].file, addresses[0].column)
        except InputError:
            return [-1] * len(addresses)
        return [opened.position(address.key or "") for address in addresses]

    def close(self) -> None:
        """Nothing more is going to be read."""
        if not self._closed:
            self._closed = True
            _KEPT.leave()


def _read(container: Container, key: str) -> Blob:
    if not key:
        return container.error or ImageError(
            Status.UNSUPPORTED,
            "a shard: what it holds gets rows where it is INPUT of a run (--update adds them), not by its own name",
        )
    return container.read_all([key])[0]


def read_addresses(
    addresses: Sequence[Address], containers: ContainerReader, stopped: Callable[[], bool] = lambda: False
) -> list[Read]:
    """The bytes of each image, or why there are none. Neighbours in a container are read at once.

    If it is `stopped`, the rest is left out.
    """
    found = list[Read]()
    for (_, _, plain), group in groupby(addresses, key=lambda one: (one.file, one.column, one.key is None)):
        if plain:
            found += [_read_plain(one.file) for one in group if not stopped()]
        elif not stopped():
            found += containers.read_all([*group])
    return found


def _read_plain(path: str) -> Read:
    try:
        return store_of(path).read(path)
    except FiqaError:  # of the store
        raise
    except Exception as exc:  # the last net: what is wrong with one file ends no run
        return Read(unforeseen(exc))


def read_recorded(recorded: str, containers: ContainerReader) -> Blob:
    """The bytes of an image by its recorded path, or why there are none."""
    return read_addresses([Address.parse(recorded)], containers)[0].blob


def origin_of(address: Address, known: dict[str, Origin]) -> Origin:
    """What an image comes from, without reading it: of one in a container the time alone.

    `known` remembers the containers, for many images at a time.
    """
    file, key, _ = address
    if key is None:
        return store_of(file).origin(file)
    if file not in known:
        known[file] = Origin(None, store_of(file).origin(file).modified)
    return known[file]
