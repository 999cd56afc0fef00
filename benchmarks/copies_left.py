"""How many copies of a secret common Python calls leave in the memory of the process: a table, measured.

    python benchmarks/copies_left.py [--json FILE] [PART OF A NAME ...]

Each call runs in a process of its own, into which the secret (32 ASCII characters) comes through a pipe, into
an `mmkit.Secret`: so there is no copy but those that the call, and what it needs, has made. Another process
searches all its memory by `mmkit.secret.find_copies`: while the results are alive, and again when all that
the call was given and has returned is dropped and the Secret closed. What is found then is left in freed
memory, caches and buffers, until somebody happens to overwrite it. A part is a quarter or more of the secret,
but not all of it.

Calls that take a buffer are given the view of the open secret; others are given the `bytes` or `str` that
they want, made of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import secrets
import string
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import NamedTuple

from mmkit import maps
from mmkit.secret import find_copies

LENGTH = 32


class Call(NamedTuple):
    """A way to use a secret: what the table calls it, and its code. `view` is the open secret."""

    name: str
    code: str
    #: Modules that have to be installed.
    needs: str = ""
    #: It reads the secret itself, from `pipe`.
    reads: bool = False
    #: It reads the secret itself, from the terminal.
    types: bool = False


CALLS = (
    Call("bytes(view)", "kept = bytes(view)"),
    Call("bytearray(view)", "kept = bytearray(view)"),
    Call("str(view, 'ascii')", "kept = str(view, 'ascii')"),
    Call("text.encode()", "kept = str(view, 'ascii').encode()"),
    Call("b'Bearer ' + bytes(view)", "kept = b'Bearer ' + bytes(view)"),
    Call("bytes(view).hex()", "kept = bytes(view).hex()"),
    Call("base64.b64encode(view)", "kept = base64.b64encode(view)"),
    Call("json.dumps({'key': text})", "kept = json.dumps({'key': str(view, 'ascii')})"),
    Call("pickle.dumps(bytes(view))", "kept = pickle.dumps(bytes(view))"),
    Call("io.BytesIO(view).read()", "kept = io.BytesIO(view).read()"),
    Call("os.environ['KEY'] = text; del", "os.environ['KEY'] = str(view, 'ascii'); del os.environ['KEY']"),
    Call("subprocess.run(env=…)", "subprocess.run(['true'], env={'KEY': str(view, 'ascii')}, check=True)"),
    Call("getpass.getpass()", "kept = getpass.getpass('')", types=True),
    Call("input()", "kept = input()", types=True),
    Call("os.read(fd, n)", "kept = os.read(pipe, 32)", reads=True),
    Call("open(fd, 'rb').read(n)", "kept = open(pipe, 'rb').read(32)", reads=True),
    Call("open(fd).read(n)", "kept = open(pipe).read(32)", reads=True),
    Call("socket: sendall(view), recv(n)", "a.sendall(view); kept = b.recv(32)"),
    Call(
        "socket: sendall(view), recv_into(bytearray)",
        "a.sendall(view); kept = bytearray(32); b.recv_into(kept)",
    ),
    Call("socket: makefile('rb').read(n)", "a.sendall(view); kept = b.makefile('rb').read(32)"),
    Call("hashlib.sha256(view).digest()", "kept = hashlib.sha256(view); kept.digest()"),
    Call("hashlib.blake2b(key=view)", "kept = hashlib.blake2b(b'text', key=view); kept.digest()"),
    Call("hashlib.pbkdf2_hmac(view)", "kept = hashlib.pbkdf2_hmac('sha256', view, b'salt', 1000)"),
    Call("hashlib.scrypt(view)", "kept = hashlib.scrypt(view, salt=b'salt', n=16, r=8, p=1)"),
    Call("hmac.new(bytes(view))", "kept = hmac.new(bytes(view), b'text', 'sha256'); kept.digest()"),
    Call("hmac.digest(view)", "kept = hmac.digest(view, b'text', 'sha256')"),
    Call("hmac.compare_digest(view, …)", "kept = hmac.compare_digest(view, bytes(32))"),
    Call("view == bytes", "kept = view == bytes(32)"),
    Call("numpy.frombuffer(view).copy()", "kept = numpy.frombuffer(view, 'u1').copy()", "numpy"),
    Call(
        "cryptography ChaCha20Poly1305(view).encrypt()",
        "kept = ChaCha20Poly1305(view); kept.encrypt(bytes(12), b'text', None)",
        "cryptography",
    ),
    Call(
        "cryptography AESGCM(view).encrypt()",
        "kept = AESGCM(view); kept.encrypt(bytes(12), b'text', None)",
        "cryptography",
    ),
    Call(
        "cryptography HMAC(view)",
        "kept = HMAC(view, SHA256()); kept.update(b'text'); kept.finalize()",
        "cryptography",
    ),
    Call(
        "cryptography Fernet(base64)",
        "kept = Fernet(base64.urlsafe_b64encode(view)); kept.encrypt(b'text')",
        "cryptography",
    ),
    Call(
        "nacl SecretBox(bytes(view)).encrypt()",
        "kept = nacl.secret.SecretBox(bytes(view)); kept.encrypt(b'text')",
        "nacl",
    ),
    Call(
        "nacl SigningKey(bytes(view)).sign()",
        "kept = nacl.signing.SigningKey(bytes(view)); kept.sign(b'text')",
        "nacl",
    ),
    Call("os.write(fd, view)", "kept = os.write(w, view)"),
    Call("Secret.from_fd(fd, n)", "kept = Secret.from_fd(pipe, 32)", reads=True),
    Call("Secret == bytes", "kept = secret == bytes(32)"),
    Call(
        "Secret.take(bytearray)",
        "kept = bytearray(32); os.readv(pipe, [kept]); kept = Secret.take(kept)",
        reads=True,
    ),
    Call("mmkit.secret.encrypt(), decrypt()", "kept = decrypt(encrypt(secret))", "cryptography"),
)

_PROGRAM = """
import base64, gc, getpass, hashlib, hmac, io, json, os, pickle, socket, subprocess, sys
{imports}
from mmkit import Secret
from mmkit.secret import decrypt, encrypt
pipe = int(sys.argv[1])
a, b = socket.socketpair()
r, w = os.pipe()
gate = int(sys.argv[2])
told = int(sys.argv[3])
def wait():
    os.write(told, b"x")
    os.read(gate, 1)
