"""Which files of folders are read: known kinds, except what .gitignore excludes; links are not followed."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from grit_mlx.errors import ArgumentError, DocumentError, first_line, unreadable
from grit_mlx.text.junk import is_junk_file
from grit_mlx.text.kinds import is_listed, kind_of, why_not
from grit_mlx.text.options import WalkOptions

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

__all__ = ["SKIPPED", "Walk", "stored_name", "walk"]

# Why a file was left out: the keys of ``Walk.skipped``, and how reports word them.
SKIPPED: Final = {
    "kind": "of other kinds",
    "ignored": "ignored by .gitignore",
    "excluded": "left out by --include and --exclude",
    "link": "symbolic links",
    "special": "not regular files",
    "large": "too large",
    "junk": "lock files, source maps or minified",
    "unreadable": "unreadable",
    "binary": "binary or damaged",
    "package": "without the package that reads them",
    "empty": "without text",
}

_EVERYTHING: Final = WalkOptions()

# Folders that are never read, besides those whose names begin with a dot.
_NEVER: Final = frozenset({"__pycache__", "node_modules", "CVS"})


@dataclass
class Walk:
    """What a walk found.

    Attributes:
        files: to read, sorted by name, each once.
        roots: the files and folders that were asked for, resolved.
        skipped: how many files were left out, by the keys of ``SKIPPED``.
        problems: files or folders that could not be read, with the reason.
        kinds: the suffixes of files of other kinds.
    """

    files: list[Path] = field(default_factory=list)
    roots: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def covers(self, name: str) -> bool:
        """Whether a stored name lies in what was walked: if it was not found there, it was deleted."""
        return any(name == root or name.startswith(root.rstrip("/") + "/") for root in map(stored_name, self.roots))

    def count_unreadable(self, path: Path, error: OSError) -> None:
        """Count a file or folder that the system does not let one read."""
        self.skipped["unreadable"] += 1
        self.problems.append((stored_name(path), unreadable("", error).lstrip()))


def stored_name(path: Path) -> str:
    r"""A path as text that any table can hold: bytes that are not UTF-8 become ``\xff``."""
    return os.fspath(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def walk(
    paths: Sequence[str | os.PathLike[str]],
    *,
    without: Iterable[Path] = (),
    patterns: WalkOptions = _EVERYTHING,
    max_bytes: int = 1 << 28,
) -> Walk:
    """Find the files of some files and folders.

    A file that is named is taken whatever its kind, and whatever its size unless it must be read as a whole. In folders
    only known kinds of moderate size are, without hidden names, what .gitignore files exclude (those above the folder
    too, up to the repository's root), and symbolic links, which can lead in circles or out of the folder.

    Args:
        paths: files and folders.
        without: folders to leave out, such as the store itself.
        patterns: which files to take of these.
        max_bytes: larger files are left out, unless they are named and can be read a part at a time.

    Raises:
        DocumentError: one of ``paths`` does not exist.
        ArgumentError: a pattern cannot work.
    """
    found = Walk()
    chosen = _Patterns(patterns)
    excluded = {path.resolve() for path in without}
    seen: set[Path] = set()
    for given in paths:
        try:
            root = Path(given).expanduser()
            root.stat()  # names a circular link as such in every version of Python, which resolve() does not
            root = root.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            advice = " If it was deleted, 'grit rag remove' takes it out of the store."
            message = unreadable(given, error) + (advice if isinstance(error, FileNotFoundError) else "")
            raise DocumentError(message, path=os.fspath(given)) from error
        found.roots.append(root)
        inside = _folder(root, _rules_above(root), excluded, found) if root.is_dir() else [root]
        for path in inside:
            if path in seen:
                continue
            if not chosen.take(path.relative_to(root if root.is_dir() else root.parent).as_posix()):
                found.skipped["excluded"] += 1
            elif _readable(path, found) and _is_moderate(path, max_bytes, found, named=path == root):
                seen.add(path)
                found.files.append(path)
    return found


class _Patterns:
    """The patterns of a walk, compiled."""

    def __init__(self, options: WalkOptions) -> None:
        self._include = self._exclude = None
        if options.include or options.exclude:
            from pathspec import GitIgnoreSpec

            try:
                self._include = GitIgnoreSpec.from_lines(options.include) if options.include else None
                self._exclude = GitIgnoreSpec.from_lines(options.exclude)
            except ValueError as error:
                raise ArgumentError("A pattern cannot be used: " + first_line(error)) from error

    def take(self, relative: str) -> bool:
        """Whether a file is taken, by its path below the folder that was named."""
        if self._include is not None and not self._include.match_file(relative):
            return False
        return self._exclude is None or not self._exclude.match_file(relative)


# The rules of a folder's .gitignore, with that folder: patterns are relative to it.
_Rules = tuple[tuple[Path, "GitIgnoreSpec"], ...]


def _folder(folder: Path, rules: _Rules, excluded: set[Path], found: Walk) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        found.count_unreadable(folder, error)
        return
    rules = (*rules, *_rules_of(folder))
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith(".") or entry.name in _NEVER or path in excluded:
            continue
        if entry.is_symlink():
            found.skipped["link"] += 1
        elif _is_ignored(path, rules, folder=entry.is_dir()):
            found.skipped["ignored"] += 1
        elif entry.is_dir():
            yield from _folder(path, rules, excluded, found)
        elif is_junk_file(entry.name):
            found.skipped["junk"] += 1
        elif not is_listed(path):
            found.skipped["kind"] += 1
            found.kinds[path.suffix.lower() or path.name] += 1
            if problem := why_not(path):
                found.problems.append((stored_name(path), problem))
        else:
            yield path


def _readable(path: Path, found: Walk) -> bool:
    try:
        status = path.stat()
    except OSError as error:
        found.count_unreadable(path, error)
        return False
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
        found.skipped["special"] += 1
        return False
    return True


def _is_moderate(path: Path, max_bytes: int, found: Walk, *, named: bool) -> bool:
    size, whole = path.stat().st_size, kind_of(path).whole
    if size <= max_bytes or (named and not whole):
        return True
    advice = "Split it: this kind is read as a whole" if whole else "Name the file itself to index it nevertheless"
    found.skipped["large"] += 1
    found.problems.append((stored_name(path), f"has {size:,} bytes, more than {max_bytes:,}. {advice}"))
    return False


def _rules_above(root: Path) -> _Rules:
    """The rules of the folders above, up to the one that holds .git; none outside a repository."""
    above: list[Path] = []
    for folder in root.parents:
        above.insert(0, folder)
        if (folder / ".git").exists():
            return tuple(rule for folder in above for rule in _rules_of(folder))
    return ()


def _rules_of(folder: Path) -> _Rules:
    try:
        lines = (folder / ".gitignore").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    from pathspec import GitIgnoreSpec

    try:
        return ((folder, GitIgnoreSpec.from_lines(lines)),)
    except ValueError:  # a pattern that git would not obey either
        return ()


def _is_ignored(path: Path, rules: _Rules, *, folder: bool) -> bool:
    """The deepest .gitignore that says anything about a path decides."""
    for base, spec in reversed(rules):
        relative = path.relative_to(base).as_posix() + ("/" if folder else "")
        decided = spec.check_file(relative).include
        if decided is not None:
            return decided
    return False
