"""The memory map of a process: its areas, what they are for, and a picture of them.

`read` gives every area of a process, with costs also what each takes of the machine's memory; `find` the one
at an address; `layout` the picture that textbooks draw, with the real addresses.
"""

from __future__ import annotations

from mmkit.maps.areas import Area, Areas
from mmkit.maps.costs import Costs, Total, Totals
from mmkit.maps.kinds import Kind
from mmkit.maps.picture import layout
from mmkit.maps.process import find, read

__all__ = ["Area", "Areas", "Costs", "Kind", "Total", "Totals", "find", "layout", "read"]
