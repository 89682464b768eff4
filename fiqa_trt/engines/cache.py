"""Compiled networks that are kept between runs. Each is known by everything that it depends on, and by its content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

_DIGEST = hashlib.sha256
_SIZE = _DIGEST().digest_size


class Slot:
    """The place of one compiled network: a file with the digest of what follows it.

    Several processes may read and write it at once: it changes in one step, and of two writers the last wins.
    """

    def __init__(self, folder: Path, facts: Mapping[str, object]) -> None:
        """The place for a network.

        Args:
            folder: made when something is kept.
            facts: all that the compiled network depends on.
        """
        key = _DIGEST(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        self.path = folder / f"{key[:32]}.blob"

    def read(self) -> bytes | None:
        """The compiled network; None if none is kept.

        Raises:
            ValueError: what is kept is not what was written.
        """
        try:
            # What is no file (a pipe, a device) may never answer, or never end.
            with open(self.path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return None
                kept = file.read()
        except OSError:
            return None
        digest, blob = kept[:_SIZE], kept[_SIZE:]
        if _DIGEST(blob).digest() != digest:
            raise ValueError(f"{self.path} is damaged")
        return blob

    def write(self, blob: bytes) -> None:
        """Keep a compiled network, if that can be: without, the next start takes longer and is no worse."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # Not flushed to the disk: what a power cut leaves of it has another digest.
                temporary.write_bytes(_DIGEST(blob).digest() + blob)
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)

    def drop(self) -> None:
        """Keep it no longer."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def cache_folder() -> Path | None:
    """Where compiled networks are kept between runs: $FIQA_TRT_CACHE, else the user's cache; None if not writable."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = Path(os.environ.get("FIQA_TRT_CACHE") or Path(base) / "fiqa-trt")
        if str(folder).startswith("~"):  # nobody's home
            return None
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
