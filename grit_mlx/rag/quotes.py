"""Answers without a writer: the sentences of the best passages that fit a question best, word for word.

A sentence is judged by its vector, by the words that it and its headings share with the question (rare words weigh
more) and by the rank of its passage. For a question of how to do something, the listing below a sentence is quoted with
it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from grit_mlx.errors import GritError
from grit_mlx.rag.encoding import Encoder
from grit_mlx.text.blocks import Block
from grit_mlx.text.kinds import Kind, kind_of
from grit_mlx.text.quotable import Quotable, folded, quotables
from grit_mlx.text.readers import read
from grit_mlx.text.readers.markup import markdown_blocks, text_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from grit_mlx.rag.retrieval import SearchResult
    from grit_mlx.rag.schema import StoredPassage

__all__ = ["Quote", "Weights", "quotes_of", "stem"]

# Sentences of a passage that are looked at, and bytes of a file that is read again for its structure.
_MOST_SENTENCES: Final = 100
_MOST_BYTES: Final = 20_000_000

_MOST_QUOTES: Final = 3
_MOST_LINES: Final = 20  # of a listing; longer ones are no answer

# A further quote has at least this share of the best one's score.
_AS_GOOD: Final = 0.85

# Sentences that share more of their words than this say the same.
_SAME: Final = 0.7


@dataclass(frozen=True, kw_only=True)
class Quote:
    """A sentence or a listing of a passage, word for word.

    Attributes:
        text: of a sentence with single spaces; of a listing line for line.
        passage: the passage; its places are the quote's.
        is_code: whether it is a listing.
        score: what it was chosen by.
    """

    text: str
    passage: StoredPassage
    is_code: bool
    score: float

    def __str__(self) -> str:
        """The text between quotation marks, or as it stands if it is a listing, and its place."""
        return f"{self.text}\n({self.place})" if self.is_code else f"“{self.text}” ({self.place})"

    @property
    def place(self) -> str:
        """Where it stands, such as ``notes.md:3``; see ``StoredPassage.place``."""
        return self.passage.place


@dataclass(frozen=True)
class Weights:
    """What a sentence's score is made of; benchmarks/quotes.py measures what each is worth.

    Attributes:
        vector: of the cosine with the question.
        words: of the share of the question's words that the sentence has.
        heading: of the share that only its headings have.
        rank: of its passage's score among the passages.
        early: for the first sentence of a passage; half of it for the second, a third for the next. Listings have
            all of it.
        lead: of the score of the sentence before it, which pronouns refer to.
        answer: for a name, number, date or listing where the question asks for one.
    """

    vector: float = 1.0
    words: float = 1.0
    heading: float = 0.3
    rank: float = 0.5
    early: float = 0.15
    lead: float = 0.1
    answer: float = 0.1


def quotes_of(
    question: str, results: Sequence[SearchResult], encoder: Encoder, weights: Weights = Weights()
) -> list[Quote]:
    """The one to three sentences or listings that answer a question best, best first.

    Args:
        question: the question.
        results: the passages to quote from, best first.
        encoder: embeds the question and the sentences.
        weights: what makes a sentence fit.

    Returns:
        Nothing only if the passages hold neither sentences nor listings.
    """
    found = [(index, one) for index, own in enumerate(_candidates(results)) for one in own]
    if not found:
        return []
    wants_code = bool(_HOW_TO.search(question))
    found = [pair for pair in found if wants_code or not pair[1].is_code] or found
    shares = _rank_shares(results)
    positions = [number for _, own in groupby(found, key=lambda pair: pair[0]) for number, _ in enumerate(own)]
    scores = _scores(
        question,
        [one for _, one in found],
        encoder,
        weights,
        ranks=[shares[index] for index, _ in found],
        positions=positions,
    )
    return _chosen(question, found, scores, results)


def _scores(
    question: str,
    sentences: Sequence[Quotable],
    encoder: Encoder,
    weights: Weights = Weights(),
    *,
    ranks: Sequence[float],
    positions: Sequence[int],
) -> NDArray[np.float64]:
    """How well each sentence fits a question, ``(N,)``.

    Args:
        question: the question.
        sentences: to be judged, in the order of their documents.
        encoder: embeds.
        weights: see ``Weights``.
        ranks: of each sentence's passage, from 1 for the best to 0.
        positions: of each sentence in its passage, from 0.
    """
    asked = encoder.queries([question])[0]
    vectors = encoder.vectors([_embedded(one) for one in sentences])
    cosines = vectors @ asked / np.maximum(np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked), 1e-12)
    words = [_words(_embedded(one)) for one in sentences]
    rarity = _rarity(words)
    wanted = Counter({word: rarity(word) for word in _words(question)})
    total = sum(wanted.values()) or 1.0
    shared = np.array([sum(wanted[word] for word in own) for own in words]) / total
    above = [_words(one.heading) - own for one, own in zip(sentences, words, strict=True)]
    headed = np.array([sum(wanted[word] for word in own) for own in above]) / total
    fits = weights.vector * cosines + weights.words * shared
    total_scores = fits + weights.heading * headed + weights.rank * np.asarray(ranks)
    is_code = np.array([one.is_code for one in sentences])
    total_scores += weights.early / (1.0 + np.where(is_code, 0, positions))
    total_scores += weights.answer * (is_code & (shared + headed > 0))
    led = np.zeros(len(sentences))
    for index, one in enumerate(sentences):
        if index and one.lead and one.lead == sentences[index - 1].text:
            led[index] = fits[index - 1]
            if one.lead.endswith("?"):  # an answer stands below its question
                total_scores[index] = max(total_scores[index], total_scores[index - 1])
    total_scores = total_scores + weights.lead * led
    expected = _expected(question)
    total_scores += [weights.answer * bool(expected and expected.search(one.text[1:])) for one in sentences]
    asks = np.array([one.text.endswith("?") for one in sentences])
    return np.asarray(np.where(asks, total_scores - 1.0, total_scores), dtype=np.float64)


def _embedded(one: Quotable) -> str:
    """What stands for a sentence when it is compared; a listing is told by what announces it."""
    return f"{one.heading} {one.lead} {one.text}" if one.is_code else one.text


def _rank_shares(results: Sequence[SearchResult]) -> list[float]:
    """The scores of passages from 1 for the best to 0 for one that matches nothing."""
    best, lowest = max(one.score for one in results), min(0.0, *(one.score for one in results))
    return [(one.score - lowest) / (best - lowest or 1.0) for one in results]


# Words


_TOKEN: Final = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af]|[^\W_]+")
_SUFFIX: Final = re.compile(r"(?:'s|ations?|ions?|ments?|ings?|ers?|ed|es|s|e|ly)$")
_STOP_WORDS: Final = frozenset(
    _TOKEN.findall(
        """
        a about after all am an and any are as at be been before but by can could did do does doing for from get had
        has have having he her him his how i if in into is it its may me might more most much must my need no not of
        off on one only or other our out over own she should so some such than that the their them then there these
        they this those to too under up use us very was we were what when where which while who whom whose why will
        with would you your
        """
    )
)


def _words(text: str) -> frozenset[str]:
    """The stems of a text's words, without those that every text has."""
    return frozenset(stem(word) for word in _TOKEN.findall(text.casefold()) if word not in _STOP_WORDS)


