"""Bytes to text in whatever encoding."""

from __future__ import annotations

import io
from typing import Any

import pytest

from grit_mlx.errors import DocumentError
from grit_mlx.text.blocks import Notes
from grit_mlx.text.encoding import decode, decoded, find_encoding

TEXTS = {
    "cp1252": "Die Straße war naß, „sagte“ er – größer als früher. Müller aß Käse für 5 €.\n",
    "latin-1": "Le café était fermé à cause de la grève générale, et la forêt était brûlée.\n",
    "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy. Praha je hlavní město České republiky.\n",
    "cp1251": "Съешь же ещё этих мягких французских булок, да выпей чаю. Москва столица России.\n",
    "koi8-r": "Съешь же ещё этих мягких французских булок, да выпей чаю. Москва столица России.\n",
    "cp1253": "Στην Αθήνα είναι η πρωτεύουσα της Ελλάδας. Καλημέρα κόσμε.\n",
    "cp1255": "ירושלים היא עיר הבירה של ישראל. שלום עולם\n",
    "cp1256": "القاهرة هي عاصمة مصر. مرحبا بالعالم كيف حالك\n",
    "cp874": "กรุงเทพเป็นเมืองหลวงของประเทศไทย สวัสดีชาวโลก\n",
    "shift_jis": "日本語の文章を読むためのテストです。東京は日本の首都です。\n",
    "euc_jp": "日本語の文章を読むためのテストです。東京は日本の首都です。\n",
    "iso2022_jp": "日本語の文章を読むためのテストです。東京は日本の首都です。\n",
    "gb18030": "这是一个用来测试编码的中文句子。北京是中国的首都。\n",
    "big5": "這是一個用來測試編碼的中文句子。台北是台灣的首都。\n",
    "cp949": "한국어 문장을 읽기 위한 시험입니다. 서울은 한국의 수도입니다.\n",
}


def read(data: bytes, **options: Any) -> tuple[str, list[str]]:
    notes = Notes()
    return decode(data, name="a.txt", notes=notes, **options), notes.warnings


@pytest.mark.parametrize("encoding", TEXTS)
def test_guesses_are_right_and_told(encoding: str) -> None:
    text = TEXTS[encoding] * 2
    found, warnings = read(text.encode(encoding))
    assert found == text
    if encoding != "iso2022_jp":  # its escapes are no guess
        (warning,) = warnings
        assert warning.startswith("a.txt is not UTF-8; it is read as ") and "guess" in warning


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_unicode_needs_no_guess(encoding: str) -> None:
    text = "Grüße an alle in this world\r\nand the next\rand on\n"
    found, warnings = read(text.encode(encoding))
    assert found == "Grüße an alle in this world\nand the next\nand on\n" and warnings == []


def test_one_damaged_byte_does_not_make_it_another_encoding() -> None:
    found, (warning,) = read(("Grüße. " * 4000).encode() + b"\xff" + "é".encode())
    assert found == "Grüße. " * 4000 + "\ufffdé" and "1 byte that is not UTF-8" in warning
    found, (warning,) = read(b"A line of text.\n" * 2000 + b"caf\xe9\n")
    assert found.endswith("café\n") and "cp1252" in warning
    cut, _ = read(("Grüße. " * 9).encode() + "ö".encode()[:1])
    assert cut.startswith("Grüße. Grüße. ")


def test_what_the_file_declares_is_obeyed() -> None:
    russian = TEXTS["koi8-r"]
    page = f'<meta charset="koi8-r">{russian}'
    assert read(page.encode("koi8-r"), declared="markup") == (page, [])
    source = f"#!/usr/bin/python\n# -*- coding: koi8-r -*-\n# {russian}"
    assert read(source.encode("koi8-r"), declared="cookie") == (source, [])
    wrong = f"<meta charset=latin-1>{russian}"
    assert read(wrong.encode(), declared="markup") == (wrong, [])  # UTF-8 is never so by chance
    unknown = f"<meta charset=no-such>{russian}"
    assert read(unknown.encode(), declared="markup") == (unknown, [])


def test_the_caller_decides() -> None:
    assert read("naïve".encode("cp850"), encoding="cp850") == ("naïve", [])
    with pytest.raises(DocumentError, match=r"a\.txt, line 3: byte 0xff at offset 4 is not UTF-8"):
        read(b"a\nb\n\xff", encoding="utf-8")


@pytest.mark.parametrize("data", [b"\0\1\2\3" * 40, b"abc\0def", b"\x7fELF\2\1\1" + bytes(40)])
def test_binary_files_are_refused(data: bytes) -> None:
    with pytest.raises(DocumentError, match="looks like a binary file"):
        read(data)


def test_characters_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grit_mlx.text.encoding._BLOCK_BYTES", 3)
    text = "aäöüß€😀\r\nzwei\r\n" * 20
    assert read(text.encode()) == (text.replace("\r\n", "\n"), [])
    assert read(text.encode("utf-16"))[0] == text.replace("\r\n", "\n")
    assert len(list(decoded(io.BytesIO(text.encode()), name="a", notes=Notes()))) > 50


def test_the_file_is_left_at_its_start() -> None:
    for text in ("abc", "Grüße", "<meta charset=koi8-r>x"):
        file = io.BytesIO(text.encode())
        find_encoding(file, name="a", declared="markup", notes=Notes())
        assert file.tell() == 0
