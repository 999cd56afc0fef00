"""Section: the six classic mistakes, each made where it does no harm."""

from __future__ import annotations

from mmkit.tour.engine import Section
from mmkit.tour.pitfalls_addresses import after_munmap, failure_is_not_null, forgotten, part_of_it
from mmkit.tour.pitfalls_files import beyond_the_end, offset_in_a_page, who_sees_it

__all__ = ["SECTION"]

SECTION = Section(
    key="pitfalls",
    title="Six classic mistakes",
    introduction=(
        "Everybody who maps memory in C makes these once: a failure not noticed, an offset within a page, an "
        "access beyond the end of a file, an address used after munmap, changes looked for where they never "
        "go, memory forgotten. Here they are made on purpose, with what becomes of them."
    ),
    scenes=(
        failure_is_not_null,
        offset_in_a_page,
        beyond_the_end,
        after_munmap,
        who_sees_it,
        forgotten,
        part_of_it,
    ),
)
