"""The programs in C that the documentation has: they compile as it says, and print what it says, in a pipe too."""

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

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
    (tmp_path / "core").symlink_to(ROOT / "core")
    (tmp_path / "build").symlink_to(ROOT / "build")
    said = block("faults.md", "console").splitlines()
    (compile_it,) = (line[2:] for line in said if line.startswith("$ cc "))
    (run_it,) = (line[2:] for line in said if line.startswith("$ ./"))
    done = subprocess.run(
        ["sh", "-ec", f"{compile_it} -Wall -Wextra -Werror\n{run_it}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == said[-1:]
