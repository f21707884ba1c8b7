"""The words that a passage is found by, and a question asks for: one reading of text, for every script.

Lance indexes what is returned here, split at spaces, and stems the English words among it. Two columns:

- ``words``: what both sides agree on however it is typed. Case, width, ligatures, accents, soft hyphens and the vowel
  points of Arabic and Hebrew make no difference; identifiers, versions and file names are found as a whole and by
  their parts. Scripts without spaces between words, and Korean, whose particles are glued to them, are read as pairs
  of neighbouring characters (bigrams), which needs no dictionary.
- ``parts``: what is smaller than a word. Pieces of four letters (n-grams) of the words of all languages but English:
  they find "Beitrag" in "Krankenversicherungsbeitrag" and other inflections of a word without knowing the language
  (McNamee and Mayfield 2004, "Character N-Gram Tokenization for European Language Text Retrieval"). And single
  characters of Chinese, Japanese and Korean.

Pure. What changes here changes what is stored: ``schema.FORMAT`` counts that.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import chain, pairwise
from typing import Final

import regex

__all__ = [
    "asked",
    "asked_parts",
    "asked_terms",
    "indexed_parts",
    "indexed_words",
    "parts_of",
    "segments_of",
    "terms_of",
]

_LONGEST: Final = 64  # characters of a term; what is longer is cut
_REMEMBERED: Final = 1 << 14  # words whose terms and pieces are kept: four times as many save no time, but take 40 MB
_PIECE: Final = 4  # letters
_PIECE_OF_CONSONANTS: Final = 3  # in scripts that leave out vowels, where a root has three letters
_BEGINNING, _SHORT = 3, 5  # of words of up to five letters the first three: endings are long beside them

# Accents of Latin, Greek and Cyrillic; points of Hebrew; marks of Arabic, and the line that stretches its words. In
# other scripts such marks are letters.
_MARKS: Final = regex.compile(
    r"(?<![Ии])[\u0300-\u036f]|[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
    r"|[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]"
)
_INVISIBLE: Final = regex.compile(r"[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_DIGIT: Final = re.compile(r"(?![0-9])\d")
# Letters that Unicode does not take apart; of Arabic, those that are written for each other.
_SAME: Final = str.maketrans(
    {"ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "\u0131": "i", "ŧ": "t", "ħ": "h"}
    | {"æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "þ": "th", "Þ": "TH", "ð": "d", "Ð": "D"}
    | {"\u0649": "\u064a", "\u0629": "\u0647", "\u06a9": "\u0643", "\u06cc": "\u064a"}
    | {"\u2019": "'", "\u2010": "-", "\u2011": "-"}
)
# How umlauts are typed where the keyboard lacks them.
_UMLAUT: Final = re.compile("[äöüøåÄÖÜØÅ]")
_WORD: Final = re.compile(r"\w+")
_SPELT: Final = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "Ø": "Oe", "Å": "Aa"}
)

_BLOCKS: Final = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Hangul}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_UNSPACED: Final = regex.compile(rf"(?:[{_BLOCKS}]\p{{M}}*)+")
_MEANINGFUL: Final = regex.compile(r"[\p{Han}\p{Hangul}]")  # where a single character can be a word
_CONSONANTS: Final = regex.compile(r"[\p{Arabic}\p{Hebrew}\p{Syriac}]")
_CHARACTER: Final = regex.compile(r"\P{M}\p{M}*")
# A word with what may stand inside an identifier or a number: os.path, e-mail, don't, snake_case, C++.
_CHUNK: Final = regex.compile(r"[\p{L}\p{M}\p{N}_]+(?:[.'-][\p{L}\p{M}\p{N}_]+)*(?:\+\+|#(?!\w))?")
_PLAIN: Final = regex.compile(r"[a-z]+|[A-Z]?[a-z]+")
_SEPARATOR: Final = regex.compile(r"[._'+#-]+")
_SUBWORD: Final = regex.compile(r"\p{Lu}+(?!\p{Ll})|\p{Lu}?[\p{Ll}\p{Lo}\p{Lm}\p{M}]+|\p{Lu}|\p{N}+")
_LETTERS: Final = regex.compile(r"[\p{L}\p{M}]+")

# What a question is asked with, which says nothing of what it asks for.
_FUNCTION: Final = (
    "how what which why when where who whom whose do does did can could should would will i my me we you your is are "
    "was were be a an the of to in on for with by at from and or not that this it its as if has have had been being "
    "than then there their they into about"
)
_FUNCTION_WORDS: Final = frozenset(_FUNCTION.split())

# Which of two kinds of words a passage has more of tells whether it is English. Neither list holds a word that is
# common in both, such as "in", "an" or "die".
_ENGLISH: Final = (
    "the of and to that with this are was from which not have has been it its you your they their there can will "
    "would should when where what who how if or by be as at each any than then these those only used use"
)
_FOREIGN: Final = (
    "der das und ist nicht ein eine einen einer mit von auf dem den des zu im sich auch wie bei nach aus wird werden "
    "sind oder le la les est une dans pour que qui sur pas par avec ce sont au aux du et il elle el los las del y en "
    "una por con como se su lo gli di che per della non sono nel os um uma com de da do em het een van dat op te niet "
    "voor met zijn och att det som av inte till og er af ikke til ja ei oli se sie wir ich na nie jest ze az es egy "
    "hogy nem si cu pe nu este ve bir bu icin ile olarak yang dan itu dengan untuk tidak ang ng mga"
)
_BALANCE: Final = {**dict.fromkeys(_ENGLISH.split(), -1), **dict.fromkeys(_FOREIGN.split(), 1)}
_ACCENTED: Final = regex.compile(r"[a-zA-Z]*[^\W\d_a-zA-Z][\p{L}\p{M}]*")
_COMPOUND: Final = 16  # letters; an identifier is as long only with capitals inside


def _folded(text: str) -> str:
    """A text whose letters, digits and marks are written in one way; upper case stays."""
    if text.isascii():
        return text
    if all(unicodedata.category(character)[0] in "PZS" for character in set(text) if character > "\x7f"):
        return text.translate(_SAME)  # English with dashes and quotation marks
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text.replace("™", " ")))
    if _UMLAUT.search(text):
        spelt = (word.translate(_SPELT) for word in _WORD.findall(text) if _UMLAUT.search(word))
        text = " ".join([text, *spelt])
    text = _MARKS.sub("", unicodedata.normalize("NFKD", text))
    text = unicodedata.normalize("NFC", text).translate(_SAME)
    return _DIGIT.sub(lambda digit: str(unicodedata.digit(digit[0])), text)


@lru_cache(maxsize=_REMEMBERED)
def _terms(chunk: str) -> tuple[str, ...]:
    if _PLAIN.fullmatch(chunk):
        return (chunk.lower()[:_LONGEST],)
    pairs, names = _apart(chunk)
    return tuple(term[:_LONGEST] for term in chain(pairs, *map(_named, names)))


def _apart(chunk: str) -> tuple[list[str], list[str]]:
    """Pairs of characters of scripts without spaces, and what else there is."""
    pairs = [pair for run in _UNSPACED.findall(chunk) for pair in _pairs(run.casefold())]
    return pairs, _UNSPACED.sub(" ", chunk).split() if pairs else [chunk]


def _pairs(run: str) -> list[str]:
    """Pairs of neighbouring characters, each with its marks; a single one as it is."""
    characters = _CHARACTER.findall(run)
    return [a + b for a, b in pairwise(characters)] or characters


def _named(name: str) -> list[str]:
    """An identifier, number, file name or hyphenated word: as a whole, by its segments, by the words in these."""
    segments = [segment for segment in _SEPARATOR.split(name) if segment]
    terms = [segment.casefold() for segment in segments]
    for segment in segments:
        words = _SUBWORD.findall(segment)
        if len(words) > 1:
            terms += [word.casefold() for word in words if len(word) > 1 or word.isdecimal()]
    # An apostrophe glues words together that are none: l'école, O'Brien's.
    whole = "" if "'" in name else name.replace("-", "").casefold()
    if whole and whole not in terms:
        terms.append(whole)
    if len(segments) > 1 and all(len(segment) == 1 and segment.isalpha() for segment in segments):
        terms.append("".join(segments).casefold())  # U.S.
    if len(segments) > 2 and all(map(str.isdecimal, segments)):
        terms.append(".".join(segments[:2]))  # 3.11 of 3.11.2
    return terms


def terms_of(text: str) -> list[str]:
    """The terms of a text, in order, as often as they occur."""
    return [term for chunk in _CHUNK.findall(_folded(text)) for term in _terms(chunk)]


def segments_of(text: str) -> list[str]:
    """The terms of a text that are not made of others: "fine" and "tuning", but not "finetuning"."""
    pairs_and_names = [_apart(chunk) for chunk in _CHUNK.findall(_folded(text))]
    segments = (chain(pairs, *map(_SEPARATOR.split, names)) for pairs, names in pairs_and_names)
    return [segment.casefold()[:_LONGEST] for segment in chain.from_iterable(segments) if segment]


def parts_of(text: str) -> list[str]:
    """What a text has that is smaller than a word: pieces of its words, and single characters."""
    folded = _folded(text)
    words = _LETTERS.findall(_UNSPACED.sub(" ", folded).casefold())
    return [*_MEANINGFUL.findall(folded), *chain.from_iterable(map(_pieces, words))]


@lru_cache(maxsize=_REMEMBERED)
def _pieces(word: str) -> tuple[str, ...]:
    size = _PIECE_OF_CONSONANTS if _CONSONANTS.match(word) else _PIECE
    beginning = (word[:_BEGINNING],) if size > _BEGINNING <= len(word) <= _SHORT else ()
    return (*beginning, *(word[at : at + size] for at in range(len(word) - size + 1)))


def asked(question: str) -> str:
    """A question without English function words, unless it has no others ("to be or not to be").

    Documentation seldom says "how" or "I", so BM25 would take these for what is asked. Capitals are names: IT, WHO.
    """

    def kept(chunk: regex.Match[str]) -> str:
        word = chunk[0]
        is_name = word.isupper() and len(word) > 1 and not question.isupper()
        return word if is_name or word.lower() not in _FUNCTION_WORDS else " "

    content = _CHUNK.sub(kept, question)
    return content if _CHUNK.search(content) else question


def asked_terms(question: str) -> list[str]:
    """The terms that a question is searched by."""
    return terms_of(asked(question))


def asked_parts(question: str) -> list[str]:
    """The parts that a question is searched by: of an English one only single characters, as of English passages."""
    text = asked(question)
    return _MEANINGFUL.findall(_folded(text)) if _foreignness(question) < 0 else parts_of(text)


def indexed_words(text: str) -> str:
    """The terms of a passage, separated by spaces."""
    return " ".join(terms_of(text))


def indexed_parts(text: str) -> str | None:
    """The parts of a passage's words, separated by spaces; None if there are none.

    English words have none: they are stemmed instead, at a fifth of the cost.
    """
    return " ".join(parts_of(text) if _foreignness(text) > 0 else _MEANINGFUL.findall(_folded(text))) or None


def _foreignness(text: str) -> int:
    """Above 0 if a text is in a language that is not English, below 0 if it is English, as far as its words tell."""
    words = text.split()
    balance = sum(_BALANCE.get(word.lower(), 0) for word in words)
    balance += sum(len(word) >= _COMPOUND and word.isalpha() and word[1:].islower() for word in words)
    if not text.isascii():
        balance += len(_ACCENTED.findall(_UNSPACED.sub(" ", text)))
    return balance
