"""A forbidden access made twice: bare, by a child that dies of it, and by mmkit, which raises."""

from __future__ import annotations

from collections.abc import Callable

from mmkit.errors import MemoryFault
from mmkit.tour.step import Step
from mmkit.tour.witness import bare_access

__all__ = ["fault_twice"]


def fault_twice(
    step: Step,
    c: str,
    python: str,
    *,
    address: int,
    access: str,
    touch: Callable[[], object],
    codes: tuple[str, ...],
    reasons: tuple[str, ...],
) -> None:
    """Make a forbidden access in both languages, show what each comes to, and check that both agree.

    Parameters
    ----------
    step
        Where it is shown.
    c, python
        The statement in both.
    address, access
        What it touches first, and whether it is a ``"read"`` or a ``"write"``.
    touch
        Does it, by mmkit.
    codes
        What the kernel may say of it, as sigaction(2) has it.
    reasons
        What the `MemoryFault` may give as its reason.
    """
    step.code(c, python)
    death = bare_access(address, access)
    fault = _fault_of(touch)
    step.faulted(death, fault)
    step.check(
        f"plain C, in a child: {death.signal if death else 'no signal'}, at that very byte",
        death is not None and death.code in (*codes, "") and death.address in (address, None),
    )
    step.check(
        f"mmkit: MemoryFault, {fault.access}, {fault.reason}" if fault else "mmkit: MemoryFault",
        fault is not None and (fault.access, fault.address) == (access, address) and fault.reason in reasons,
    )


def _fault_of(touch: Callable[[], object]) -> MemoryFault | None:
    try:
        touch()
    except MemoryFault as fault:
        return fault
    return None
