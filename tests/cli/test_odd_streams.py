"""Streams that are odd, full, narrow or of another encoding, one by one."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiqa_trt.cli.progress import ProgressLine
from fiqa_trt.cli.quiet import without_complaints
from fiqa_trt.cli.streams import Stream, give, is_terminal, messages, tell
from fiqa_trt.progress import Progress


@given(st.lists(st.binary(max_size=20_000), max_size=4), st.integers(0, 3))
def test_a_stream_keeps_all_until_it_fails(pieces: list[bytes], fails_at: int) -> None:
    taken = bytearray()

    class Sink:
        calls = 0

        def write(self, descriptor: int, data: memoryview) -> int:
            self.calls += 1
            if self.calls > 3 * fails_at + 1:
                raise OSError(28, "No space left on device")
            taken.extend(data[: max(1, len(data) // 2)])
            return max(1, len(data) // 2)

    sink = Sink()
    stream = Stream(1, sink)
    assert [stream.write(piece) for piece in pieces] == [len(piece) for piece in pieces]
    everything = b"".join(pieces)
    assert everything.startswith(taken)
    assert (stream.failure is None) == (taken == everything)
    if stream.failure is not None:
        calls = sink.calls
        stream.write(b"more")
        assert sink.calls == calls


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252", "shift_jis"])
@given(text=st.text(st.characters(), max_size=50))
def test_any_text_in_any_encoding(encoding: str, text: str) -> None:
    reading, writing = os.pipe()
    like = io.TextIOWrapper(io.BytesIO(), encoding)
    with messages(writing, like, owned=True) as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        give(text)
    with open(reading, "rb") as file:
        shown = file.read().decode(encoding)
    assert shown.endswith("\n")
    assert all(c.isprintable() or c == "\n" for c in shown)


class _Odd:
    """What a notebook may put in the place of standard error."""


@pytest.mark.parametrize("odd", [None, _Odd(), io.StringIO(), "closed"])
def test_odd_streams(odd: object, monkeypatch: pytest.MonkeyPatch) -> None:
    if odd == "closed":
        odd = io.StringIO()
        odd.close()
    monkeypatch.setattr("sys.stderr", odd)
    assert not is_terminal()
    with without_complaints():
        tell("text")
        bar = ProgressLine("images")
        bar(Progress(1, 2, 0, 0))
        bar.end()
    if isinstance(odd, io.StringIO) and not odd.closed:
        assert odd.getvalue() == "text\n"


@pytest.mark.parametrize("columns", [1, 5, 20, 80, 200])
@pytest.mark.parametrize("failed", [0, 12_345])
def test_the_bar_fits_its_terminal(columns: int, failed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("fiqa_trt.cli.progress.is_terminal", lambda: True)
    monkeypatch.setattr("fiqa_trt.cli.progress.columns", lambda: columns)
    monkeypatch.setattr("fiqa_trt.cli.progress.tell", lambda text, end="\n": said.append(text + end))
    bar = ProgressLine("images")
    for done in np.linspace(0, 1_000_000, 11).astype(int):
        bar._shown = 0
        bar(Progress(int(done), 1_000_000, failed, 0))
    assert len(said) == 11
    for line in said:
        assert line.startswith("\r")
        assert len(line.removeprefix("\r").removesuffix("\x1b[K")) < max(columns, 2)
