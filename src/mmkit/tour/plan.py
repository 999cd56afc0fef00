"""What there is to see, and what of it somebody chose."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from mmkit.tour.engine import Section

__all__ = ["NoSuchSectionError", "NoSuchStepError", "chosen", "listing", "named"]


class NoSuchSectionError(ValueError):
    """A section was asked for that the tour has not."""


class NoSuchStepError(ValueError):
    """A step was asked for that the tour, or what was chosen of it, has not."""


@dataclass(frozen=True)
class _Announced:
    number: int
    section: Section
    title: str


def _announced(sections: Sequence[Section]) -> Iterator[_Announced]:
    titles = ((section, title) for section in sections for scene in section.scenes for title in scene.titles)
    for number, (section, title) in enumerate(titles, 1):
        yield _Announced(number, section, title)


def chosen(sections: Sequence[Section], keys: Collection[str], steps: Collection[str]) -> set[int] | None:
    """Find the steps that somebody wants to see.

    Parameters
    ----------
    sections
        All of them.
    keys
        Of the sections that are wanted, in any case, or beginnings of them, or numbers; empty for all.
    steps
        Numbers of steps, or words of their titles in any case; empty for all.

    Returns
    -------
    set of int or None
        Their numbers; None for all there are.

    Raises
    ------
    NoSuchSectionError
        There is no such section, or more than one.
    NoSuchStepError
        There is no such step in these sections, or in one of them.
    """
    if not keys and not steps:
        return None
    wanted = [_section(sections, key) for key in keys] or sections
    there = [each for each in _announced(sections) if each.section in wanted]
    if not steps:
        return {each.number for each in there}
    found = {number for step in steps for number in _matching(there, step)}
    for section in wanted if keys else ():
        if not any(each.number in found for each in there if each.section is section):
            raise NoSuchStepError(
                f"section {section.key} has none of these steps: leave one or the other out"
            )
    return found


def _section(sections: Sequence[Section], wanted: str) -> Section:
    for number, section in enumerate(sections, 1):
        if wanted.casefold() in (section.key, str(number)):
            return section
    begun = [section for section in sections if wanted and section.key.startswith(wanted.casefold())]
    if len(begun) == 1:
        return begun[0]
    if begun:
        keys = ", ".join(section.key for section in begun)
        raise NoSuchSectionError(f"more than one section begins with {wanted!r}: {keys}")
    raise NoSuchSectionError(f"there is no section {wanted!r}. There are: {named(sections)}")


def _matching(there: Sequence[_Announced], step: str) -> set[int]:
    if not step.strip():
        raise NoSuchStepError("give the number of a step, or words of its title: see --list")
    if step.removeprefix("-").isdecimal():
        found = {each.number for each in there if each.number == int(step)}
        missing = f"there is no step {step} in what was chosen: see --list"
    else:
        found = {each.number for each in there if step.casefold() in each.title.casefold()}
        missing = f"no title of a step has {step!r} in it: see --list"
    if not found:
        raise NoSuchStepError(missing)
    return found


def named(sections: Sequence[Section]) -> str:
    """Write by what sections are chosen: the number and the key of each."""
    return ", ".join(f"{number} {section.key}" for number, section in enumerate(sections, 1))


def listing(sections: Sequence[Section], only: Collection[int] | None) -> Iterator[str]:
    """Write the sections, with the keys by which they are chosen, and their steps, with their numbers."""
    width = max(len(section.key) for section in sections)
    numbers = {section.key: number for number, section in enumerate(sections, 1)}
    last = None
    for each in _announced(sections):
        if only is not None and each.number not in only:
            continue
        if each.section is not last:
            if last:
                yield ""
            yield f"{each.section.key:<{width}}  {numbers[each.section.key]} · {each.section.title}"
            last = each.section
        yield f"{each.number:>{width}}  {each.title}"
