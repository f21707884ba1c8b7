"""What holds for the project as a whole: layers of imports, packaging, forbidden calls, tracked files."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]

# The import layers, lowest first: a module may import from the lines above its own, never from those below.
# A name is a folder of grit_mlx or a module directly in it; `grit_mlx` itself is its __init__ of public names.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"optional", "options", "progress"}),
    frozenset({"files"}),
    frozenset({"model", "text"}),
    frozenset({"vectors"}),
    frozenset({"gritlm"}),
    frozenset({"datasets", "rag"}),
    frozenset({"evaluation"}),
    frozenset({"training"}),  # validates by evaluation
    frozenset({"grit_mlx"}),
    frozenset({"benchmarking", "convert", "server"}),
    frozenset({"integrations"}),
    frozenset({"cli"}),
)

# The only imports between two names of one layer, as (importer, imported).
WITHIN_A_LAYER: frozenset[tuple[str, str]] = frozenset()

PICKLES = {"_pickle", "cloudpickle", "dill", "joblib", "pickle", "shelve"}

# Tracked files above 1 MiB that have a reason.
LARGE_FILES = frozenset({"grit_mlx/builtin/grit-tiny/model.safetensors"})

# Paths that exist on one machine only, and addresses that only one network or one account can reach.
PRIVATE = {
    "a path of one machine": re.compile(r"(?<![\w.~/-])/(?:home|root|work|Users)/\w"),
    "a login in an address": re.compile(r"https?://[^/\s]+@"),
    "a private address": re.compile(
        r"https?://(?:10\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.|[^/\s]*\.(?:corp|internal|lan|local)\b)"
    ),
    "a package index": re.compile(r"--(?:extra-)?index-url\b|--trusted[-]host\b|PIP_\w*INDEX\b"),
}
TEMPORARY = re.compile(r"(?<![\w.~/-])/(?:var/)?tmp/")


# The source, parsed


@cache
def sources() -> dict[str, Path]:
    """Dotted module name -> file, through the symbolic links grit_mlx/convert and grit_mlx/cli."""

    def walk(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):  # unlike rglob, is_dir follows links
            if path.is_dir():
                yield from walk(path)
            elif path.suffix == ".py":
                yield path

    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in walk(ROOT / "grit_mlx")
    }


@cache
def tree_of(module: str) -> ast.Module:
    """The syntax tree of one of our modules."""
    return ast.parse(sources()[module].read_text(encoding="utf-8"), filename=module)


def names_imported(module: str) -> Iterator[str]:
    """Every dotted name that a module imports, at any depth: in functions and under TYPE_CHECKING too."""
    dynamic = False
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") + ["__init__"] * (sources()[module].name == "__init__.py")
                base = ".".join([*package[: -node.level], *filter(None, [base])])
            # `from package import name` means the submodule where there is one, else the package.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            dynamic |= called in {"import_module", "__import__"}
    if dynamic:  # by a name in a string, perhaps in a table: each of our names in this file counts
        constants = (node.value for node in ast.walk(tree_of(module)) if isinstance(node, ast.Constant))
        yield from (value for value in constants if isinstance(value, str) and value in sources())


@cache
def import_graph() -> dict[str, frozenset[str]]:
    """Module -> those of our own modules that it imports."""

    def ours(name: str) -> str | None:
        while name and name not in sources():
            name = name.rpartition(".")[0]
        return name or None

    return {module: frozenset(filter(None, map(ours, names_imported(module)))) - {module} for module in sources()}


def unit(module: str) -> str:
    """The name under which LAYERS knows a module: the first part below grit_mlx."""
    parts = module.split(".")
    return parts[min(1, len(parts) - 1)]


# Imports


def test_links_lead_to_the_top_level_folders() -> None:
    for name in ("convert", "cli"):
        link = ROOT / "grit_mlx" / name
        assert link.is_symlink() and link.readlink() == Path("..", name)
        assert f"grit_mlx.{name}" in sources()


def test_every_module_has_a_layer() -> None:
    known = frozenset().union(*LAYERS)
    missing = sorted({unit(module) for module in sources()} - known)
    assert not missing, f"add {missing} to LAYERS in {Path(__file__).name}, as low as their imports allow"
    assert sum(map(len, LAYERS)) == len(known), "a name stands in two layers"


def test_imports_run_from_upper_to_lower_layers() -> None:
    height = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for importer, all_imported in import_graph().items():
        for imported in sorted(all_imported):
            pair = unit(importer), unit(imported)
            if pair[0] == pair[1] or not height.keys() >= set(pair):  # one folder; no layer, as reported above
                continue
            from_height, to_height = (height[name] for name in pair)
            if from_height < to_height or (from_height == to_height and pair not in WITHIN_A_LAYER):
                wrong.append(f"{importer} imports {imported}")
    assert not wrong, "against LAYERS: " + "; ".join(wrong)


def test_no_import_cycles() -> None:
    try:
        TopologicalSorter(import_graph()).prepare()
    except CycleError as error:
        # graphlib lists each module before the one that imports it.
        pytest.fail("import cycle: " + " imports ".join(reversed(error.args[1])))


def test_the_walk_sees_every_kind_of_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "grit_mlx": ("__init__.py", "HOME = {'x': 'grit_mlx.e'}\nimportlib.import_module(HOME['x'])"),
        "grit_mlx.a": ("a.py", "import grit_mlx.b\nfrom grit_mlx import c\nfrom grit_mlx import VERSION"),
        "grit_mlx.b": ("b.py", "def late():\n    from grit_mlx.c import thing"),
        "grit_mlx.c": ("c.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import d"),
        "grit_mlx.d": ("d.py", "import numpy"),
        "grit_mlx.e": ("e.py", "from .a import thing"),
    }  # fmt: skip
    for name, text in files.values():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(f"{__name__}.sources", lambda: {k: tmp_path / name for k, (name, _) in files.items()})
    tree_of.cache_clear()
    try:
        graph = import_graph.__wrapped__()
    finally:
        tree_of.cache_clear()
    assert graph == {
        "grit_mlx": {"grit_mlx.e"},
        "grit_mlx.a": {"grit_mlx", "grit_mlx.b", "grit_mlx.c"},
        "grit_mlx.b": {"grit_mlx.c"},
        "grit_mlx.c": {"grit_mlx.d"},
        "grit_mlx.d": set(),
        "grit_mlx.e": {"grit_mlx.a"},
    }


# Calls


@pytest.mark.parametrize("module", sorted(sources()))
def test_no_print_and_no_pickle(module: str) -> None:
    imported = {name.split(".")[0] for name in names_imported(module)}
    assert not imported & PICKLES, "unpickling a downloaded file runs its code"
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}: write through the console of grit_mlx.cli"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            value = node.value
            assert isinstance(value, ast.Constant) and value.value is False, f"line {value.lineno}: allow_pickle"


# Packaging


@cache
def pyproject() -> dict[str, Any]:
    """pyproject.toml, parsed."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_packages_listed_are_those_that_exist() -> None:
    settings = pyproject()["tool"]["setuptools"]
    folders = {module.rpartition(".")[0] for module, path in sources().items() if path.name != "__init__.py"}
    packages = {module for module, path in sources().items() if path.name == "__init__.py"}
    assert folders <= packages, "a folder with modules needs an __init__.py to be installed"
    assert set(settings["packages"]) == packages
    for package, folder in settings["package-dir"].items():
        assert sources()[package].resolve() == ROOT / folder / "__init__.py"
    for package, patterns in settings["package-data"].items():
        for pattern in patterns:
            assert list(sources()[package].parent.glob(pattern)), f"{package}: no file matches {pattern}"


