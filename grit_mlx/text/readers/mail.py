"""E-mails (.eml, .mht) and mailboxes (.mbox), with Python's own parser.

The subject is a heading, sender, recipients and date are the first block. Of alternatives the plain text is read,
else the HTML; attached messages are read, other attachments are named. The place of a block is its paragraph in the
message, in a mailbox the number of the message.
"""

from __future__ import annotations

import email
import email.policy
import io
from collections.abc import Iterator
from dataclasses import replace
from email.message import MIMEPart
from typing import IO, Final

from grit_mlx.text.blocks import Block, cleaned
from grit_mlx.text.encoding import decode
from grit_mlx.text.readers.html import html_blocks
from grit_mlx.text.readers.source import Source

__all__ = ["read_mail", "read_mailbox"]

_SHOWN: Final = ("From", "To", "Cc", "Date")
# Without one of these a file is not an e-mail.
_HEADERS: Final = frozenset({"from", "subject", "date", "received", "content-type"})
_DEPTH: Final = 5  # of messages in messages


def read_mail(source: Source) -> Iterator[Block]:
    """The blocks of one e-mail.

    Raises:
        DocumentError: the file is not an e-mail.
    """
    message = email.message_from_binary_file(source.file, policy=email.policy.default)
    if not {key.lower() for key, _ in message.raw_items()} & _HEADERS:
        raise source.failure("is not an e-mail: it has no header.")
    for number, block in enumerate(_blocks(message, source), start=1):
        yield replace(block, first=number, last=number)


def read_mailbox(source: Source) -> Iterator[Block]:
    """The blocks of the e-mails of a mailbox, one message in memory at a time."""
    for number, data in enumerate(_messages(source.file), start=1):
        message = email.message_from_bytes(data, policy=email.policy.default)
        yield from (replace(block, first=number, last=number) for block in _blocks(message, source))


def _messages(file: IO[bytes]) -> Iterator[bytes]:
    """A line that begins with "From " after a blank one begins a message."""
    gathered = io.BytesIO()
    blank = True
    for line in file:
        if blank and line.startswith(b"From "):
            if gathered.tell():
                yield gathered.getvalue()
            gathered = io.BytesIO()
        else:
            gathered.write(line.removeprefix(b">") if line.startswith(b">From ") else line)
        blank = not line.strip()
    if gathered.getvalue().strip():
        yield gathered.getvalue()


def _blocks(message: MIMEPart, source: Source, *, level: int = 1) -> Iterator[Block]:
    if subject := _header(message, "Subject"):
        yield Block(subject, 1, 1, level=level)
    shown = ((name, _header(message, name)) for name in _SHOWN)
    if head := "\n".join(f"{name}: {value}" for name, value in shown if value):
        yield Block(head, 1, 1)
    yield from _part(message, source, level=level)


def _header(message: MIMEPart, name: str) -> str:
    """A header's text on one line; as it stands where it is too broken to be decoded."""
    try:
        value = str(message.get(name, ""))
    except (IndexError, ValueError, LookupError, AttributeError):  # the parser's answers to broken headers
        value = next((str(raw) for key, raw in message.raw_items() if key.lower() == name.lower()), "")
    return " ".join(cleaned(value).split())


def _part(part: MIMEPart, source: Source, *, level: int) -> Iterator[Block]:
    """What is shown of a part: of alternatives one, of others each."""
    kind = part.get_content_type()
    if kind == "message/rfc822":
        for inner in part.iter_parts() if level < _DEPTH else ():
            yield from _blocks(inner, source, level=level + 1)
    elif kind == "multipart/alternative":
        parts = list(part.iter_parts())
        plain = (one for one in parts if one.get_content_type() == "text/plain" and _payload(one).strip())
        chosen = next(plain, parts[-1] if parts else None)
        if chosen is not None:
            yield from _part(chosen, source, level=level)
    elif part.is_multipart():
        for inner in part.iter_parts():
            yield from _part(inner, source, level=level)
    elif name := part.get_filename():
        yield Block(f"Attachment: {cleaned(name)}", 1, 1)
    elif kind in ("text/plain", "text/html", "text/enriched", "text/markdown"):
        yield from _content(part, source, level=level)


def _payload(part: MIMEPart) -> bytes:
    data = part.get_payload(decode=True)
    return data if isinstance(data, bytes) else b""


def _content(part: MIMEPart, source: Source, *, level: int) -> Iterator[Block]:
    text = _decoded(_payload(part), part.get_content_charset(), source)
    if part.get_content_subtype() == "html":
        for block in html_blocks(text, place=1):
            yield replace(block, level=block.level + level if block.level else 0)
        return
    for paragraph in text.split("\n\n"):
        if paragraph.strip():
            yield Block(paragraph.strip("\n").rstrip(), 1, 1)


def _decoded(data: bytes, charset: str | None, source: Source) -> str:
    """The text of a part: in its charset where that holds, else as any file."""
    try:
        return data.decode(charset or "ascii").replace("\r\n", "\n")
    except (LookupError, UnicodeError):
        return decode(data, name=source.name, declared="markup", notes=source.notes)
