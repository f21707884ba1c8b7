"""E-books (.epub): the chapters in reading order. The place of a block is the number of its chapter file."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import replace
from typing import Final
from urllib.parse import unquote

from grit_mlx.text.blocks import Block
from grit_mlx.text.encoding import decode
from grit_mlx.text.readers.html import html_blocks
from grit_mlx.text.readers.package import Package, local, opened_package
from grit_mlx.text.readers.source import Source

__all__ = ["read_epub"]

_CONTAINER: Final = "META-INF/container.xml"
_PAGES: Final = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")


def read_epub(source: Source) -> Iterator[Block]:
    """The blocks of an e-book; its title stands above the chapters' headings.

    Raises:
        DocumentError: it is damaged or protected.
    """
    with opened_package(source, "EPUB") as package:
        rootfile = next(package.xml(_CONTAINER).iter("{*}rootfile"), None)
        name = "" if rootfile is None else rootfile.get("full-path", "")
        root = package.xml(name)
        items = {item.get("id"): item for item in root.iter("{*}item")}
        spine = [items[one.get("idref")] for one in root.iter("{*}itemref") if one.get("idref") in items]
        pages = (
            one for one in spine if one.get("media-type") in _PAGES and "nav" not in one.get("properties", "").split()
        )
        # Some books list a file once for each of its sections.
        chapters = list(dict.fromkeys(_part(name, page.get("href", "")) for page in pages))
        title = next((one.text.strip() for one in root.iter("{*}title") if one.text and one.text.strip()), "")
        if title and chapters:
            yield Block(title, 1, 1, level=1)
        for number, part in enumerate(chapters, start=1):
            if part not in package:
                source.notes.warn(f"{source.name}: the chapter {part} is missing.")
            elif _is_encrypted(package, part):
                raise source.failure("is protected (DRM) and cannot be read.")
            else:
                html = decode(package.read(part), name=source.name, declared="markup", notes=source.notes)
                for block in html_blocks(html, place=number):
                    yield replace(block, level=block.level + bool(title)) if block.level else block


def _part(package_file: str, href: str) -> str:
    """The name of a part that the package file refers to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(package_file), unquote(href.partition("#")[0])))


def _is_encrypted(package: Package, part: str) -> bool:
    name = "META-INF/encryption.xml"
    if name not in package:
        return False
    references = (one for one in package.xml(name).iter() if local(one) == "CipherReference")
    return any(unquote(one.get("URI", "")) == part for one in references)
