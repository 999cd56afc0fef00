"""Paths as the kernel tells them: for people, and as links have them."""

from __future__ import annotations

__all__ = ["as_linked", "printable"]


def printable(path: bytes) -> str:
    r"""Write a path so that no terminal is misled: ``new\nline``, ``not-utf8-\xff``, ``\u202e``."""
    text = path.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def as_linked(path: bytes, deleted: bool) -> bytes:
    """Write a path as /proc/PID/exe has it."""
    return path + b" (deleted)" if deleted else path
