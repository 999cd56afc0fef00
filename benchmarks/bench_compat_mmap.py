"""compat.mmap: the stand-in beside the standard module.

What each use of an mmap costs with ``from mmkit.compat import mmap`` instead of ``import mmap``. Access here
is guarded, so that it raises where the standard module's ends the process: that costs some 15 ns, and shows
where the work itself costs less. The target of a single access is the standard module's cost and 25 ns, of
what takes microseconds 1.1 times its cost.
"""

from __future__ import annotations

import mmap as standard
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mmkit.compat import mmap as compat
from runner import Contestants, Race, Statement, Target, main, race

SIZE = 1 << 20
PAGE = standard.PAGESIZE
GUARDED = (Target("mmkit", "mmap", at_most=1.0, plus_ns=25),)
LONG = (Target("mmkit", "mmap", at_most=1.1),)
# Eight digits and a space, over and over; what is looked for stands at the end.
NUMBERS = b"".join(b"%08d " % i for i in range(SIZE // 9))


def use(
    name: str, statement: str, *, size: int = SIZE, targets: tuple[Target, ...] = GUARDED, **names: object
) -> Race:
    """Race a statement on a map of shared anonymous memory, which each module has one of."""

    @race(name, peer="mmap", targets=targets)
    def run(scope: ExitStack) -> Contestants:
        modules: dict[str, Any] = {"mmkit": compat, "mmap": standard}
        maps = {who: scope.enter_context(module.mmap(-1, size)) for who, module in modules.items()}
        for mapping in maps.values():
            mapping[:] = NUMBERS[: size - 8].ljust(size - 8) + b"a needle"
        return {who: Statement(statement, m=mapping, **names) for who, mapping in maps.items()}

    return run


def make(name: str, statement: str) -> Race:
    """Race the making and closing of a map of one page; `fd` is a file's."""

    @race(name, peer="mmap")
    def run(scope: ExitStack) -> Contestants:
        fd, path = tempfile.mkstemp()
        scope.callback(os.close, fd)
        Path(path).unlink()
        os.truncate(fd, PAGE)
        return {
            "mmkit": Statement(statement, mmap=compat.mmap, fd=fd, PAGE=PAGE),
            "mmap": Statement(statement, mmap=standard.mmap, fd=fd, PAGE=PAGE),
        }

    return run


if __name__ == "__main__":
    main(
        use("read a byte", "m[7]"),
        use("store a byte", "m[7] = 1"),
        use("slice of 100 bytes", "m[100:200]"),
        use("slice of 64 KiB", "m[:65536]", targets=LONG),
        use("slice of 100 bytes with a step", "m[0:300:3]"),
        use("slice of 1 MiB with a step", "m[::3]", targets=LONG),
        use("store 100 bytes", "m[100:200] = data", data=bytes(100)),
        use("read_byte", "m.seek(7); m.read_byte()"),
        use("write_byte", "m.seek(7); m.write_byte(1)"),
        use("read 100 bytes", "m.seek(7); m.read(100)"),
        use("write 100 bytes", "m.seek(7); m.write(data)", data=bytes(100)),
        use("move 100 bytes", "m.move(0, 1000, 100)"),
        use("find a byte in 1 MiB", "m.find(b'n', 0)", targets=LONG),
        use("find 6 bytes in 1 MiB", "m.find(b'needle', 0)", targets=LONG),
        use("readline of 1 MiB", "m.seek(0); m.readline()", targets=LONG),
        use("len", "len(m)"),
        use("tell", "m.tell()"),
        use("a page byte by byte", "for _ in m: pass", size=PAGE, targets=()),
        use("memoryview, and release", "memoryview(m).release()"),
        use("madvise NORMAL", "m.madvise(0)"),
        use("flush", "m.flush()"),
        make("make and close: anonymous", "mmap(-1, PAGE).close()"),
        make("make and close: a file", "mmap(fd, PAGE).close()"),
        make("make and close: a file, read-only", "mmap(fd, PAGE, access=1).close()"),
    )
