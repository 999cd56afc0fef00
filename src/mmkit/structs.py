"""What man pages fill: the structures that raw calls return, with the man pages' field names."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CacheStat", "IpcPerm", "MemPolicy", "ShmInfo", "ShmUsage", "ShmidDs"]


class CacheStat(NamedTuple):
    """What the page cache holds of a range of a file, in pages (``struct cachestat``)."""

    nr_cache: int
    nr_dirty: int
    nr_writeback: int
    nr_evicted: int
    nr_recently_evicted: int


class IpcPerm(NamedTuple):
    """Who owns a System V object and who may do what (``struct ipc_perm``)."""

    key: int
    uid: int
    gid: int
    cuid: int
    cgid: int
    mode: int
    seq: int


class ShmidDs(NamedTuple):
    """A System V segment (``struct shmid_ds``): sizes in bytes, times in seconds since the epoch."""

    shm_perm: IpcPerm
    shm_segsz: int
    shm_atime: int
    shm_dtime: int
    shm_ctime: int
    shm_cpid: int
    shm_lpid: int
    shm_nattch: int
    #: What shmctl itself returned: for SHM_STAT and SHM_STAT_ANY the segment's identifier, else 0.
    shmid: int = 0


class ShmInfo(NamedTuple):
    """Limits of System V shared memory (``struct shminfo``): shmmax and shmmin in bytes, shmall in pages."""

    shmmax: int
    shmmin: int
    shmmni: int
    shmseg: int
    shmall: int
    #: Highest index in use in the kernel's table, for walking it with SHM_STAT.
    highest_index: int


class ShmUsage(NamedTuple):
    """What System V shared memory uses now (``struct shm_info``), in pages."""

    used_ids: int
    shm_tot: int
    shm_rss: int
    shm_swp: int
    highest_index: int


class MemPolicy(NamedTuple):
    """What get_mempolicy(2) fills: a memory policy, or the number of a node."""

    #: `Policy`, with its `PolicyFlag`; with ``PolicyQuery.NODE`` a node's number.
    mode: int
    #: Bit n stands for node n.
    nodemask: int
