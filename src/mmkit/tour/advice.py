"""Section: telling the kernel what will be needed, and what will not."""

from __future__ import annotations

from mmkit.tour.advice_anonymous import free, lost
from mmkit.tour.advice_file import a_file
from mmkit.tour.engine import Section

__all__ = ["SECTION"]

SECTION = Section(
    key="advice",
    title="Telling the kernel what comes: madvise",
    introduction=(
        "The kernel guesses what a program will read next, and reads ahead. Advice spares it the guess: "
        "read this soon, this not at all. Most advice is a hint: what it did here was measured (•), and may "
        "be otherwise elsewhere. Some is more than a hint, and gives memory back."
    ),
    scenes=(a_file, lost, free),
)
