"""A scene of the section on shared memory: mmkit's own segment, with an owner."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from mmkit.region import PAGE_SIZE
from mmkit.shared import SharedMemory
from mmkit.tour.company import in_a_child, uninterrupted
from mmkit.tour.engine import Stage, scene
from mmkit.tour.pictures import Strip, strip

__all__ = ["owned"]

_PAGES = 4
_LENGTH = _PAGES * PAGE_SIZE
_ANSWER = 2 * PAGE_SIZE


@scene(
    "mmkit's segment: complete when it appears, and its space is taken",
    "A child attaches it, ends, and removes nothing: it is the parent's",
    "Its owner is done: the name goes, and the memory",
)
def owned(stage: Stage) -> None:
    """Make a segment whose space is there, and see that only its owner's block removes it."""
    name = f"mmkit-tour-{os.getpid()}"
    path = Path("/dev/shm", name)
    with stage.in_one_go(), uninterrupted(), contextlib.ExitStack() as clean_up:
        with stage.step(may_refuse=(errno.ENOENT, errno.ENOSPC, errno.ENOMEM)) as step:
            step.code(
                'fd = open("/dev/shm", O_TMPFILE|O_RDWR, 0600);',
                f'segment = SharedMemory("{name}", create=True, size={_LENGTH})',
            )
            segment = clean_up.enter_context(SharedMemory(name, create=True, size=_LENGTH))
            step.say("a file that has no name: nobody sees it yet")
            step.call(
                "posix_fallocate", "fd", 0, _LENGTH, python="taken = os.fstat(segment.fd).st_blocks * 512"
            )
            taken = os.fstat(segment.fd).st_blocks * 512
            step.answer(0, ": no store can find /dev/shm full any more")
            step.code(f'linkat(…, "/dev/shm/{name}", …);', "name = segment.name")
            step.say("now it has its name, and is complete")
            step.show(strip("the segment", segment.region))
            step.check(f"{taken} of {_LENGTH} bytes are taken, and {path} is there", _is_whole(taken, path))
        _attach_and_end(stage, name, segment, path)


def _is_whole(taken: int, path: Path) -> bool:
    return taken >= _LENGTH and path.exists()


def _attach_and_end(stage: Stage, name: str, segment: SharedMemory, path: Path) -> None:
    def answer() -> tuple[int, bool, Strip]:
        with SharedMemory(name) as attached:
            attached.region[_ANSWER : _ANSWER + 3] = b"yes"
            return os.getpid(), attached.owned, strip("child", attached.region, holds=True)

    with stage.step() as step:
        step.prepare('segment.buf[0:3] = b"ask"')
        segment.region[0:3] = b"ask"
        before = strip("parent, before", segment.region, holds=True)
        step.call("fork", assign="child", python="child = os.fork()")
        child, child_owns, in_child = in_a_child(answer)
        step.answer(child, ", and 0 in the child, which does what follows, and ends")
        step.code(
            f'fd = shm_open("/{name}", O_RDWR, 0); memcpy(mmap(… fd …) + {_ANSWER}, "yes", 3);',
            f'segment = SharedMemory("{name}");  segment.region[{_ANSWER}:{_ANSWER + 3}] = b"yes"',
        )
        step.say("in the child: an open, a mapping, and a store")
        step.show(before, in_child, strip("parent, after", segment.region, holds=True))
        reply = segment.region[_ANSWER : _ANSWER + 3]
        step.check(f"the parent reads the child's answer: {reply!r}", reply == b"yes")
        step.check("the child did not own it, the parent does", segment.owned and not child_owns)
        step.check(f"{path} is there after the child's end", path.exists())
    with stage.step() as step:
        step.code(f'shm_unlink("/{name}"); munmap(p, {_LENGTH});', "segment.unlink(), segment.close()")
        segment.unlink()
        step.say("what the end of the owner's with block does")
        step.check(f"{path} is gone", not path.exists())
