"""Bytes to text, whatever their encoding.

Tried in this order, the first that holds is taken:

1. the encoding that the caller names;
2. a byte order mark;
3. what the file declares: HTML's and XML's own declarations, Python's coding cookie. (A single-byte encoding that is
   declared for bytes that are UTF-8 is an editor's mistake: text in such an encoding is never UTF-8 by chance.)
4. UTF-8, with a few damaged bytes if all else of it is UTF-8;
5. charset-normalizer's guess, with a warning that names it.

A file is decoded as a stream; to know what it is, its bytes are read once before.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO, Final, Literal

from grit_mlx.errors import DocumentError, Option
from grit_mlx.text.blocks import Notes

__all__ = ["Declaration", "check_is_text", "decode", "decoded", "decoded_blocks", "find_encoding"]

# Where a file may declare its encoding: nowhere, in a <meta> or XML declaration, in a comment of its first two lines.
Declaration = Literal["none", "markup", "cookie"]

_BLOCK_BYTES: Final = 1 << 16
_HEAD_BYTES: Final = 1 << 13
_SAMPLE_BYTES: Final = 1 << 16

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_FOREIGN_FILES: Final = (
    (b"%PDF-", "is a PDF, not text. Give it a name that ends in .pdf."),
    (b"PK\x03\x04", "is a zip archive or an office document, not text. Give it the suffix of its kind."),
    (b"{\\rtf", "is an RTF document, not text. Give it a name that ends in .rtf."),
    (b"\x1f\x8b", "holds gzipped data. Give it a name that ends in .gz, or unpack it first."),
)

_META: Final = re.compile(rb"""<meta\b[^>]*?\bcharset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_XML: Final = re.compile(rb"""^\s*<\?xml\b[^>]*?\bencoding\s*=\s*["']([\w.:-]+)""", re.IGNORECASE)
_COOKIE: Final = re.compile(rb"^[ \t\f]*(?:#|//|;|%|--|/\*|\.\.).*?coding[:=][ \t]*([-\w.]+)")

# What a label means to browsers and to those who write it, where Python's codec of that name knows less.
_LABELS: Final = {
    "ascii": "cp1252", "us-ascii": "cp1252", "iso-8859-1": "cp1252", "iso8859-1": "cp1252", "latin-1": "cp1252",
    "latin1": "cp1252", "iso-8859-9": "cp1254", "iso-8859-11": "cp874", "tis-620": "cp874", "shift_jis": "cp932",
    "shift-jis": "cp932", "sjis": "cp932", "x-sjis": "cp932", "gb2312": "gb18030", "gbk": "gb18030",
    "x-gbk": "gb18030", "euc-kr": "cp949", "ks_c_5601-1987": "cp949", "big5": "big5hkscs", "x-mac-roman": "mac_roman",
    "macintosh": "mac_roman", "unicode": "utf-16",
}  # fmt: skip

# Codecs of several bytes a character, in which text can look like UTF-8 by chance.
_MULTIBYTE: Final = ("utf", "gb", "big5", "cp932", "cp949", "euc", "shift", "iso2022", "hz", "johab")

# What people's files are in; charset-normalizer knows more, and then takes Polish for Lappish.
_COMMON: Final = [
    "cp1252", "cp1250", "iso8859_2", "cp1251", "koi8_r", "koi8_u", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257",
    "cp1258", "cp874", "cp932", "euc_jp", "gb18030", "big5hkscs", "cp949", "mac_roman", "cp437", "cp850", "cp866",
]  # fmt: skip

_ISO_2022: Final = re.compile(rb"\x1b\$[@B]|\x1b\(J")


@dataclass(frozen=True)
class _Survey:
    """What the bytes of a file are like.

    Attributes:
        head: the first ones.
        sample: those of lines that are not ASCII, as many as are needed for a guess.
        multibyte: how many characters are UTF-8 of more than one byte.
        broken: how many bytes are not UTF-8.
        escapes: whether there are ISO-2022-JP's escape sequences.
    """

    head: bytes
    sample: bytes
    multibyte: int
    broken: int
    escapes: bool


