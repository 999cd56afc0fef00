"""Stand-ins for modules of the standard library, over mmkit: change one import and keep the program.

>>> from mmkit.compat import mmap
>>> with mmap.mmap(-1, 5) as memory:
...     memory[:] = b"hello"
...     print(memory.read(), memory.protect(mmap.PROT_READ))
b'hello' (0, 5)
"""

from __future__ import annotations

from mmkit.compat import mmap, shared_memory

__all__ = ["mmap", "shared_memory"]
