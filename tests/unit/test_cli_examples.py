"""`mmkit examples`: lists, shows and runs them, from the source tree and from an installed package."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from click.testing import CliRunner

import mmkit
from mmkit.cli import main
from mmkit.cli.examples import CHAPTERS, read_examples

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def command(*arguments):
    return CliRunner().invoke(main, ["examples", *arguments])


def run(*arguments):
    start = [sys.executable, "-m", "mmkit", "examples", *arguments]
    return subprocess.run(start, capture_output=True, text=True, timeout=60)


def test_all_are_listed_with_what_they_show_under_their_chapters():
    done = command()
    assert done.exit_code == 0
    for name in NAMES:
        assert f"\n  {name} " in done.output
    assert (
        "\n  copy_on_write           mprotect(2), sigaction(2), madvise(2)\n      Memory as it was"
        in done.output
    )
    chapters = [line.partition("  (")[0] for line in done.output.splitlines() if "  (docs/" in line]
    assert chapters == [chapter for chapter in CHAPTERS if chapter in chapters]
    assert len(chapters) == len(set(chapters))


def test_every_example_says_its_calls_chapter_and_page():
    found = read_examples()
    assert sorted(example.name for example in found) == NAMES
    for example in found:
        assert example.title.endswith(".")
        assert "(2)" in example.calls or "(3)" in example.calls
        assert (ROOT / example.page).is_file()
        assert example.chapter in CHAPTERS


def test_the_source_is_shown_as_it_is():
    assert command("--source", "mmap_ipc").output == (ROOT / "examples" / "mmap_ipc.py").read_text()
    assert command("mmap_ipc", "--source").output == command("--source", "mmap_ipc").output
    assert command("--source", "mmap_ipc.py").output.startswith('"""Parent and child')


def test_one_is_run_with_its_own_output_and_arguments():
    done = run("sbrk_heap")
    assert (done.returncode, done.stderr) == (0, "")
    assert "The heap is closed" in done.stdout
    done = run("memory_mapper", "search", str(ROOT / "examples" / "memory_mapper.py"), '"""Utilities')
    assert (done.stdout, done.returncode) == ("0\n", 0)


@pytest.mark.parametrize(
    "words", [["-x", "--source", "--help"], ["--", "--ask"], ["a", "--"], ["--no=1", "", "-"]], ids=str
)
def test_what_follows_the_name_reaches_the_program_as_it_is(tmp_path, monkeypatch, words):
    # Every interpreter runs it first: that of the program ends there.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif sys.orig_argv[1].endswith('sbrk_heap.py'):\n"
        "    print(sys.orig_argv[2:], flush=True)\n    os._exit(0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert run("sbrk_heap", *words).stdout == f"{words}\n"


def test_help_behind_the_name_is_the_programs_help():
    assert "Usage: memory_mapper.py" in run("memory_mapper", "--help").stdout


def test_its_exit_status_is_that_of_the_program():
    assert run("memory_mapper", "search", "/no/such/file", "x").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["copy-on-write"], "there is no example 'copy-on-write': perhaps copy_on_write."),
        (["nothing_like_it"], "`mmkit examples` lists them"),
        (["--source"], "name it"),
        (["../examples/sbrk_heap"], "there is no example"),
    ],
)
def test_what_is_not_there_is_refused_with_a_hint(arguments, text):
    done = command(*arguments)
    assert done.exit_code == 2
    assert text in done.output


def installed(place):
    """Lay mmkit out as a wheel does: its modules, what was compiled, and what CMake installs beside that."""
    builds = [path.parent for path in ROOT.glob("build/cp*/cmake_install.cmake")]
    compiled = Path(sysconfig.get_path("platlib"), "mmkit")
    if not (builds and shutil.which("cmake") and (compiled / "_lib").is_dir()):
        pytest.skip("mmkit was not built from this tree")
    shutil.copytree(PACKAGE, place / "mmkit", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(compiled, place / "mmkit", dirs_exist_ok=True, ignore=shutil.ignore_patterns("examples"))
    subprocess.run(
        ["cmake", "--install", builds[0], "--component", "examples", "--prefix", place],
        check=True,
        capture_output=True,
    )


PACKAGE = Path(mmkit.__file__).parent


def test_an_installed_package_has_them_all(tmp_path):
    installed(tmp_path)
    assert sorted(path.stem for path in (tmp_path / "mmkit" / "examples").iterdir()) == NAMES
    code = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}]
sys.path.append({sysconfig.get_path("purelib")!r})
import mmkit.cli
assert mmkit.__file__.startswith({str(tmp_path)!r})
mmkit.cli.main(["examples", *sys.argv[1:]])
"""
    # -S: the finder of an editable installation would come first.
    start = [sys.executable, "-S", "-c", code]
    listed = subprocess.run(start, capture_output=True, text=True, timeout=60, check=True).stdout
    assert [name for name in NAMES if f"\n  {name} " not in listed] == []
    shown = subprocess.run([*start, "--source", "sbrk_heap"], capture_output=True, text=True, check=True)
    assert shown.stdout == (ROOT / "examples" / "sbrk_heap.py").read_text()
    ran = subprocess.run([*start, "sbrk_heap"], capture_output=True, text=True, check=True)
    assert "The heap is closed" in ran.stdout
