"""What an installation consists of: packages and megabytes of grit-mlx alone, and what each extra adds.

    .venv/bin/python scripts/packages.py [EXTRA ...]

Counts what is installed in this environment; packages of an extra that are not are named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "grit-mlx"


def packages(extras: Iterable[str] = (), *, of: str = PROJECT) -> dict[str, bool]:
    """All packages that a package needs with these extras, itself left out, and whether each is installed here."""
    found: dict[str, bool] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(of), extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            required = distribution(name).requires or []
            found[name] = True
        except PackageNotFoundError:
            found[name] = False
            continue
        for line in required:
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(one.name), wanted) for wanted in ("", *one.extras)]
    found.pop(canonicalize_name(of))
    return found


def megabytes(names: Iterable[str]) -> float:
    """What packages take on the disk."""
    total = 0
    for name in names:
        for file in distribution(name).files or ():
            path = Path(str(file.locate()))
            total += path.stat().st_size if path.is_file() else 0
    return total / 1e6


def extras() -> list[str]:
    """Those of this project, without the one for its tests."""
    return sorted(set(distribution(PROJECT).metadata.get_all("Provides-Extra") or ()) - {"dev"})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", default=extras())
    core = packages()
    rows = [(PROJECT, core), *((f"+ {extra}", packages([extra])) for extra in parser.parse_args().extras)]
    sys.stdout.write(f"{'':24}{'packages':>9}{'added':>7}{'MB added':>10}\n")
    for name, found in rows:
        more = found if name == PROJECT else {one: here for one, here in found.items() if one not in core}
        missing = sorted(one for one, here in more.items() if not here)
        size = f"{megabytes(more):10.0f}" if not missing else f"{'':10}  not installed: {', '.join(missing)}"
        sys.stdout.write(f"{name:24}{len(found):9}{len(more):7}{size}\n")


if __name__ == "__main__":
    main()
