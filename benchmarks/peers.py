"""The peers that need making first: libc through ctypes, libc through cffi, and loops in C."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any, NamedTuple

from runner import Above, Contestants, Loop, Statement

_DECLARATIONS = """
    int madvise(void *addr, size_t length, int advice);
    int msync(void *addr, size_t length, int flags);
    int mprotect(void *addr, size_t length, int prot);
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset);
    int munmap(void *addr, size_t length);
    void *malloc(size_t size);
    void free(void *block);
"""


def _compile(source: Path, target: Path, *options: str) -> bool:
    """Compile a shared object. False where there is no C compiler, or where it fails; it says why itself."""
    compiler = shutil.which("cc")
    if compiler is None:
        return False
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(target), str(source), *options]
    return subprocess.run(command, check=False).returncode == 0


def compiled(name: str, *options: str) -> ctypes.CDLL | None:
    """Return a C source of this folder as a library; None without a C compiler."""
    source = Path(__file__).with_name(name)
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory, name).with_suffix(".so")
        return ctypes.CDLL(str(target)) if _compile(source, target, *options) else None


@cache
def _bare_calls() -> ctypes.CDLL | None:
    return compiled("bare_calls.c")


def bare(work: str, *arguments: Any) -> Loop | None:  # noqa: ANN401
    """Return a loop in C, of bare_calls.c; None without a C compiler."""
    library = _bare_calls()
    if library is None:
        return None
    function = library[f"bare_{work}"]
    function.restype = ctypes.c_int64

    def run(n: int) -> int:
        spent = int(function(*arguments, ctypes.c_int64(n)))
        if spent < 0:
            raise OSError(-spent, f"{os.strerror(-spent)}: bare_{work}")
        return spent

    return run


def ctypes_libc(*, use_errno: bool) -> ctypes.CDLL:
    """Return libc with the argument types set, as the documentation of ctypes advises."""
    libc = ctypes.CDLL(None, use_errno=use_errno)
    address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for function in (libc.madvise, libc.msync, libc.mprotect):
        function.argtypes = [address, size, number]
    libc.mmap.argtypes = [address, size, number, number, number, ctypes.c_long]
    libc.mmap.restype = address
    libc.munmap.argtypes = [address, size]
    libc.malloc.argtypes, libc.malloc.restype = [size], address
    libc.free.argtypes, libc.free.restype = [address], None
    return libc


class Cffi(NamedTuple):
    """A cffi library, and which of its two ways it goes."""

    ffi: Any
    lib: Any
    mode: str


@cache
def cffi_libc() -> Cffi | None:
    """Return libc in cffi's API mode, or in ABI mode where that cannot be compiled; None without cffi."""
    try:
        ffi = importlib.import_module("cffi").FFI()
    except ImportError:
        return None
    ffi.cdef(_DECLARATIONS)
    if module := _cffi_module(ffi):
        return Cffi(module.ffi, module.lib, "API")
    return Cffi(ffi, ffi.dlopen(None), "ABI")


def cffi_malloc() -> Any:  # noqa: ANN401
    """Return something with cffi's `malloc` and `free`; None without cffi."""
    cffi = cffi_libc()
    return cffi.lib if cffi else None


def _cffi_module(ffi: Any) -> Any:  # noqa: ANN401
    name = "_cffi_libc"
    ffi.set_source(name, "#include <stdlib.h>\n#include <sys/mman.h>")
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, f"{name}.c"), Path(directory, f"{name}.so")
        # ffi.compile() would do both, but needs setuptools. It reports on stdout, where our table goes.
        with contextlib.redirect_stdout(sys.stderr):
            ffi.emit_c_code(str(source))
        if not _compile(source, target, f"-I{sysconfig.get_path('include')}"):
            return None
        spec = spec_from_loader(name, ExtensionFileLoader(name, str(target)))
        if spec is None or spec.loader is None:
            return None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def _fail() -> None:
    raise OSError("a call was refused")


def through_libc(call: str, address: int | None, floor: Loop | None, **names: object) -> Contestants:
    """Return who makes a call of `libc` on an `address`; the call is an expression that is true when refused.

    ctypes runs twice: checking what the call answered, as the others do, and without that and without
    errno, as it is often written.
    """
    checked = f"if {call}: fail()"
    libc, careless = ctypes_libc(use_errno=True), ctypes_libc(use_errno=False)
    contestants: dict[str, Above | None] = {
        "ctypes": Above(floor, Statement(checked, libc=libc, address=address, fail=_fail, **names)),
        "ctypes, errors ignored": Above(floor, Statement(call, libc=careless, address=address, **names)),
    }
    if cffi := cffi_libc():
        pointer = cffi.ffi.cast("void *", address or 0)
        by_cffi = Statement(checked, libc=cffi.lib, address=pointer, fail=_fail, **names)
        contestants[f"cffi ({cffi.mode})"] = Above(floor, by_cffi)
    else:
        contestants["cffi"] = None
    return contestants
