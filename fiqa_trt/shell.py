"""Command lines that are printed for pasting: the one place where they are put together."""

from __future__ import annotations

import os
import shlex

_PLAIN = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def command_line(*words: str | os.PathLike[str]) -> str:
    """Words as a line that bash, zsh and ksh take for them, and that a terminal shows as it is."""
    return " ".join(map(_word, words))


def path_word(path: str | os.PathLike[str]) -> str:
    """A path as one word of such a line, that no command takes for an option."""
    text = os.fspath(path)
    return _word("./" + text if text.startswith("-") else text)


def _word(word: str | os.PathLike[str]) -> str:
    text = os.fspath(word)
    return shlex.quote(text) if text.isprintable() else f"$'{''.join(map(_escape, text))}'"


def _escape(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    if character.isprintable():
        return character
    # In three digits, as what follows might be taken for another one of them.
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def printed(line: str) -> str:
    """A recorded command line with what a terminal cannot show as escapes that a shell still understands.

    It was put together by another version, perhaps, which quoted with `shlex` alone.
    """
    if line.isprintable():
        return line
    try:
        return command_line(*shlex.split(line))
    except ValueError:
        return line
