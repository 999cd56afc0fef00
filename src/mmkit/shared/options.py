"""What is said when something is made or found: `create`, and what goes with it alone."""

from __future__ import annotations

__all__ = ["MODE", "check_options"]

#: The permission bits of what is made where nothing is said.
MODE = 0o600

#: What an option is where nothing is said; None if it is not here.
_UNSAID = {"mode": MODE, "reserve": True, "persist": False, "single": False}


def check_options(create: bool, what: str, **options: object) -> None:
    """Refuse what would be ignored: who attaches finds what the maker said.

    Parameters
    ----------
    create
        Whether it is to be made.
    what
        How to call it in an error.
    options
        What is for makers only, as it was given.
    """
    # Where it stands among the others is not the same for all classes, and threading and multiprocessing have
    # numbers there: Semaphore(name, 3) would have one permit.
    if not isinstance(create, bool):
        raise TypeError(
            f"{what}: create is True or False, not {create!r}; numbers go by name: size=, value=, parties="
        )
    said = [option for option, value in options.items() if value != _UNSAID.get(option)]
    if said and not create:
        raise ValueError(f"{what}: {', '.join(said)}: for create=True only, what exists has its own")