def pins() -> list[Requirement]:
    """The lines of constraints.txt; anything but `name==version`, with or without a marker, is an error."""
    found = []
    for number, line in enumerate((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(), start=1):
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[a-z0-9-]+==[\w.]+(; \S.*)?", line), f"constraints.txt, line {number}: {line}"
            found.append(Requirement(line))
    return found


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_every_dependency_is_pinned_once(python: str, platform: str) -> None:
    project = pyproject()["project"]
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]
    here = {"python_version": python, "sys_platform": platform, "extra": ""}

    def apply(requirements: list[Requirement]) -> Iterator[Requirement]:
        return (one for one in requirements if one.marker is None or one.marker.evaluate(here))

    version: dict[str, Version] = {}
    for pin in apply(pins()):
        assert pin.name not in version, f"{pin.name} is pinned twice for Python {python}"
        (specifier,) = pin.specifier
        version[pin.name] = Version(specifier.version)

    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    for requirement in apply([Requirement(line) for line in lines]):
        if requirement.name != project["name"]:  # an extra that includes another
            assert requirement.name in version, f"add {requirement.name} to constraints.txt"
            assert version[requirement.name] in requirement.specifier


def test_the_changelog_knows_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", text, flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    released = [Version(heading) for heading in headings[1:]]
    assert released == sorted(released, reverse=True)
    version = Version(pyproject()["project"]["version"])
    if version not in released:  # then it is the next one
        assert all(version > older for older in released)
        assert re.search(r"^## \[Unreleased\]\s+###", text, flags=re.MULTILINE), "what does the next version bring?"


# Tracked files


@cache
def tracked_files() -> list[Path]:
    """What git tracks or would add; without git, all but hidden and generated folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists() and shutil.which("git"):
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listing.split("\0") if name]
    else:
        generated = {"__pycache__", "build", "dist", "grit_mlx.egg-info"}
        paths = [
            path
            for path in ROOT.rglob("*")
            if not any(
                part in generated or (part.startswith(".") and part != ".ci") for part in path.relative_to(ROOT).parts
            )
        ]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def test_no_large_files() -> None:
    large = {path.relative_to(ROOT).as_posix() for path in tracked_files() if path.stat().st_size > 1 << 20}
    assert large == LARGE_FILES


def test_nothing_private_to_one_machine() -> None:
    found = []
    for path in tracked_files():
        name = path.relative_to(ROOT)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # not a text
        patterns = dict(PRIVATE)
        if name.parts[0] != "tests":
            patterns["a temporary path, where tempfile belongs"] = TEMPORARY
        for number, line in enumerate(lines, start=1):
            found += [f"{name}:{number}: {what}" for what, pattern in patterns.items() if pattern.search(line)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("open('/" + "root/x')", True),
        ("cd /" + "work/main", True),
        ("/" + "home/me/.cache", True),
        ("http://" + "10.1.2.3:8080/simple", True),
        ("https://" + "user:secret@example.org", True),
        ("pip --" + "index-url x", True),
        ("https://huggingface.co/GritLM/GritLM-7B", False),
        ("https://example.org/home/page", False),
        ("tests/" + "Users" + "/" + "home" + "/x and ~/" + "Users" + "/x", False),
    ],
)
def test_the_patterns_find_what_they_are_for(text: str, private: bool) -> None:
    assert any(pattern.search(text) for pattern in PRIVATE.values()) is private
