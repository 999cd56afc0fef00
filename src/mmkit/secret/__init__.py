"""Memory for keys and passwords: locked, guarded, unreadable while nobody looks, and wiped.

A `Secret` holds bytes that are in no core dump, in no forked child, in no swap, and readable only inside
``with secret.open()``. `harden_process` closes what is open around it. `find_copies` tells where in the
memory of a process a secret has been left.
"""

from __future__ import annotations

from mmkit._native.secret import OpenSecret
from mmkit.secret.copies import Copies, CoreNote, Form, Hit, Unread
from mmkit.secret.hardening import harden_process
from mmkit.secret.memory import Secret
from mmkit.secret.scanning import find_copies
from mmkit.secret.sealing import decrypt, encrypt
from mmkit.secret.status import SecretStatus

__all__ = [
    "Copies",
    "CoreNote",
    "Form",
    "Hit",
    "OpenSecret",
    "Secret",
    "SecretStatus",
    "Unread",
    "decrypt",
    "encrypt",
    "find_copies",
    "harden_process",
]
