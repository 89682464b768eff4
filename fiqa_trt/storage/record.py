"""The record of work that may be stopped: a file that is there from when it begins until it is finished.

It holds the fingerprint of what the work's results depend on, so that a later call goes on with them only if it would
have begun them itself.
"""

from __future__ import annotations

import json

from fiqa_trt.fingerprint import Fingerprint, refuse_difference
from fiqa_trt.storage.places import Place
from fiqa_trt.storage.writing import write_text


class Record:
    """The record of one piece of work.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Place, indent: int | None = None) -> None:
        """`indent` of the JSON, in spaces; None for a single line."""
        self.path = path
        self._indent = indent

    def read(self) -> Fingerprint | None:
        """The fingerprint of the work that was begun, or None if none was."""
        try:
            return dict(json.loads(self.path.read_text()))
        except (OSError, ValueError):
            return None

    def continues(self, work: Place, fingerprint: Fingerprint) -> bool:
        """Whether what was begun at `work` is to go on; if not, there is nothing.

        Raises:
            DifferentRun: it belongs to another call; the difference is named.
        """
        recorded = self.read()
        if recorded is not None:
            refuse_difference(str(work), recorded, fingerprint)
        return recorded is not None

    def write(self, fingerprint: Fingerprint) -> None:
        """The work begins. Raises RunError if the disk does not take it."""
        write_text(self.path, json.dumps(fingerprint, indent=self._indent))

    def remove(self) -> None:
        """The work is finished, or forgotten. Raises OSError."""
        self.path.unlink(missing_ok=True)
