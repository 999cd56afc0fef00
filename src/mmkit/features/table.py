"""The one table of features: `supports` answers yes or no, ``mmkit doctor`` shows all of it."""

from __future__ import annotations

import functools

from mmkit.features import files, mapping, processes
from mmkit.features.feature import Absent, Feature, Key, ask
from mmkit.flags import Advice, MapFlag, MemfdFlag
from mmkit.hints import failure

__all__ = ["FEATURES", "supports"]

#: Every feature that mmkit stands on, in the order in which people read them.
FEATURES: tuple[Feature, ...] = mapping.FEATURES + files.FEATURES + processes.FEATURES

# By type too: Advice(8) == MapFlag(8).
_BY_KEY = {(type(feature.key), feature.key): feature for feature in FEATURES}
_NAMES = sorted(feature.key for feature in FEATURES if isinstance(feature.key, str))


def _needs_no_mmu() -> None:
    raise Absent


def _feature(key: Key) -> Feature:
    if found := _BY_KEY.get((type(key), key)):
        return found
    if isinstance(key, Advice):
        return Feature(str(key), "", "", functools.partial(mapping.probe_advice, key))
    if isinstance(key, MemfdFlag):
        return Feature(str(key), "", "", functools.partial(files.probe_memfd_flag, key))
    if key is MapFlag.UNINITIALIZED:
        return Feature(str(key), "", "", _needs_no_mmu)
    raise ValueError(f"there is no probe for {key!r}; names that have one: {', '.join(_NAMES)}")


@functools.lru_cache(maxsize=None, typed=True)  # Advice(8) == MapFlag(8)
def supports(feature: str | Advice | MapFlag | MemfdFlag) -> bool:
    """Tell whether something works here, by trying it (once a process).

    Parameters
    ----------
    feature
        An `Advice`, a single `MapFlag` or `MemfdFlag`; or a name, as ``mmkit doctor`` shows it:
        ``"memfd_create"``, ``"memfd_secret"``, ``"mseal"``, ``"cachestat"``, ``"userfaultfd"``,
        ``"anonymous VMA names"``, ``"PROCMAP_QUERY"``, ``"pkey_alloc"`` … (a wrong one is answered with
        all there are).

    Returns
    -------
    bool
        Whether this process can have it now: ``supports(MapFlag.HUGETLB)`` means that a huge page of the
        default size was free when first asked, and ``supports("mlock")`` that a page could be locked.

    Raises
    ------
    ValueError
        A feature without a probe.
    SyscallError
        It could not be asked. ``EMFILE``, ``ENFILE``: too many files are open. ``EAGAIN``: no child process
        can be had, for a probe that cannot be undone (``"brk"``, ``"mseal"``, ``"mlockall"``).

    Examples
    --------
    >>> import mmkit
    >>> mmkit.supports(mmkit.Advice.WILLNEED)
    True
    """
    answer = ask(_feature(feature))
    if answer.works is None:
        if answer.errno:
            raise failure(-answer.errno, "supports", None, (feature,))
        raise ValueError(f"{feature!r} is not tried: it takes memory from the machine")
    return answer.works
