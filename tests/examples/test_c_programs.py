"""The programs in C that the documentation has: they compile as it says, and print what it says, in a pipe too."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from mmkit import maps
from support import SANITIZED

ROOT = Path(__file__).parents[2]
CORE = ROOT / "build" / "core" / "libmmkit.so"
pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")


def block(page, language):
    """The first block of a language on a page."""
    return re.search(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.M | re.S)[1]


def test_the_program_that_dies_has_said_before_what_it_had_to_say(tmp_path):
    headers = "".join(f"#include <{name}.h>\n" for name in ("stdio", "stdlib", "string", "sys/mman"))
    (tmp_path / "three.c").write_text(f"{headers}int main(void)\n{{\n{block('from-c.md', 'c')}}}\n")
    subprocess.run(["cc", "-Wall", "-Werror", "three.c", "-o", "three"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "three"], stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, b"hello\n")


@pytest.mark.skipif(SANITIZED or not CORE.exists(), reason="needs the core: make test-core")
def test_the_hook_links_as_the_page_says_and_fills_pages(tmp_path):
    (tmp_path / "fill.c").write_text(block("faults.md", "c"))
    said = block("faults.md", "console").splitlines()
    (compile_it,) = (line[2:] for line in said if line.startswith("$ cc "))
    (run_it,) = (line[2:] for line in said if line.startswith("$ ./"))
    done = subprocess.run(
        ["sh", "-ec", f"{compile_it} -Wall -Wextra -Werror\n{run_it}"],
        cwd=tmp_path,
        env=os.environ | {"MMKIT": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == said[-1:]


@pytest.mark.skipif(SANITIZED, reason="a sanitizer has a malloc of its own")
def test_the_program_of_the_layout_has_its_parts_where_the_picture_has_them(tmp_path):
    (tmp_path / "layout.c").write_text(block("layout.md", "c"))
    (compile_it,) = (
        line[2:] for line in block("layout.md", "console").splitlines() if line.startswith("$ cc ")
    )
    subprocess.run(["sh", "-ec", f"{compile_it} -Wall -Wextra -Werror"], cwd=tmp_path, check=True)
    with subprocess.Popen(
        [tmp_path / "layout"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        found = {}
        while not (line := run.stdout.readline()).startswith("process "):
            address, name = line.split(maxsplit=1)
            found[name.strip()] = maps.find(int(address, 16), run.pid).kind
        assert line.split()[1].rstrip(":") == str(run.pid)
        run.communicate("\n")
    assert found == {
        'getenv("PATH")': "stack",
        "local": "stack",
        "printf": "library",
        "large": "anonymous",
        "small": "heap",
        # It begins where the data ends.
        "of_zeros": found["of_zeros"],
        "with_a_value": "data",
        "constant": "rodata",
        "main": "text",
    }
    assert found["of_zeros"] in ("data", "bss")
    picture = (ROOT / "docs" / "layout.md").read_text()
    assert all(f"  {name}\n" in picture for name in found)
