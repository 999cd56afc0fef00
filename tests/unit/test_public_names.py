"""Every public name is exported once, typed, has a docstring, and is documented in exactly one place."""

import ast
import importlib
import inspect
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import mmkit

ROOT = Path(__file__).parents[2]
PACKAGE = Path(mmkit.__file__).parent
MODULES = [
    "mmkit",
    "mmkit.linux",
    "mmkit.maps",
    "mmkit.flags",
    "mmkit.errors",
    "mmkit.faults",
    "mmkit.compat",
    "mmkit.heap",
    "mmkit.secret",
    "mmkit.shared",
    "mmkit.snapshot",
]
NAMES = [(module, name) for module in MODULES for name in importlib.import_module(module).__all__]
CLASSES = sorted(
    {
        value
        for module, name in NAMES
        if inspect.isclass(value := getattr(importlib.import_module(module), name))
    },
    key=lambda cls: cls.__qualname__,
)
# What a docstring cannot be attached to.
CONSTANTS = {"PAGE_SIZE"}
SPECIAL = re.compile(r"__\w+__$")


def resolve(path):
    """What a dotted path names: the longest importable module, then attributes."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise AssertionError(f"{path} cannot be imported")


def documented():
    """The dotted paths of every directive in docs/ that documents something."""
    paths = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        parent = ""
        for line in page.read_text().splitlines():
            match = re.match(
                r"( *)\.\. (?:py:data|auto(?:module|class|exception|function|method|property)):: (\S+)", line
            )
            if not match:
                continue
            indent, path = match.groups()
            if not indent:
                parent = path
            paths.append(f"{parent}.{path}" if indent else path)
    return paths


DOCUMENTED = documented()


def stub_of(module):
    """The syntax tree of the .pyi beside an extension module, or of the .py itself."""
    source = PACKAGE.parent.joinpath(*module.split("."))
    return next(
        ast.parse(path.read_text())
        for suffix in (".pyi", ".py")
        if (path := source.with_suffix(suffix)).exists()
    )


def is_typed(function):
    args = function.args
    parameters = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    if parameters and parameters[0].arg in ("self", "cls"):
        parameters = parameters[1:]
    return function.returns is not None and all(parameter.annotation for parameter in parameters)


def functions_named(tree, name):
    """Every definition of a (possibly overloaded) function in a syntax tree or class body."""
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]


def public_members(cls):
    """The members that a class of mmkit's gives: its own and those of its bases in mmkit."""
    for base in cls.__mro__:
        if base.__module__.startswith("mmkit"):
            yield from (
                (base, name)
                for name, member in vars(base).items()
                if not name.startswith("_")
                and (callable(member) or isinstance(member, classmethod) or inspect.isdatadescriptor(member))
            )


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_exports_is_there_and_named_once(module):
    exported = importlib.import_module(module).__all__
    assert [name for name, times in Counter(exported).items() if times > 1] == []
    assert [name for name in exported if not hasattr(importlib.import_module(module), name)] == []


@pytest.mark.parametrize("module", MODULES)
def test_no_public_name_is_left_out_of_the_exports(module):
    namespace = importlib.import_module(module)
    defined = {
        name
        for name, value in vars(namespace).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module
        and not isinstance(value, ModuleType)
        and (inspect.isclass(value) or callable(value))
    }
    assert defined - set(namespace.__all__) == set()


@pytest.mark.parametrize("name", mmkit.__all__)
def test_what_the_top_level_exports_is_the_same_object_at_its_home(name):
    value = getattr(mmkit, name)
    if not isinstance(value, ModuleType) and name not in CONSTANTS:
        assert getattr(importlib.import_module(value.__module__), name) is value


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_public_name_has_a_docstring_of_its_own(module, name):
    if name not in CONSTANTS:
        value = getattr(importlib.import_module(module), name)
        assert (value.__doc__ or "").strip()
        # A named tuple without one gets its signature instead, an enum what the enum module says.
        assert not value.__doc__.startswith((f"{name}(", "An enumeration."))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__qualname__)
def test_every_public_method_and_property_has_a_docstring(cls):
    bare = [name for base, name in public_members(cls) if not (getattr(base, name).__doc__ or "").strip()]
    assert bare == []


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_public_function_is_typed(module, name):
    function = getattr(importlib.import_module(module), name)
    if inspect.isroutine(function):
        definitions = functions_named(stub_of(function.__module__), name)
        assert definitions
        assert all(is_typed(definition) for definition in definitions)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__qualname__)
def test_every_public_method_is_typed(cls):
    missing = []
    for base, name in public_members(cls):
        # C methods that a class has adopted have their types where they come from.
        tree = next(
            (
                node
                for node in stub_of(base.__module__).body
                if isinstance(node, ast.ClassDef) and node.name == base.__name__
            ),
            None,
        )
        definitions = functions_named(tree, name) if tree else []
        adopted = type(vars(base)[name]) is type(str.join) and base is cls and not definitions
        generated = tree is not None and any(
            isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == name for node in tree.body
        )
        if not (adopted or generated) and not (definitions and all(map(is_typed, definitions))):
            missing.append(f"{base.__name__}.{name}")
    assert missing == []


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_public_name_is_documented_exactly_once(module, name):
    value = getattr(importlib.import_module(module), name)
    # By identity, since a name may be documented under its home module; constants by their name.
    places = [
        path
        for path in DOCUMENTED
        if (path.endswith(f".{name}") if name in CONSTANTS else resolve(path) is value)
    ]
    assert len(places) == 1, f"{module}.{name} is documented as {places}"


def test_every_member_of_region_is_documented_exactly_once():
    members = {name for _, name in public_members(mmkit.Region)}
    listed = Counter(
        path.removeprefix("mmkit.Region.") for path in DOCUMENTED if path.startswith("mmkit.Region.")
    )
    assert set(listed) == members
    assert [name for name, times in listed.items() if times > 1] == []


def test_every_member_that_mmap_has_of_its_own_is_documented_exactly_once():
    own = {
        name
        for base, name in public_members(mmkit.compat.mmap.mmap)
        if base.__name__ == "MmapContents"
        or (base is mmkit.compat.mmap.mmap and inspect.isfunction(vars(base)[name]))
    }
    prefix = "mmkit.compat.mmap.mmap."
    listed = [path.removeprefix(prefix) for path in DOCUMENTED if path.startswith(prefix)]
    assert sorted(listed) == sorted(own)


def test_every_call_of_linux_stands_in_the_table_with_its_prototype_and_man_page():
    rows = re.findall(
        r"^\| `[^`]*?\b(\w+)\([^`]*\)` \| `(\w+)\(.*\{manpage\}`(\w+)\(\d\)`",
        (ROOT / "docs/linux.md").read_text(),
        re.M,
    )
    assert all(prototype == form == page for prototype, form, page in rows)
    calls = [name for name in mmkit.linux.__all__ if inspect.isroutine(getattr(mmkit.linux, name))]
    assert sorted(form for _, form, _ in rows) == sorted(calls)


def test_every_source_file_says_what_it_is():
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyx")]
    assert len(files) > 30
    silent = [
        str(path.relative_to(PACKAGE)) for path in files if not path.read_text().startswith(('"""', 'r"""'))
    ]
    assert silent == []
