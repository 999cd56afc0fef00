"""What this process is held in: control group, container, namespaces, seccomp, capabilities."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mmkit.doctor.fact import UNLIMITED, Fact, fields, number, text

__all__ = ["confinement", "control_group", "has_capability"]

# linux/capability.h: the number, and what of mmkit needs it.
_CAPABILITIES = {
    "CAP_IPC_LOCK": (14, "lock beyond RLIMIT_MEMLOCK"),
    "CAP_SYS_PTRACE": (19, "look at other users' processes"),
    "CAP_SYS_ADMIN": (21, "mount, and much else"),
    "CAP_SYS_NICE": (23, "advise and move other processes' memory"),
    "CAP_SYS_RESOURCE": (24, "raise hard limits"),
}

# include/linux/proc_ns.h: what the namespaces of the first process have been called since 3.8.
_FIRST_NAMESPACES = {
    "user": 0xEFFFFFFD,
    "pid": 0xEFFFFFFC,
    "ipc": 0xEFFFFFFF,
    "cgroup": 0xEFFFFFFB,
}
_NAMESPACE_MEANS = {
    "user": "in one of its own, root there is nobody outside",
    "pid": "whose processes it sees by which numbers",
    "ipc": "whose System V segments it sees",
    "cgroup": "whether it sees its true control group",
}


def has_capability(name: str) -> bool | None:
    """Tell whether this process has a capability in effect; None where /proc does not tell."""
    mask = fields("/proc/self/status").get("CapEff")
    return None if mask is None else bool(int(mask, 16) >> _CAPABILITIES[name][0] & 1)


def confinement() -> Iterator[Fact]:
    """Tell what holds this process."""
    yield Fact("user", "confinement", f"uid {os.getuid()}, effective {os.geteuid()}", "who this process is")
    yield _container()
    for kind, means in _NAMESPACE_MEANS.items():
        yield Fact(f"{kind} namespace", "confinement", _namespace(kind), means)
    status = fields("/proc/self/status")
    mode = {"0": "off", "1": "strict", "2": "filter"}.get(status.get("Seccomp", ""))
    yield Fact(
        "seccomp", "confinement", mode, "whether a filter refuses system calls", "", None,
        "a refused call answers EPERM or ENOSYS: docker run --security-opt seccomp=PROFILE"
        if mode == "filter" else "",
    )  # fmt: skip
    privileges = {"0": "can grow", "1": "cannot grow"}.get(status.get("NoNewPrivs", ""))
    yield Fact("privileges", "confinement", privileges, "by running set-user-ID programs (no_new_privs)")
    for name, (_, purpose) in _CAPABILITIES.items():
        has = has_capability(name)
        yield Fact(name, "confinement", None if has is None else "yes" if has else "no", purpose)


def _namespace(kind: str) -> str | None:
    try:
        link = Path(f"/proc/self/ns/{kind}").readlink()
    except OSError:
        return None
    found = re.search(r"\d+", str(link))
    return "first" if found and int(found[0]) == _FIRST_NAMESPACES[kind] else "own"


def _container() -> Fact:
    evidence = [f"{kind} ({told_by})" for kind, told_by in _signs()]
    value = "; ".join(dict.fromkeys(evidence)) or "no sign of one"
    return Fact("container", "confinement", value, "and what told it")


def _signs() -> Iterator[tuple[str, str]]:
    """Find what kinds of container left a mark, and where."""
    for path, kind in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman")):
        if os.path.lexists(path):
            yield kind, path
    # systemd's container interface: the manager sets a variable for the first process.
    if kind := os.environ.get("container", ""):  # noqa: SIM112 - that is its name
        yield kind, "$container"
    if kind := text("/run/systemd/container") or "":
        yield kind, "/run/systemd/container"
    first = re.search(rb"(?:^|\0)container=([^\0]+)", _bytes("/proc/1/environ"))
    if first:
        yield first[1].decode(errors="backslashreplace"), "/proc/1/environ"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        yield "kubernetes", "$KUBERNETES_SERVICE_HOST"
    group = re.search(
        r"docker|kubepods|containerd|libpod|lxc|machine\.slice", text("/proc/self/cgroup") or ""
    )
    if group:
        yield group[0], "/proc/self/cgroup"
    if _namespace("pid") == "own":
        yield "namespaces", "/proc/self/ns/pid"


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


# ---- control groups

_V1_UNLIMITED = 1 << 62


def control_group() -> Iterator[Fact]:
    """Tell the memory limit of the control group, the tightest on the way up, and what is used of it."""
    version, directories = _memory_groups()
    means = "RAM for all processes of the group"
    if not directories:
        yield Fact("cgroup memory", "memory", None, f"{means}: none found")
        return
    limit_name, usage_name = (
        ("memory.max", "memory.current")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    limits = [(value, group) for group in directories if (value := _limit(group / limit_name)) is not None]
    limit, group = min(limits, default=(None, directories[0]), key=lambda pair: pair[0])
    used = number(group / usage_name)
    change = ""
    if limit is not None and used is not None and used > limit * 9 // 10:
        change = "nearly full: what goes beyond it is killed; docker run --memory, MemoryMax="
    yield Fact(
        f"cgroup v{version} memory",
        "memory",
        UNLIMITED if limit is None else limit,
        means,
        "bytes",
        used,
        change,
    )
    if version == 2:
        swaps = [value for group in directories if (value := _limit(group / "memory.swap.max")) is not None]
        yield Fact(
            "cgroup v2 swap", "memory", min(swaps, default=UNLIMITED, key=int), "swap for the group", "bytes"
        )


def _limit(path: Path) -> int | None:
    """Read a limit; None where it is none (``max``; or in version 1 a number beyond any memory)."""
    value = number(path)
    return None if value is None or value >= _V1_UNLIMITED else value


def _memory_groups() -> tuple[int, list[Path]]:
    """Find the directories of this process's group and of those above it, and their hierarchy's version."""
    own = {}
    for line in (text("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    for version, controller, leaf in ((1, "memory", "memory.limit_in_bytes"), (2, "", "memory.current")):
        if controller not in own:
            continue
        for root, mount in _mounts(version):
            found = _chain(mount, root, own[controller], leaf)
            if found:
                return version, found
    return 0, []


def _mounts(version: int) -> Iterator[tuple[str, Path]]:
    """Find where the hierarchy is mounted, and which group is at the mount's root."""
    for line in (text("/proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, *_, options = after.split()
        if (version == 2 and kind == "cgroup2") or (
            version == 1 and kind == "cgroup" and "memory" in options.split(",")
        ):
            yield root, Path(mount)


def _chain(mount: Path, root: str, path: str, leaf: str) -> list[Path]:
    """List the group's directory and its parents that count memory; in a container some may not be seen."""
    below = path.removeprefix(root) if root != "/" else path
    group = mount / below.strip("/")
    if ".." in below or not (group / leaf).exists():
        group = mount
    chain = [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]
    return [directory for directory in chain if (directory / leaf).exists()]
