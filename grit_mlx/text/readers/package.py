"""Zip archives of XML, which is what office documents and e-books are: parts, their relations, text of elements."""

from __future__ import annotations

import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import IO, Any, Final

from lxml import etree

from grit_mlx.text.readers.source import Source

__all__ = ["Package", "attribute", "children", "local", "opened_package", "outermost"]

# A part beyond this is taken for a trap: a few kilobytes of zip can unpack to any size.
_PART_BYTES: Final = 1 << 30
_OLE: Final = b"\xd0\xcf\x11\xe0"


def local(element: Any) -> str:
    """The name of an element without its namespace, which differs between editions of a format; "" for comments."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def attribute(element: Any, name: str) -> str | None:
    """The attribute of that name in any namespace, or None."""
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), None)


def children(element: Any, *names: str) -> Iterator[Any]:
    """The child elements of these names."""
    return (child for child in element if local(child) in names)


class Package:
    """An open archive."""

    def __init__(self, source: Source, archive: zipfile.ZipFile, kind: str) -> None:
        self.source = source
        self.kind = kind
        self._archive = archive
        self._names = {name.lstrip("/"): name for name in archive.namelist()}
        self._lower = {name.lower(): name for name in self._names}

    def __contains__(self, name: str) -> bool:
        return self._real(name) is not None

    @contextmanager
    def part(self, name: str) -> Iterator[IO[bytes]]:
        """A part as a stream of bytes.

        Raises:
            DocumentError: it is missing, encrypted, damaged or too large.
        """
        real = self._real(name)
        if real is None:
            raise self.source.failure(f"cannot be read as {self.kind}: its part {name} is missing.")
        if self._archive.getinfo(real).file_size > _PART_BYTES:
            raise self.source.failure(f"cannot be read: its part {name} unpacks to more than {_PART_BYTES >> 30} GB.")
        try:
            with self._archive.open(real) as file:
                yield file
        except (zipfile.BadZipFile, zlib.error, EOFError, etree.XMLSyntaxError, NotImplementedError) as error:
            raise self.source.damaged(self.kind, error) from error
        except RuntimeError as error:  # zipfile's word for a password
            raise self.protected() from error

    def read(self, name: str) -> bytes:
        """A part's bytes; see ``part``."""
        with self.part(name) as file:
            return file.read()

    def xml(self, name: str) -> Any:
        """A part's root element; see ``part``."""
        with self.part(name) as file:
            return etree.parse(file, _parser()).getroot()

    def events(self, name: str) -> Iterator[tuple[str, Any]]:
        """The starts and ends of a part's elements, as a stream; see ``part``. Elements are cleared by the caller."""
        with self.part(name) as file:
            yield from etree.iterparse(
                file, events=("start", "end"), resolve_entities=False, no_network=True, load_dtd=False, recover=True
            )

    def relations(self, part: str) -> dict[str, tuple[str, str]]:
        """The parts that an OOXML part refers to: identifier -> (last word of the type, name of the part)."""
        folder, name = posixpath.split(part)
        path = posixpath.join(folder, "_rels", f"{name}.rels")
        if path not in self:
            return {}
        found = {}
        for relation in children(self.xml(path), "Relationship"):
            if relation.get("TargetMode") != "External":
                target = relation.get("Target", "")
                full = target.lstrip("/") if target.startswith("/") else posixpath.join(folder, target)
                kind = relation.get("Type", "").rpartition("/")[2]
                found[relation.get("Id", "")] = (kind, posixpath.normpath(full))
        return found

    def related(self, part: str, *kinds: str) -> list[str]:
        """The existing parts of these types that an OOXML part refers to, in the order of their names."""
        found = {name for kind, name in self.relations(part).values() if kind in kinds and name in self}
        return sorted(found, key=_natural)

    def protected(self) -> Exception:
        """The error for a file that needs a password."""
        return self.source.failure("is protected by a password. Save a copy without one.")

    def _real(self, name: str) -> str | None:
        name = name if name in self._names else self._lower.get(name.lower(), "")
        return self._names.get(name)


@contextmanager
def opened_package(source: Source, kind: str) -> Iterator[Package]:
    """Open a file as an archive.

    Args:
        source: the file.
        kind: what it is called in messages, such as "Word document".

    Raises:
        DocumentError: it is not one, damaged, an editor's lock file, or protected by a password.
    """
    if PurePath(source.name).name.startswith(("~$", ".~lock.")):
        raise source.failure("is a lock file of an open document, without text of its own. Close the document first.")
    head = source.file.read(8)
    source.file.seek(0)
    if head.startswith(_OLE):
        raise _old_or_protected(source, kind)
    try:
        archive = zipfile.ZipFile(source.file)
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise source.damaged(kind, error) from error
    with archive:
        yield Package(source, archive, kind)


def _old_or_protected(source: Source, kind: str) -> Exception:
    """OLE files hold Office's encrypted documents, and those of before 2007."""
    data = source.file.read(1 << 24)
    if "EncryptedPackage".encode("utf-16-le") in data:
        return source.failure("is protected by a password. Save a copy without one.")
    return source.failure(f"is not a {kind} but in Office's format of before 2007. Save it in a newer one.")


def _parser() -> Any:
    # Entities stay unresolved: they can name files, and grow without bound.
    return etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, recover=True, remove_comments=True)


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def outermost(events: Iterator[tuple[str, Any]], wanted: Callable[[Any], bool]) -> Iterator[Any]:
    """The complete outermost elements that are wanted, each cleared after use, so that memory stays flat."""
    inside = 0
    for event, element in events:
        if not wanted(element):
            continue
        inside += 1 if event == "start" else -1
        if inside == 0 and event == "end":
            yield element
            element.clear(keep_tail=False)
            parent = element.getparent()
            while parent is not None and element.getprevious() is not None:
                del parent[0]
