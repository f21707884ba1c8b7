"""What is left out of files because nobody wrote it to be read, by one rule.

- *data*: a ``data:`` URI; a run of 200 characters or more without white space; four lines or more that each are one
  run of 60 characters or more of base64's letters;
- *minified*: a line of 500 characters or more whose words have 40 or more on average;
- *letterless*: a block without a letter or figure, or one of 200 characters or more without a letter.

Scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) are exempt. Lock files, source
maps and minified files are left out by their names. How many characters are left out is counted in the notes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import PurePath
from typing import Final

from grit_mlx.text.blocks import Block, Notes

__all__ = ["is_junk_file", "without_junk"]

_SPACELESS: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
)
_DATA_URI: Final = re.compile(r"data:[\w.+/-]*(?:;[\w=.-]+)*(?:;base64)?,[^\s\"'<>)\]}]{64,}", re.IGNORECASE)
_LONG_RUN: Final = re.compile(rf"[^\s{_SPACELESS}]{{200,}}")
_ENCODED_LINE: Final = re.compile(r"\s*(?:[>#*;/-]{1,2}\s*)?[A-Za-z0-9+/=_-]{60,}[\"',\\;]*\s*$")
_ENCODED_LINES: Final = 4
_SUSPECT: Final = re.compile(rf"[^\s{_SPACELESS}]{{40}}|data:")
_LETTER: Final = re.compile(r"[^\W\d_]")
_LINE_CHARACTERS: Final = 500
_WORD_CHARACTERS: Final = 40
_LETTERLESS_CHARACTERS: Final = 200

_FILES: Final = frozenset(
    {"package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "bun.lock", "poetry.lock", "pdm.lock",
     "uv.lock", "pipfile.lock", "cargo.lock", "gemfile.lock", "composer.lock", "go.sum", "flake.lock", "mix.lock",
     "pubspec.lock", "podfile.lock", "packages.lock.json", "deno.lock"}
)  # fmt: skip
_SUFFIXES: Final = (".min.js", ".min.css", ".min.mjs", "-min.js", ".bundle.js", ".js.map", ".css.map", ".ts.map")


def is_junk_file(name: str) -> bool:
    """Whether a file is a lock file, a source map or minified, by its name."""
    name = PurePath(name).name.lower()
    return name in _FILES or name.endswith(_SUFFIXES)


def without_junk(blocks: Iterable[Block], notes: Notes) -> Iterator[Block]:
    """Blocks without what the rule leaves out; the places of what stays are right.

    Args:
        blocks: the blocks of a file.
        notes: where characters that are left out are counted, by "data", "minified" and "letterless".
    """
    for block in blocks:
        if not block.level and _is_letterless(block.text):
            notes.left_out["letterless"] += len(block.text)
        elif _SUSPECT.search(block.text):
            yield from _kept(block, notes.left_out)
        else:
            yield block


def _is_letterless(text: str) -> bool:
    if _LETTER.search(text):
        return False
    return len(text) >= _LETTERLESS_CHARACTERS or not any(map(str.isalnum, text))


def _kept(block: Block, left_out: Counter[str]) -> Iterator[Block]:
    """What stays of a block: one block, or where lines are counted one for each run of lines that stay."""
    lines = list(_lines(block.text.split("\n"), left_out))
    if not block.by_line:
        if text := "\n".join(line for line in lines if line is not None).strip():
            yield replace(block, text=text)
        return
    start = 0
    for is_kept, run in groupby(lines, key=lambda line: line is not None):
        kept = list(run)
        if is_kept and (text := "\n".join(map(str, kept))).strip():
            yield replace(block, text=text, first=block.first + start, last=block.first + start + len(kept) - 1)
        start += len(kept)


def _lines(lines: list[str], left_out: Counter[str]) -> Iterator[str | None]:
    """Each line as it stays, or None."""
    encoded = _encoded(lines)
    for line, is_encoded in zip(lines, encoded, strict=True):
        if is_encoded:
            left_out["data"] += len(line)
            yield None
            continue
        kept = line
        for pattern in (_DATA_URI, _LONG_RUN):
            kept = pattern.sub("", kept)
        if _is_minified(kept) or (_is_minified(line) and 2 * len(kept) > len(line)):
            left_out["minified"] += len(line)
            yield None
            continue
        left_out["data"] += len(line) - len(kept)
        yield None if len(kept) < len(line) and not _LETTER.search(kept) else kept


def _encoded(lines: list[str]) -> list[bool]:
    """Which lines are part of a run of base64."""
    found = [_ENCODED_LINE.match(line) is not None for line in lines]
    start = 0
    while start < len(found):
        end = start
        while end < len(found) and found[end]:
            end += 1
        if end - start < _ENCODED_LINES:
            found[start:end] = [False] * (end - start)
        elif end < len(lines) and re.fullmatch(r"[\w+/=]+", lines[end].strip() or "-"):
            found[end] = True  # the shorter last line
            end += 1
        start = max(end, start + 1)
    return found


def _is_minified(line: str) -> bool:
    if len(line) < _LINE_CHARACTERS:
        return False
    words = len(line.split()) + len(re.findall(f"[{_SPACELESS}]", line))
    return len(line) >= _WORD_CHARACTERS * max(1, words)
