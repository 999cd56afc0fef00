"""A password and a key that leave no trace: taken in, derived, used, and searched for in all memory.

A password comes in (`mmkit examples secure_memory --ask` prompts for it at the terminal; else another
process sends one through a pipe), a key is derived from it into its place, a message is signed with the key;
and then the whole process is searched for copies of both. For comparison the password is made a `bytes`
object, once. Deriving needs the cryptography package, which writes its result into a buffer:
pip install 'mmkit[secret]'.
A Secret does what C programs do by hand: mlock keeps it out of swap, mprotect closes its page while nobody
uses it, madvise keeps it out of core dumps and forked children; tcsetattr has the terminal not show what is
typed, and explicit_bzero wipes in a way that no compiler leaves out.
In C: mlock(2), mprotect(2), madvise(2), tcsetattr(3), explicit_bzero(3).
Belongs to the chapter "Secrets" (docs/secret.md).
"""

from __future__ import annotations

import contextlib
import hmac
import os
import sys

import mmkit
from mmkit import Secret
from mmkit.secret import find_copies

MESSAGE = b"pay 100 to Alice"


def main() -> None:
    """Take a password in, derive a key, sign, and look for what is left."""
    try:
        password = Secret.prompt("Password, at least 8 characters: ") if "--ask" in sys.argv else receive()
        key = Secret(32)
    except (mmkit.SyscallError, EOFError, ValueError) as refusal:
        print(f"No secret here: {refusal}")
        return
    except KeyboardInterrupt:  # Ctrl-C at the question
        print("No secret here: the question was broken off")
        return
    with password, key:
        if len(password) < 8:
            print("That is too short to search for: so few bytes are anywhere by chance.")
            return
        print("Where the password is, by /proc/self/smaps")
        print(f"  {password.status()}")
        print(f"  as Python shows it: {password!r}")

        if not derive(password, key):
            return
        print("\nA key derived from it, and a message signed with that")
        with key.open() as view:
            print(f"  {hmac.digest(view, MESSAGE, 'sha256').hex()}")

        print("\nCopies of them in this process, beside their own places")
        search("password", password)
        search("key", key)

        print("\nA forked child has none of it")
        in_a_child(password)

        print("\nThe same password, once made a bytes object: a copy that nobody wipes")
        with password.open() as view:
            careless = bytes(view)
        search("password", password)
        del careless

    print("\nBoth are closed: wiped, and their memory given back")
    print(f"  {password!r}, {key!r}")


def receive() -> Secret:
    """Have another process make a password, and read it straight into its place."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.write(writer, os.urandom(18).hex().encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    try:
        return Secret.from_fd(reader, 36)
    finally:
        os.close(reader)


def derive(password: Secret, key: Secret) -> bool:
    """Derive a key by scrypt, from one secret into the other: hashlib cannot write into a buffer."""
    try:
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

        derive_into = Scrypt(salt=os.urandom(16), length=32, n=2**12, r=8, p=1).derive_into
    except (ImportError, AttributeError):  # it has this since its version 47
        print("\nThe cryptography package is not here, or is too old: pip install 'mmkit[secret]'")
        return False
    with password.open() as secret, key.open(write=True) as place:
        derive_into(secret, place)
    return True


def search(name: str, secret: Secret) -> None:
    """Search all memory of this process for copies, whole or in part, in many forms."""
    copies = find_copies(secret)
    print(f"  {name}: {len(copies.full)} full and {len(copies.partial)} partial copies")


def in_a_child(secret: Secret) -> None:
    """Try to use a secret of the parent in a forked child."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            with secret.open():
                print("  it could be opened")
        except mmkit.ClosedError as refusal:
            print(f"  {refusal}")
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