def find_encoding(
    file: IO[bytes], *, name: str, declared: Declaration = "none", encoding: str | None = None, notes: Notes
) -> tuple[str, str]:
    """The name of a file's encoding for Python, and how its decoder treats errors ("strict" or "replace").

    Args:
        file: at its start; it is left there.
        name: what to call it in messages.
        declared: where the file may declare its encoding.
        encoding: what the caller says; None to find out.
        notes: warned of a guess or of damaged bytes.

    Raises:
        DocumentError: the file is not text.
    """
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    check_is_text(head, name=name, encoding=encoding or "utf-8", marks=encoding is not None)
    if encoding is not None:
        return codecs.lookup(encoding).name, "strict"
    for mark, found in _MARKS:
        if head.startswith(mark):
            return found, "strict"
    if wide := _wide(head):
        return wide, "strict"
    survey = _surveyed(file, head)
    file.seek(0)
    label = _declared(head, declared)
    if label and not _contradicted(label, survey) and _decodes(file, label):
        return label, "strict"
    if survey.escapes:
        return "iso2022_jp", "replace"
    if not survey.broken:
        return "utf-8", "strict"
    if survey.multibyte >= survey.broken:
        plural = "s that are" if survey.broken > 1 else " that is"
        notes.warn(f"{name} holds {survey.broken:,} byte{plural} not UTF-8; they are read as U+FFFD.")
        return "utf-8", "replace"
    found = _guessed(survey)
    notes.warn(f"{name} is not UTF-8; it is read as {found}, which is a guess. ", Option("encoding"), " names another.")
    return found, "replace"


def decoded(
    file: IO[bytes], *, name: str, declared: Declaration = "none", encoding: str | None = None, notes: Notes
) -> Iterator[str]:
    """The text of a file in blocks, with Unix newlines; see ``find_encoding``.

    Raises:
        DocumentError: the file is not text, or not in the encoding that the caller named.
    """
    found, errors = find_encoding(file, name=name, declared=declared, encoding=encoding, notes=notes)
    yield from decoded_blocks(iter(partial(file.read, _BLOCK_BYTES), b""), name=name, encoding=found, errors=errors)