def stem(word: str) -> str:
    """A word without its commonest English endings, if enough of it is left."""
    while len(word) > 3 and (match := _SUFFIX.search(word)) and match.start() >= 3:
        word = word[: match.start()]
    return word


def _rarity(texts: Sequence[frozenset[str]]) -> Callable[[str], float]:
    """The weight of a word: the fewer of these texts have it, the more (inverse document frequency)."""
    counts = Counter(word for text in texts for word in text)
    return lambda word: math.log(1 + len(texts) / (1 + counts[word]))


# Questions


_HOW_TO: Final = re.compile(
    r"\bhow (?:to|(?:do|can|could|should|would) (?:i|we|you|one))\b"
    r"|\b(?:what|which)(?: is| are)?(?: the)? (?:command|code|option)\b|\bshow me\b|\bexample\b",
    re.IGNORECASE,
)
_NUMBER: Final = r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|twelve|hundred|thousand|million|half)\b"
_DATE: Final = (
    r"\b\d{4}\b|\b(?:January|February|March|April|May|June|July|August|September|October|November|December|century)\b"
    r"|\b(?:every|each|daily|weekly|monthly|yearly|before|after|until|(?:second|minute|hour|day|week|month|year)s?)\b"
)
_EXPECTED: Final = tuple(
    (re.compile(asked, re.IGNORECASE), re.compile(answer))
    for asked, answer in (
        (r"\bhow (?:many|much|long|far|often|old|large|big|high|deep|tall)\b|\bwhat (?:percent|number)", _NUMBER),
        (r"\be-?mail address", r"\w@\w+\.\w"),
        (r"\bwhy\b", r"(?i:\bbecause\b|\bdue to\b|\breasons?\b|\bin order to\b|\bso that\b)"),
        (r"\bwhen\b|\b(?:what|which) (?:year|date|day|month|century|decade)\b", _DATE),
        (r"\bwho\b|\bwhose\b|\bwhere\b|\b(?:what|which) (?:city|country|person|name)\b", r"\b[A-Z][a-z]"),
    )
)


def _expected(question: str) -> re.Pattern[str] | None:
    """What an answer to a question has in it; None where the question does not say."""
    return next((answer for asked, answer in _EXPECTED if asked.search(question)), None)


