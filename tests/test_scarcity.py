from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from fiqa_trt.decoding.cpu import CpuDecoder, decode_image
from fiqa_trt.errors import Starved
from fiqa_trt.inputs.address import Address
from fiqa_trt.inputs.reader import ContainerReader, read_addresses
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.scarcity import starved_by
from tests.helpers import jpeg


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@contextmanager
def without_descriptors() -> Iterator[None]:
    taken = list[int]()
    with limited(resource.RLIMIT_NOFILE, 1 + max(map(int, os.listdir("/proc/self/fd")))):
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            yield
        finally:
            for each in taken:
                os.close(each)


@contextmanager
def without_memory() -> Iterator[None]:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    with limited(resource.RLIMIT_AS, used + (4 << 20)):
        yield


def test_a_file_that_cannot_be_opened_for_lack_of_descriptors_is_no_row(tmp_path: Path, portrait: Image.Image) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(portrait))
    addresses, reader = [Address.parse(str(path))], ContainerReader()
    with without_descriptors(), pytest.raises(Starved, match="Too many open files"):
        read_addresses(addresses, reader)
    assert isinstance(read_addresses(addresses, reader)[0].blob, bytes)


def test_members_of_a_shard_likewise(tmp_path: Path, portrait: Image.Image) -> None:
    import tarfile

    path = tmp_path / "a.tar"
    (tmp_path / "0.jpg").write_bytes(jpeg(portrait))
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "0.jpg", "0.jpg")
    with without_descriptors(), pytest.raises(Starved):
        read_addresses([Address.parse(f"{path}::0.jpg")], ContainerReader())


def test_what_fails_for_lack_of_memory_is_no_row(portrait: Image.Image) -> None:
    whole = jpeg(portrait)
    cut = whole[: len(whole) // 2]
    with pytest.raises(ImageError) as told:
        decode_image(cut)
    assert told.value.outcome.status is Status.TRUNCATED
    with without_memory(), pytest.raises(Starved):
        CpuDecoder().decode([cut], 1)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN])
def test_what_the_system_refuses(number: int) -> None:
    found = starved_by(OSError(number, os.strerror(number)))
    assert found is not None
    assert os.strerror(number) in str(found)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), ValueError("x"), MemoryError("a bomb"), RuntimeError("x")])
def test_what_an_image_brings_about(error: Exception) -> None:
    """Also a picture that would take more than there is: one can have what others need."""
    assert starved_by(error) is None