def decoded_blocks(
    blocks: Iterable[bytes], *, name: str, encoding: str | None, errors: str = "strict"
) -> Iterator[str]:
    """The text of blocks of bytes, with Unix newlines.

    Args:
        blocks: of one file.
        name: what to call it in messages.
        encoding: of the text; None for UTF-8 that cannot be changed, so that no message proposes to.
        errors: what the decoder does about damaged bytes.

    Raises:
        DocumentError: they are not in this encoding; names the line, the byte and its offset.
    """
    found = codecs.lookup(encoding or "utf-8").name
    bytes_decoder = codecs.getincrementaldecoder("utf-8-sig" if found == "utf-8" else found)(errors)
    decoder = io.IncrementalNewlineDecoder(bytes_decoder, translate=True)
    shown = found.removesuffix("-sig").upper()
    fed, line = 0, 1
    try:
        for block in blocks:
            fed += len(block)
            text = decoder.decode(block)
            line += text.count("\n")
            yield text
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # error.object is the end of what was fed so far, whatever the decoder had kept back.
        offset = fed - len(error.object) + error.start
        line += error.object[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n")
        problem = f", line {line}: byte 0x{error.object[error.start]:02x} at offset {offset} is not {shown}"
        advice = _advice(encoding, "Name the encoding of the file, for example ", _likely(error.object))
        raise DocumentError(name + problem, *advice, path=name, line=line) from error
    except UnicodeError as error:
        raise DocumentError(
            f"{name} is not {shown}: {error}", *_advice(encoding, "Name another ", None), path=name
        ) from error


def check_is_text(head: bytes, *, name: str, encoding: str | None = None, marks: bool = True) -> None:
    """Refuse the first bytes of a file that is not text.

    Args:
        head: these.
        name: what to call it.
        encoding: that it is read in; None for UTF-8 that cannot be changed.
        marks: whether a byte order mark of another encoding is an error.

    Raises:
        DocumentError: it is of another kind, binary, or in another encoding.
    """
    if codecs.lookup(encoding or "utf-8").name.startswith(("utf-16", "utf-32")):
        return  # both are full of NUL bytes
    for mark, found in _MARKS[1:]:
        if head.startswith(mark):
            if not marks:
                return
            advice = _advice(encoding, "Read it with ", found)
            raise DocumentError(f"{name} is encoded in {found.upper()}", *advice, path=name)
    for magic, problem in _FOREIGN_FILES:
        if head.startswith(magic):
            raise DocumentError(f"{name} {problem}", path=name)
    if b"\0" in head and (marks or not _wide(head)):
        raise DocumentError(f"{name} looks like a binary file (it holds NUL bytes). Name a text file.", path=name)


def _advice(encoding: str | None, start: str, value: str | None) -> tuple[str | Option, ...]:
    """The end of a message about an encoding: what to choose, or that there is no choice but UTF-8."""
    if encoding is None:
        return (f". Convert the file to UTF-8{f' (iconv -f {value} -t utf-8)' if value else ''}.",)
    return f". {start}", Option("encoding", value), "."


def _likely(data: bytes) -> str:
    """What bytes that are not UTF-8 most likely are: Windows puts quotes where latin-1 has control characters."""
    return "cp1252" if any(0x80 <= byte <= 0x9F for byte in data) else "latin-1"


def decode(data: bytes, *, name: str, declared: Declaration = "none", encoding: str | None = None, notes: Notes) -> str:
    """The text of some bytes, with Unix newlines; see ``find_encoding``."""
    return "".join(decoded(io.BytesIO(data), name=name, declared=declared, encoding=encoding, notes=notes))


def _wide(head: bytes) -> str | None:
    """UTF-16 without a mark: of Western text every second byte is NUL, the others are letters."""
    for nul, letters, found in ((1, 0, "utf-16-le"), (0, 1, "utf-16-be")):
        nuls, others = head[nul::2], head[letters::2]
        if len(nuls) >= 4 and nuls.count(0) >= 0.4 * len(nuls):
            typed = sum(byte >= 0x20 or byte in b"\t\n\f\r" for byte in others)
            if typed == len(others):
                return found
    return None


def _surveyed(file: IO[bytes], head: bytes) -> _Survey:
    sample = bytearray()
    multibyte = broken = 0
    escapes = False
    rest = b""
    while block := file.read(_BLOCK_BYTES):
        if block.isascii() and not rest:
            escapes = escapes or (b"\x1b" in block and _ISO_2022.search(block) is not None)
            continue
        characters, bad, rest = _counted(rest + block)
        multibyte, broken = multibyte + characters, broken + bad
        if len(sample) < _SAMPLE_BYTES:
            for line in block.splitlines(keepends=True):
                if not line.isascii():
                    sample += line[:_SAMPLE_BYTES]
    return _Survey(head, bytes(sample[:_SAMPLE_BYTES]), multibyte, broken + len(rest), escapes)


def _counted(data: bytes) -> tuple[int, int, bytes]:
    """Characters of several bytes, bytes that are not UTF-8, and the end that may go on in the next block."""
    start = broken = characters = 0
    while True:
        try:
            text = data[start:].decode()
        except UnicodeDecodeError as error:
            characters += _multibyte(data[start : start + error.start].decode())
            if start + error.end == len(data) and error.reason == "unexpected end of data":
                return characters, broken, data[start + error.start :]
            broken += error.end - error.start
            start += error.end
            if broken > 1000 and broken * 10 > characters:  # surely something else
                return characters, broken, b""
        else:
            return characters + _multibyte(text), broken, b""


def _multibyte(text: str) -> int:
    return 0 if text.isascii() else len(text) - len(text.encode("ascii", "ignore"))


def _declared(head: bytes, declared: Declaration) -> str | None:
    if declared == "none":
        return None
    if declared == "markup":
        match = _XML.search(head) or _META.search(head)
    else:
        match = next(filter(None, map(_COOKIE.match, head.split(b"\n", 2)[:2])), None)
    if match is None:
        return None
    label = match[1].decode("ascii", "ignore").lower()
    try:
        found = codecs.lookup(_LABELS.get(label, label))
        "".encode(found.name)  # refuses codecs that are not of text, such as base64
    except (LookupError, ValueError):
        return None
    # Bytes in which the declaration could be read are not of 16 or 32 bits.
    return None if found.name.startswith(("utf-16", "utf-32")) else found.name


def _contradicted(found: str, survey: _Survey) -> bool:
    return not found.startswith(_MULTIBYTE) and survey.multibyte > 0 and not survey.broken


def _decodes(file: IO[bytes], encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while block := file.read(_BLOCK_BYTES):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeError:
        return False
    finally:
        file.seek(0)
    return True


def _guessed(survey: _Survey) -> str:
    from charset_normalizer import from_bytes

    high = sum(byte > 127 for byte in survey.sample)
    # A handful of letters is too little for statistics: Western Europe's is the most common by far.
    best = None if high < 8 else from_bytes(survey.sample, cp_isolation=_COMMON).best()
    if best is None or best.encoding == "ascii" or str(best) == survey.sample.decode("cp1252", "replace"):
        # Windows has no letters at five places where DOS has the commonest: "ü" is one.
        return "cp850" if high < 8 and "\ufffd" in survey.sample.decode("cp1252", "replace") else "cp1252"
    return best.encoding
