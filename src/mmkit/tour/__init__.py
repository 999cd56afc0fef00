"""``mmkit tour``: the memory calls of Linux, made on the kernel at hand, drawn and checked.

A section (one file each) has scenes, a scene makes steps, and an audience watches them: `engine` has the
words, `screen` is the audience in a terminal, `pictures` looks at memory and `drawing` draws it.
"""

from __future__ import annotations

from mmkit.tour import (
    advice,
    anonymous,
    file_mapping,
    layout,
    locking,
    pitfalls,
    program_break,
    protection,
    segments,
    sharing,
    special_pages,
)
from mmkit.tour.engine import Audience, AudienceLeft, Section, run
from mmkit.tour.screen import Screen
from mmkit.tour.step import Outcome, Step

__all__ = ["SECTIONS", "Audience", "AudienceLeft", "Outcome", "Screen", "Section", "Step", "run"]

#: In the order in which they are shown: each stands on those before it.
SECTIONS: tuple[Section, ...] = tuple(
    module.SECTION
    for module in (
        layout,
        program_break,
        file_mapping,
        anonymous,
        sharing,
        protection,
        segments,
        locking,
        advice,
        special_pages,
        pitfalls,
    )
)
