import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mmkit import secret
from mmkit.errors import CorruptError
from mmkit.maps import Kind
from secret_holder import HOLDER, PLAIN, holder, masked, started

#: The key stands in two registers, which a vector instruction would use, and nowhere else.
IN_REGISTERS = r"""
#include <stdio.h>
#include <stdlib.h>
int main(int count, char **arguments) {
    static unsigned long long halves[4];
    for (int i = 0; i < 4 && count == 5; i++)
        halves[i] = ~strtoull(arguments[1 + i], 0, 10);
    puts("ready");
    fflush(stdout);
    __asm__ volatile("movdqu (%0), %%xmm14\n\tmovdqu 16(%0), %%xmm15\n\t"
                     "movq $0, (%0)\n\tmovq $0, 8(%0)\n\tmovq $0, 16(%0)\n\tmovq $0, 24(%0)\n"
                     "1: pause\n\tjmp 1b" : : "r"(halves) : "memory");
}
"""


@pytest.fixture
def key():
    # Zeros would be at one with the memory around it.
    return bytearray(os.urandom(32).replace(b"\0", b"!"))


@pytest.fixture
def gcore(tmp_path):
    """What makes a core file of a running process."""
    if not shutil.which("gcore"):
        pytest.skip("gcore is not installed")

    def make(pid):
        subprocess.run(
            ["gcore", "-o", tmp_path / "core", str(pid)], check=True, capture_output=True, env=PLAIN
        )
        return tmp_path / f"core.{pid}"

    return make


def test_the_memory_in_a_core_file_is_searched(key, gcore):
    with holder(p100=key, p5000=key[8:24], p9000=key.hex().encode()) as (pid, start):
        path = gcore(pid)
    found = secret.find_copies(key, core=path)
    assert [(hit.address - start, hit.length, str(hit.form)) for hit in found] == [
        (100, 32, "bytes"),
        (5000, 16, "bytes"),
        (9000, 64, "hex"),
    ]
    assert {(hit.area.perms, hit.area.kind) for hit in found} == {("rw-p", Kind.ANONYMOUS)}
    assert found.own == ()


def test_a_core_file_of_the_kernel_is_searched(key, tmp_path):
    unlimited = (resource.RLIM_INFINITY,) * 2
    running = subprocess.Popen(
        [sys.executable, "-c", HOLDER, f"100:{masked(key)}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=PLAIN,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, unlimited),
    )
    with running:
        start = int(running.stdout.readline())
        running.send_signal(signal.SIGABRT)
        running.wait()
        cores = list(tmp_path.glob("*core*"))
        if not cores:
            pytest.skip("core files go elsewhere: kernel.core_pattern")
    found = secret.find_copies(key, core=cores[0])
    assert [(hit.address - start, hit.length) for hit in found] == [(100, 32)]
    # By default it leaves out what can be read from files, and their paths are known.
    left_out = {each.area.path for each in found.unread}
    assert any(path.startswith(b"/") for path in left_out)
    assert {each.reason for each in found.unread} == {"it is not in the core file (coredump_filter, core(5))"}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names registers of x86-64")
def test_registers_in_a_core_file_are_searched(key, gcore, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("no C compiler")
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text(IN_REGISTERS)
    subprocess.run([compiler, "-O1", "-o", program, source], check=True)
    halves = [str(~half & (1 << 64) - 1) for half in struct.unpack("=4Q", key)]
    with started(program, *halves) as (pid, _):
        path = gcore(pid)
        os.kill(pid, signal.SIGKILL)
    found = secret.find_copies(key, core=path)
    assert {hit.area.kind for hit in found} <= {"NT_FPREGSET", "NT_X86_XSTATE"}
    assert {hit.area.thread for hit in found} == {pid}
    assert all(f"registers of thread {pid}" in repr(hit) for hit in found)
    # Neighbours in the file as they are in the processor.
    assert {hit.length for hit in found} == {32}
    # xmm14, where fxsave(7) has it.
    assert {hit.address for hit in found} == {160 + 14 * 16}


def test_a_core_file_that_was_cut_off_tells_what_is_missing(key, gcore):
    with holder(p100=key) as (pid, _):
        path = gcore(pid)
    os.truncate(path, path.stat().st_size // 2)
    unread = secret.find_copies(key, core=path).unread
    assert any(each.reason == "the file ends before: it was cut off" for each in unread)


def test_what_is_no_core_file_is_refused(key, gcore, tmp_path):
    text = tmp_path / "text"
    text.write_text("no core file")
    with pytest.raises(CorruptError, match="no ELF file"):
        secret.find_copies(key, core=text)
    with pytest.raises(CorruptError, match="no core file"):
        secret.find_copies(key, core=os.path.realpath(sys.executable))
    with pytest.raises(FileNotFoundError):
        secret.find_copies(key, core=tmp_path / "nothing")
    with pytest.raises(ValueError, match="not both"):
        secret.find_copies(key, os.getpid(), core=text)


def test_a_core_file_whose_headers_are_damaged_is_refused_or_read(key, gcore):
    with holder() as (pid, _):
        path = gcore(pid)
    whole = path.read_bytes()
    count, at = struct.unpack_from("=H", whole, 56)[0], struct.unpack_from("=Q", whole, 32)[0]
    for place in range(32, at + 56 * min(count, 4)):
        damaged = bytearray(whole[: at + 56 * count + 20000])
        damaged[place] = 0xFF
        path.write_bytes(damaged)
        try:
            secret.find_copies(key, core=path)
        except CorruptError as error:
            assert str(path) in str(error)


def test_more_segments_than_16_bits_count_are_read(key, tmp_path):
    path = tmp_path / "core"
    count, page = 70_000, 4096
    header = struct.pack(
        "=16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 4, 62, 1, 0, 128, 64, 0, 64, 56, 0xFFFF, 64, 1, 0
    )
    section = struct.pack("=IIQQQQIIQQ", 0, 0, 0, 0, 0, 1, 0, count, 0, 0)
    data_at = 128 + 56 * count
    segments = b"".join(
        struct.pack(
            "=IIQQQQQQ", 1, 6, data_at, number * 2 * page, 0, 32 if number == count - 1 else 0, page, page
        )
        for number in range(count)
    )
    if sys.byteorder == "big":
        header = header[:5] + b"\x02" + header[6:]
    Path(path).write_bytes(header.ljust(64, b"\0") + section + segments + key)
    found = secret.find_copies(key, core=path)
    assert [(hit.address, hit.area.size) for hit in found] == [((count - 1) * 2 * page, page)]