def _sought(question: str) -> re.Pattern[str] | None:
    """The number, time, address or reason that a question asks for, if any; names are in most sentences."""
    return next((answer for asked, answer in _EXPECTED[:-1] if asked.search(question)), None)


# Choosing


def _chosen(
    question: str,
    found: Sequence[tuple[int, Quotable]],
    scores: NDArray[np.float64],
    results: Sequence[SearchResult],
) -> list[Quote]:
    order = np.argsort(-scores, kind="stable")
    best = float(scores[order[0]])
    quotes: list[Quote] = []
    sought = _sought(question)
    for index in order:
        passage, one = found[index]
        if len(quotes) == _MOST_QUOTES or (quotes and scores[index] < _AS_GOOD * best):
            break
        if index and _needs_lead(one) and one.lead == found[index - 1][1].text:
            one = replace(one, text=f"{one.lead} {one.text}", first=found[index - 1][1].first)
        elif sought and not one.is_code and not sought.search(one.text) and index + 1 < len(found):
            # "It is closed after this time. The default is 2 minutes."
            _, following = found[index + 1]
            if following.lead == one.text and sought.search(following.text):
                one = replace(one, text=f"{one.text} {following.text}", last=following.last)
        words = _words(one.text)
        if any(_alike(words, _words(quote.text)) for quote in quotes):
            continue
        place = replace(results[passage].passage, line=one.first, end_line=one.last)
        quotes.append(Quote(text=one.text, passage=place, is_code=one.is_code, score=float(scores[index])))
    return quotes


_REFERS: Final = re.compile(
    r"(?:(?:and|but|so|then|or)\b,? ?)?"
    r"(?:it|its|they|their|them|this|these|that|those|he|she|his|her|such|then|so|but|and)\b"
    r"|\w+ (?:it|them|this|these|him|her)\b",
    re.IGNORECASE,
)


def _needs_lead(one: Quotable) -> bool:
    """Whether a sentence speaks of what the one before it names."""
    return bool(one.lead) and not one.is_code and _REFERS.match(one.text) is not None


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) > _SAME * min(len(one), len(other))


# Passages to sentences


def _candidates(results: Sequence[SearchResult]) -> list[list[Quotable]]:
    """The sentences and listings of each passage; each once, with the best passage that has it."""
    seen: set[tuple[str, str]] = set()
    candidates = []
    for result in results:
        passage = result.passage
        own = list(_quotables(passage))[:_MOST_SENTENCES]
        own = [one for one in own if one.is_complete] or own
        own = [one for one in own if one.text.count("\n") < _MOST_LINES]
        candidates.append([one for one in own if (passage.source, one.text) not in seen])
        seen.update((passage.source, one.text) for one in own)
    return candidates


def _quotables(passage: StoredPassage) -> Iterator[Quotable]:
    """What can be quoted of a passage, with its places in the file.

    The file is read again for its structure, which the text of a passage does not tell: which line is a heading, which
    page a sentence is on. If it is gone or has changed, the text has to do.
    """
    held = folded(passage.text)
    kind = kind_of(passage.source)
    try:
        blocks = list(_blocks_of_file(passage, kind))
    except (GritError, OSError):
        blocks = []
    is_code = kind.name == "code"
    if _hold(blocks, passage.text):
        found = quotables(blocks, code=is_code)
        yield from (one for one in found if _within(one, passage) and folded(one.text) in held)
        return
    read_again = markdown_blocks if kind.name == "markdown" else text_blocks
    for one in quotables(read_again(passage.text.split("\n")), code=is_code, heading=passage.heading):
        first, last = ((passage.line - 1 + place) for place in (one.first, one.last))
        if kind.rows or passage.unit != "line":
            first, last = passage.line, passage.end_line
        yield replace(one, first=min(first, passage.end_line), last=min(last, passage.end_line))


def _hold(blocks: Iterable[Block], text: str) -> bool:
    """Whether blocks of a file still hold the text of a passage, all but a line or two that were cut."""
    held = "".join(block.glue + block.text for block in blocks)
    lines = [line.strip() for line in text.split("\n")]
    return bool(held) and sum(line not in held for line in lines) <= min(2, len(lines) // 2)


def _within(one: Quotable, passage: StoredPassage) -> bool:
    return passage.line <= one.first and one.last <= passage.end_line


def _blocks_of_file(passage: StoredPassage, kind: Kind) -> Iterator[Block]:
    path = Path(passage.source)
    if not kind.has_blocks or kind.rows or path.stat().st_size > _MOST_BYTES:
        return
    for block in read(path, kind=kind):
        if block.first > passage.end_line:
            return
        # Headings are kept from the file's first line on.
        if block.level or block.last >= passage.line:
            yield block
