"""What the running kernel can do, found by asking it.

Version numbers do not tell: distributions backport, build options and boot parameters switch off. Each
probe is a call that changes nothing, because it asks for nothing (a length of 0), asks for something
impossible, or undoes itself; one that cannot be undone is made in a child process. Advice that destroys
pages to simulate damage is never tried.

This is the one home of probes.
"""

from __future__ import annotations

from mmkit.features.feature import Answer, Feature, ask, ask_all
from mmkit.features.mapping import huge_page_size
from mmkit.features.table import FEATURES, supports

__all__ = ["FEATURES", "Answer", "Feature", "ask", "ask_all", "huge_page_size", "supports"]
