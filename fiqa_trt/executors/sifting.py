"""Which images of a unit end the process that decodes them: each is read and decoded in a process of its own.

`sift` starts a helper that imports what is needed and no more. It forks one process that goes through all images, a few
read at a time and each decoded alone; where that dies, every image of those few is tried in a process of its own, as
what kills may be what an earlier one has left behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from fiqa_trt.decoding.registry import DECODERS, open_decoder
from fiqa_trt.errors import FiqaError, number_of
from fiqa_trt.executors.base import Setup
from fiqa_trt.inputs.address import Address
from fiqa_trt.inputs.reader import ContainerReader, origin_of, read_addresses
from fiqa_trt.outcomes import ImageError, Origin, Status
from fiqa_trt.pipeline import decode_all
from fiqa_trt.progress import Say, silent
from fiqa_trt.storage.base import Read, unsigned

if TYPE_CHECKING:
    import pyarrow as pa

DIED = "the decoder died"
"""What the error of such an image begins with."""
_TOGETHER = 32  # images that are read at a time
_SHOWN = 3
_OUR_FAULT = 99  # exit code of a process that could not even begin


def sift(number: int, table: pa.Table, setup: Setup, place: str, say: Say = silent) -> dict[int, Read]:
    """The rows of a unit whose images end a process, with what they are given instead of a score.

    Args:
        number: of the unit.
        table: its inputs.
        setup: of the executor, with the name of the decoder that it has.
        place: where the engine takes its images.
        say: hears of the images.
    """
    paths = table.column(0).to_pylist()
    request = {"decoder": setup.decoder.split()[0], "place": place, "max_pixels": setup.max_pixels, "paths": paths}
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(request).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is not for it
        check=False,
    )
    found, known = dict[int, Read](), dict[str, Origin]()
    for line in done.stdout.decode().splitlines():
        row, reason = line.split(" ", 1)
        error = ImageError(Status.CORRUPT, f"{DIED}: {reason}")
        found[int(row)] = Read(error, origin_of(Address.parse(paths[int(row)]), known))
    if found:
        shown = ", ".join(unsigned(paths[row]) for row in sorted(found)[:_SHOWN])
        shown += ", ..." if len(found) > _SHOWN else ""
        say(f"unit {number} has ended its process before: {number_of(len(found), 'image does', 'images do')}, {shown}")
    return found


def main() -> None:
    """The helper: a request on standard input, a line for each image that ends a process on standard output."""
    request = json.load(sys.stdin)
    import_module(DECODERS[request["decoder"]])  # once, and not in each of the processes
    addresses = [Address.parse(path) for path in request["paths"]]
    start = 0
    while (death := _forked(request, addresses, start, len(addresses))) is not None:
        start += (death.row - start) // _TOGETHER * _TOGETHER
        end = min(start + _TOGETHER, len(addresses))
        for row in range(start, end):
            # Twice, as it may be that somebody else has used up the memory.
            if _forked(request, addresses, row, row + 1) and (alone := _forked(request, addresses, row, row + 1)):
                print(row, alone.reason, flush=True)
        start = end


class _Death(NamedTuple):
    """At which row, or of which few that are read together the first, and how."""

    row: int
    reason: str


def _forked(request: dict[str, object], addresses: Sequence[Address], start: int, end: int) -> _Death | None:
    """Read and decode images in another process; how that died, if it did."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = _OUR_FAULT
        try:
            os.close(reading)
            for row in _decoded(request, addresses, start, end):
                os.write(writing, row.to_bytes(8, "little"))
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as rows:
        told = rows.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code in (0, _OUR_FAULT):
        return None
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return _Death(int.from_bytes(told[-8:], "little") if told else start, reason)


def _decoded(request: dict[str, object], addresses: Sequence[Address], start: int, end: int) -> Iterator[int]:
    """The row of each image just before it is decoded, or before it is read together with those that follow it."""
    decoder = open_decoder(str(request["decoder"]), str(request["place"]), 1, int(str(request["max_pixels"])))
    containers = ContainerReader()
    for first in range(start, end, _TOGETHER):
        yield first
        read = read_addresses(addresses[first : min(first + _TOGETHER, end)], containers, lambda: False)
        for row, one in enumerate(read, first):
            yield row
            try:
                decode_all(decoder, [one.blob], 1)
            except FiqaError:
                continue


if __name__ == "__main__":
    main()
