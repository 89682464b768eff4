"""What results depend on, so that work which was stopped is only continued by a call that would have begun it so.

A record of options counts whole: a field that is added later counts without anybody thinking of it. What makes no
difference to results says so, by FREE.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fiqa_trt.errors import DifferentRun

Fingerprint = dict[str, str | int | None]

FREE = {"free": True}
"""Metadata of a dataclass's field that results do not depend on, or only through something else that counts."""


def counted(record: Any) -> Fingerprint:
    """Names and values of a dataclass's fields that are not FREE."""
    fields = [field.name for field in dataclasses.fields(record) if not field.metadata.get("free")]
    return {name: _plain(getattr(record, name)) for name in fields}


def _plain(value: object) -> str | int | None:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return value if value is None or isinstance(value, (str, int)) else str(value)


def refuse_difference(
    what: str,
    recorded: Fingerprint,
    wanted: Fingerprint,
    way_out: str = "go on with the options that it had, begin anew with --restart, or choose another -o",
) -> None:
    """Raise DifferentRun, naming what differs and the way out, unless the two fingerprints are equal."""
    names = [name for name in {**recorded, **wanted} if recorded.get(name) != wanted.get(name)]
    if names:
        differences = ", ".join(
            f"{name}: {_short(recorded.get(name))} there, {_short(wanted.get(name))} now" for name in names
        )
        raise DifferentRun(f"{what} belongs to another run ({differences}); {way_out}")


def _short(value: object) -> str:
    text = "none" if value in (None, "") else str(value)
    return text[:12] if len(text) == 64 else text
