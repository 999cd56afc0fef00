"""Section: where everything in a process lives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise

from mmkit import linux, maps
from mmkit.maps import Area, Kind
from mmkit.tour.engine import Section, Stage, scene
from mmkit.tour.pictures import Ladder, Rung

__all__ = ["SECTION"]

_PROGRAM = (Kind.TEXT, Kind.RODATA, Kind.DATA, Kind.BSS)


@scene("Ask the kernel for the map of this process")
def the_ladder(stage: Stage) -> None:
    """Draw the address space from what the kernel lists."""
    with stage.step() as step:
        step.code('f = fopen("/proc/self/maps", "r");', "areas = maps.read()")
        areas = maps.read()
        step.say(f"{len(areas)} areas, from {areas[0].start:#x} on")
        rungs = tuple(_rungs(list(areas)))
        step.show(Ladder(rungs))
        named = [rung for rung in rungs if rung.name]
        step.check(
            f"{len(areas)} areas, in order and without overlap",
            all(below.end <= above.start for below, above in pairwise(areas)),
        )
        step.check(
            "the program lies at the bottom, the stack at the top",
            named[-1].name == "program" and named[0].name.startswith("stack"),
        )


def _rungs(areas: list[Area]) -> Iterator[Rung]:
    """Put areas together to the parts that textbooks draw, highest first, with the gaps between them."""
    parts = [
        ("stack          ↓", "what C functions work on", [Kind.STACK]),
        ("mapped areas   ↓", "libraries; what you map", None),
        ("heap           ↑", "what C took by malloc", [Kind.HEAP]),
        ("program", "python: code, constants", _PROGRAM),
    ]
    known = {*_PROGRAM, Kind.STACK, Kind.HEAP}
    above: int | None = None
    for name, note, kinds in parts:
        members = [
            area
            for area in areas
            if (area.kind in kinds if kinds else area.kind not in known) and area.start < 1 << 56
        ]
        # Huge gaps inside "mapped areas" would hide the picture: only its largest cluster is drawn.
        for start, end in _largest_cluster(members):
            if above is not None and above > end:
                yield Rung(end, above, "", "free")
            yield Rung(start, end, name, note)
            above = start
    if above:
        yield Rung(0, above, "", "free; 0 itself is NULL")


def _largest_cluster(members: list[Area], widest_gap: int = 1 << 30) -> Iterator[tuple[int, int]]:
    clusters: list[tuple[int, int]] = []
    for area in members:
        if clusters and area.start - clusters[-1][1] <= widest_gap:
            clusters[-1] = clusters[-1][0], area.end
        else:
            clusters.append((area.start, area.end))
    if clusters:
        yield max(clusters, key=lambda cluster: cluster[1] - cluster[0])


@scene(
    "Every Python object is somewhere in there: id() is its address",
    "Read the bytes there, as the kernel sees them",
)
def an_object(stage: Stage) -> None:
    """Find a Python object in the map, and read it by its address."""
    text = b"".join([b"a Python ", b"object"])
    address = id(text) + bytes.__basicsize__ - 1
    with stage.step() as step:
        step.code(
            f"p = (char *){address:#x};",
            f"text = {text!r}\n"
            "p = id(text) + bytes.__basicsize__ - 1   # behind the head, which counts a last zero byte too",
        )
        area = maps.find(address)
        step.say(f"{address:#x} is in {area}" if area else "nowhere")
        step.check(
            f"/proc/self/maps: {area.perms if area else '?'}, memory that may be read and written",
            area is not None and area.perms == "rw-p",
        )
    with stage.step() as step:
        step.call(
            "process_vm_readv",
            "getpid()",
            f"&(struct iovec){{seen, {len(text)}}}",
            1,
            f"&(struct iovec){{p, {len(text)}}}",
            1,
            0,
            assign="n",
            python=f"linux.process_vm_readv(os.getpid(), [(p, {len(text)})])",
        )
        found = linux.process_vm_readv(os.getpid(), [(address, len(text))])
        step.answer(len(found), result=repr(found))
        step.check("these are the bytes of the Python object", found == text)


SECTION = Section(
    key="layout",
    title="Where everything lives",
    introduction=(
        "A process sees a long row of numbered bytes, its address space, most of it empty. The kernel "
        "lists what is there: the program, its heap, its libraries, its stack. A pointer in C is nothing "
        "but such a number."
    ),
    scenes=(the_ladder, an_object),
)