def call():
{body}
    wait()
    del kept
call()
gc.collect()
wait()
"""
_GIVEN = """
    global secret
    secret = Secret.from_fd(pipe, 32)
    kept = None
    with secret.open() as view:
        {code}
"""
_READS = """
    kept = None
    {code}
"""
_IMPORTS = {
    "": "",
    "numpy": "import numpy",
    "nacl": "import nacl.secret, nacl.signing",
    "cryptography": (
        "from cryptography.fernet import Fernet\n"
        "from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305\n"
        "from cryptography.hazmat.primitives.hashes import SHA256\n"
        "from cryptography.hazmat.primitives.hmac import HMAC\n"
    ),
}


class Count(NamedTuple):
    """What a search has found outside of secret memory."""

    full: int
    parts: int

    def __str__(self) -> str:
        return (
            "0"
            if not any(self)
            else f"{self.full}"
            if not self.parts
            else f"{self.full} + {self.parts} parts"
        )


class Row(NamedTuple):
    """How a call did; None where a module is missing."""

    name: str
    alive: Count | None
    left: Count | None


def count(needle: bytearray, pid: int) -> Count:
    """Count copies that are not in the slot of a Secret."""
    found = find_copies(needle, pid)
    own = [area for area in maps.read(pid, costs=True) if {"dd", "wf"} <= set(area.vmflags.split())]
    outside = [hit for hit in found if not any(area.start <= hit.address < area.end for area in own)]
    full = sum(not hit.partial for hit in outside)
    return Count(full, len(outside) - full)


def type_line(terminal: int, line: bytearray, *, silent: bool) -> None:
    """Type a line; for who first makes the terminal silent, and throws away what was typed, then."""
    while silent and termios.tcgetattr(terminal)[3] & termios.ECHO:
        time.sleep(0.01)
    os.write(terminal, line + b"\n")


def measure(call: Call) -> Row:
    """Run a call in a process of its own, and search that."""
    if call.needs and importlib.util.find_spec(call.needs) is None:
        return Row(call.name, None, None)
    alphabet = (string.ascii_letters + string.digits).encode()
    needle = bytearray(secrets.choice(alphabet) for _ in range(LENGTH))
    body = (_READS if call.reads or call.types else _GIVEN).format(code=call.code)
    program = _PROGRAM.format(imports=_IMPORTS[call.needs], body=body)
    if not (call.reads or call.types):
        program = program.replace("\ngc.collect()", "\nsecret.close(); del secret\ngc.collect()")
    reader, writer = os.pipe()
    gate, opener = os.pipe()
    told, teller = os.pipe()
    master, terminal = os.openpty()
    os.write(writer, needle)
    arguments = [sys.executable, "-c", program, str(reader), str(gate), str(teller)]
    with subprocess.Popen(
        arguments,
        stdin=terminal,
        stderr=subprocess.PIPE,
        pass_fds=[reader, gate, teller],
        start_new_session=True,
    ) as process:
        for fd in (reader, gate, teller, terminal):
            os.close(fd)
        if call.types:
            type_line(master, needle, silent="getpass" in call.code)
        counts = []
        for _ in range(2):
            if os.read(told, 1) != b"x":
                assert process.stderr is not None
                raise RuntimeError(f"{call.name}: {process.stderr.read().decode()}")
            counts.append(count(needle, process.pid))
            os.write(opener, b"x")
        for fd in (writer, opener, told, master):
            os.close(fd)
    return Row(call.name, *counts)


HEAD = "| call | copies while its result lives | left when all is dropped |\n|---|---|---|"


def line_of(row: Row) -> str:
    """Write a row of the table, as Markdown."""
    alive, left = ("—" if count is None else count for count in (row.alive, row.left))
    return f"| `{row.name}` | {alive} | {left} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="only calls with this in their name")
    parser.add_argument("--json", type=Path, help="write the counts there as well")
    options = parser.parse_args()
    chosen = [call for call in CALLS if not options.names or any(name in call.name for name in options.names)]
    print(HEAD)
    rows = []
    for call in chosen:
        rows.append(measure(call))
        print(line_of(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
