"""Text to sentences, by rules (pure functions on text).

Rules and no model: which full stops end a sentence is decided by the word before and the character behind. They know
the abbreviations, initials and numbers of English and its neighbours, lists, code between backticks, and the full stops
of scripts that put no space behind them. What they do not know they leave together.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Final

__all__ = ["sentences", "trimmed"]

_CLOSERS: Final = r"""["'”’»)\]*_」』）］】〉》]*"""  # noqa: RUF001 - what closes a quotation in Chinese and Japanese

# Where a sentence may end: Western marks before white space; marks of other scripts anywhere; a blank line; a line
# before the item of a list.
_END: Final = re.compile(
    rf"(?P<western>(?<![.!?…])[.!?…]+{_CLOSERS})(?=\s)"
    rf"|(?P<other>[。！？｡．।॥؟۔።]+{_CLOSERS})"  # noqa: RUF001 - as they are written there
    r"|(?P<line>\n(?=[^\S\n]*\n)|\n(?=[^\S\n]*(?:[-*+•–]|\(?(?:\d{1,3}|[a-z])[.)])[^\S\n]))"
)

# What a full stop or a newline inside does not end: code between single backticks, and the target of a link.
_WHOLE: Final = re.compile(
    r"(?<!`)`(?!`)(?:[^`\n]|\n(?!\s*\n)){1,120}`(?!`)|\]\([^()\s]{1,300}\)|<https?:[^<>\s]{1,300}>"
)

_NOWHERE: Final = (sys.maxsize, sys.maxsize)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ABBREVIATIONS: Final = _words(
    """
    al approx apr aug ave bros bzw ca capt cf ch chap cm co col corp dec dept dipl dr ed eds eg eq eqs esp est etc evtl
    ex feb ff fig figs fl fr fri gen gov hon hr hrs ie inc incl inkl insb jan jr jul lt ltd max messrs min mio misc mlle
    mme mr mrs ms mt mts no nos nov nr oct p para pct ph pl pp pres prof pt ref refs reg rep resp rev sec sect sen sep
    sept sgt sr st str tel temp thu thur thurs tue tues univ usw v vgl vol vols vs wed zb
    """
)

# These shorten nothing unless a number follows: "No. 5", "p. 12".
_BEFORE_NUMBERS: Final = _words("ch chap eq eqs fig figs no nos nr p pp ref refs sec sect vol vols")

# Words that begin sentences far more often than they begin names.
_STARTERS: Final = _words(
    """
    a all also although an and as at but by each every for he her his how however i if in is it its many most my no not
    on once one or our she since so some that the their then there these they this those to we what when where which
    while who why with you your
    """
)

# Characters that are looked back for the word before a mark: texts may have no spaces.
_LONGEST_WORD: Final = 64

_BEFORE: Final = re.compile(r"[^\s(\[\"'“‘«]*$")  # noqa: RUF001
_INITIAL: Final = re.compile(r"[^\W\d_]\.")
_AFTER: Final = re.compile(r"\s*[\"'“‘«(\[*_]*([^\s.,;:!?)\]]*)")  # noqa: RUF001


def sentences(text: str, *, small: bool = True) -> Iterator[tuple[int, int]]:
    """The spans of a text's sentences, in order, without the white space around them.

    A blank line ends a sentence, and so does the line before the item of a list. A line break inside a paragraph does
    not.

    Args:
        text: the text.
        small: whether a sentence may begin with a small letter, as in notes, where the word before is no short one.
    """
    whole = (match.span() for match in _WHOLE.finditer(text))
    first, last = next(whole, _NOWHERE)
    start = 0
    for match in _END.finditer(text):
        while last - 1 <= match.start():
            first, last = next(whole, _NOWHERE)
        if first < match.start():
            continue
        if match["western"] and not _ends(text, start, match, small=small):
            continue
        yield from trimmed(text, start, match.end())
        start = match.end()
    yield from trimmed(text, start, len(text))


def _ends(text: str, start: int, match: re.Match[str], *, small: bool) -> bool:
    """Whether Western marks end a sentence that began at ``start``."""
    following = _AFTER.match(text, match.end())
    word = following[1] if following else ""
    goes_on = word[:1].islower()
    marks = match["western"]
    if marks[0] != "." or marks.startswith(".."):
        return not goes_on
    found = _BEFORE.search(text, max(start, match.start() - _LONGEST_WORD), match.start())
    before = found[0] if found else ""
    begins = word[:1].isupper() and word.lower() in _STARTERS
    if before.isdigit():
        # "1." at the beginning of a line is the number of an item; "in 1984." ends a sentence.
        return bool(text[start : match.start() - len(before)].strip()) and not goes_on
    if len(marks) > 1 and not goes_on:  # a quotation or parenthesis ends too
        return True
    known = before.lower()
    if "." in before and all(len(part) <= 2 for part in before.split(".")):  # U.S., a.m.
        return begins and known not in ("e.g", "i.e", "z.b", "d.h")
    letter = len(before) == 1 and before.isalpha() and before != "I"
    if letter and (before.isupper() or (following is not None and _INITIAL.match(text, following.start(1)))):
        return begins  # an initial, or "z. B."
    if known in _BEFORE_NUMBERS:
        return not word[:1].isdigit() and not goes_on
    if known in _ABBREVIATIONS:
        return begins
    # Notes begin sentences with a small letter; an abbreviation that nobody listed is short.
    return not goes_on or (small and len(before) > 3)


def trimmed(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The span without the white space around it, or nothing if there is nothing else."""
    while start < stop and text[start].isspace():
        start += 1
    while stop > start and text[stop - 1].isspace():
        stop -= 1
    if start < stop:
        yield start, stop
