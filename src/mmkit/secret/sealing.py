"""Secrets at rest: encrypted in ordinary memory, under one key that is a secret itself."""

from __future__ import annotations

import itertools
import os
import threading
from typing import TYPE_CHECKING

from mmkit.errors import CorruptError
from mmkit.making import Demand
from mmkit.secret.memory import Backing, Secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

__all__ = ["decrypt", "encrypt"]

_NONCE, _TAG = 12, 16


class _Key:
    """The key of this process. Nobody else ever has it, so a counter is a nonce that never comes twice."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.secret: Secret | None = None
        self.nonces = itertools.count()

    def get(self) -> Secret:
        with self.lock:
            if self.secret is None:
                self.secret = Secret.random(32)
            return self.secret

    def nonce(self) -> bytes:
        return next(self.nonces).to_bytes(_NONCE, "little")


_key = _Key()


def _begin_anew() -> None:
    # A child does not have its parent's key; and another thread of the parent may have held the lock.
    global _key
    _key = _Key()


os.register_at_fork(after_in_child=_begin_anew)


def _cipher() -> type[ChaCha20Poly1305]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    except ImportError as error:
        text = "encrypt() and decrypt() need the cryptography package: pip install 'mmkit[secret]'"
        raise ImportError(text) from error
    if not hasattr(ChaCha20Poly1305, "decrypt_into"):
        text = "encrypt() and decrypt() need a newer cryptography package: pip install -U 'mmkit[secret]'"
        raise ImportError(text)
    return ChaCha20Poly1305


def encrypt(secret: Secret) -> bytes:
    """Encrypt a secret, so that it can wait in ordinary memory: any number of them costs no lock limit.

    Parameters
    ----------
    secret
        It stays as it is: close it.

    Returns
    -------
    bytes
        28 bytes longer than the secret. Only `decrypt` in this process can read it: the key is a secret that
        no other process has, and that is gone when this one ends.

    Raises
    ------
    ImportError
        The cryptography package is not installed, or is older than 47.

    Notes
    -----
    While the call runs the key and what follows from it are in the memory of the cipher as well, which
    OpenSSL wipes.

    References
    ----------
    ChaCha20-Poly1305: RFC 8439
    """
    cipher, nonce = _cipher(), _key.nonce()
    with _key.get().open() as key, secret.open() as plain:
        return nonce + cipher(key).encrypt(nonce, plain, None)


def decrypt(
    sealed: bytes, *, isolated: bool = False, backend: Backing = "anonymous", lock: Demand = "require"
) -> Secret:
    """Make a secret of what `encrypt` returned: it is decrypted into its place.

    Parameters
    ----------
    sealed
        What `encrypt` returned, in this process.
    isolated, backend, lock
        As for `Secret`.

    Raises
    ------
    CorruptError
        It was changed, or another process made it, be it the parent of this one.
    ImportError
        The cryptography package is not installed, or is older than 47.
    """
    cipher = _cipher()
    from cryptography.exceptions import InvalidTag

    length = len(sealed) - _NONCE - _TAG
    if length < 1:
        raise CorruptError("decrypt: it is shorter than anything that encrypt() returns")
    secret = Secret(length, isolated=isolated, backend=backend, lock=lock)
    try:
        with _key.get().open() as key, secret.open(write=True) as plain:
            cipher(key).decrypt_into(sealed[:_NONCE], sealed[_NONCE:], None, plain)
    except BaseException as error:
        secret.close()
        if isinstance(error, InvalidTag):
            text = "decrypt: it was changed, or another process made it (a forked child has a key of its own)"
            raise CorruptError(text) from None
        raise
    return secret
