"""Memory for keys and passwords: locked, guarded, unreadable while nobody looks, and wiped.

`find_copies` tells where in the memory of a process a secret has been left.
"""

from __future__ import annotations

from mmkit.secret.copies import Copies, CoreNote, Form, Hit, Unread
from mmkit.secret.scanning import find_copies

__all__ = ["Copies", "CoreNote", "Form", "Hit", "Unread", "find_copies"]
