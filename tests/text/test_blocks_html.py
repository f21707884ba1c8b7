"""Web pages to blocks: main content, headings, listings, tables, lines, broken markup and encodings."""

from __future__ import annotations

import gzip
import re
import time
from pathlib import Path

import pytest

from grit_mlx.text.blocks import Block, Notes
from grit_mlx.text.readers import read
from grit_mlx.text.readers.html import html_blocks


def blocks(html: str) -> list[Block]:
    return list(html_blocks(html))


def texts(html: str) -> list[str]:
    return [block.text for block in blocks(html)]


def test_headings_are_data_and_paragraphs_have_their_lines() -> None:
    page = """<!doctype html>
<html><head><title>Not this</title></head>
<body>
<h1>Tides &amp; winds</h1>
<p
   class="x">The <b>moon</b> pulls
the sea.<br>Twice a day.</p>
<h3>Storm</h3>
<p># not a heading
<p>Unclosed"""
    assert blocks(page) == [
        Block("Tides & winds", 4, 4, level=1),
        Block("The moon pulls the sea.\nTwice a day.", 6, 7),
        Block("Storm", 8, 8, level=3),
        Block("# not a heading", 9, 9),
        Block("Unclosed", 10, 10),
    ]


def test_a_long_paragraph_has_all_its_lines() -> None:
    lines = [f"word{number} and more" for number in range(120)]
    (block,) = blocks("<html>\n<body>\n<p>" + "\n".join(lines) + "</p>")
    assert (block.first, block.last) == (3, 122)


def test_listings_keep_their_lines_and_are_not_headings() -> None:
    page = "<h1>T</h1>\n<pre>\n# a comment\n\n  <b>indented</b>\n# another\n</pre>\n<p>x</p>"
    _, listing, after = blocks(page)
    assert listing == Block("# a comment\n\n  indented\n# another", 3, 6, by_line=True, verbatim=True)
    assert after == Block("x", 8, 8)


def test_the_title_is_the_top_heading_where_there_is_no_other() -> None:
    page = "<head>\n<title>\n Ships </title></head><body><h2>Keels</h2><p>Deep.</p>"
    assert [(block.text, block.level) for block in blocks(page)] == [("Ships", 1), ("Keels", 2), ("Deep.", 0)]
    assert texts("<title>Ships</title><h1>Boats</h1>") == ["Boats"]
    assert texts("<title> Ships</title><h2>Ships</h2><p>x</p>") == ["Ships", "x"]
    assert texts("<div id=banner><a href=b>Get</a></div><h1>Long boats</h1>") == ["Long boats"]
    assert texts("<title></title><p>x</p>") == ["x"]
    assert texts("<svg><title>icon</title></svg><p>x</p>") == ["x"]


@pytest.mark.parametrize(
    "page",
    [
        "<nav><a>Menu</a></nav><h1>T</h1><p>Text.</p>",
        "<header><a>Menu</a></header><h1>T</h1><p>Text.</p><footer>Menu</footer>",
        "<div class='sphinxsidebar'><h3>Menu</h3></div><div role='main'><h1>T<a class='headerlink' href='#'>¶</a></h1>"
        "<p>Text.</p></div><div class='footer'>Menu</div>",
        "<div role='navigation'>Menu</div><main><h1>T</h1><p>Text.</p></main><aside>Menu</aside>",
        "<div id='cookie-banner'>Menu</div><article><h1>T <a href='#t'>#</a></h1><p>Text.</p></article>",
        "<ul class='breadcrumb'><li>Menu</ul><h1>T</h1><p>Text.<script>Menu()</script><style>Menu</style></p>",
        "<h1>T</h1><p hidden>Menu</p><p style='display: none'>Menu</p><span aria-hidden=true>Menu</span><p>Text.</p>",
        "<h1>T</h1><p>Text.</p><noscript>Menu</noscript><template>Menu</template><button>Menu</button>",
        "<ul class='docnav top'><li><a href='b'>Menu</a></ul><div class=sidebar><a href='c'>Menu</a> new.</div>"
        "<h1>T</h1><p>Text.</p><div class='social'>Menu. Menu.</div>",
        "<div role=main><h1>T</h1><p>Text.</p><div class='toctree-wrapper compound'><a href=a>Menu</a></div></div>",
        "<h1>T</h1><label><a href='#p1'>17</a></label><p id=p1>Text.</p>",
        "<h1>T</h1><!-- Menu --><p>Text.</p><select><option>Menu</option></select>",
    ],
)
def test_what_surrounds_the_content_is_left_out(page: str) -> None:
    assert texts(page) == ["T", "Text."]


@pytest.mark.parametrize(
    "page",
    [
        "<title>T</title><h1>T</h1><p>Text that is found.</p>",
        "<html><head><title>T</title><meta charset=utf-8><h1>T</h1><p>Text that is found.</p>",
        "<nav><a>Menu</a><h1>T</h1><p>Text that is found.</p>",
        "<html><body><nav><ul><li><a>Menu</a></ul><main><h1>T</h1><p>Text that is found.</p></main></body>",
        "<div class=nav><div><h1>T</h1><p>Text that is found.",
        "<div class='sidebar'><p>Text that is found, and there is nothing else on this page at all.</div>",
        "<h1>T<p>Text that is found.",
        "<body><body><h1>T</h1></body></html><p>Text that is found.</p>",
        "<p>" + "<b><i>" * 300 + "Text that is found.",
        "<div>" * 2000 + "Text that is found.",
    ],
)
def test_broken_pages_are_read(page: str) -> None:
    assert "Text that is found" in " ".join(texts(page))


@pytest.mark.parametrize(
    "page",
    [
        "<main><p>About ships and the sea.</p><section id='menu'><h2>Menu</h2><p>Bread.</p></section>"
        "<aside>Note.</aside></main>",
        "<p>About ships.</p><div class='section' id='related-work'><h2>Menu</h2><p>Bread.</p></div><p>Note.</p>",
    ],
)
def test_sections_with_such_names_are_content(page: str) -> None:
    assert texts(page)[-3:] == ["Menu", "Bread.", "Note."]


def test_a_long_side_bar_is_read_in_time() -> None:
    """Tables of data stand in such boxes, too, without a sentence in them."""
    begun = time.perf_counter()
    page = f"<h1>Ships</h1><div class=sidebar>{'<p>' + 'keel ' * 200_000}</div><p>A keel keeps a ship upright.</p>"
    assert texts(page)[-1] == "A keel keeps a ship upright."
    assert time.perf_counter() - begun < 20


def test_a_side_bar_of_a_book_is_text() -> None:
    boxed = "The kernel of a system is the part that <a href='k'>every program</a> rests upon, as the word says."
    page = f"<h1>T</h1><div>Above.</div><div class='sidebar'><h3>Basics</h3><div>{boxed}</div></div><p>Below.</p>"
    text = re.sub("<.*?>", "", boxed)
    assert texts(page) == ["T", "Above.", "Basics", text, "Below."]
    menu = "<a href='a'>The kernel of a system and its programs.</a>"
    assert texts(f"<h1>T</h1><div class='sidebar'>{menu}</div>" + f"<p>{boxed}</p>" * 2) == ["T", *[text] * 2]


@pytest.mark.parametrize("page", ["", "  \n", "<!-- x -->", "<html></html>", "\0"])
def test_empty_pages_have_no_blocks(page: str) -> None:
    assert blocks(page) == []


def test_tables_are_rows_with_their_header() -> None:
    page = """<h1>T</h1>
<table>
<thead><tr><th>Name</th><th>Town</th></tr></thead>
<tr><td>Ada</td>
<td><p>London</p>
<p>Paris</p></td></tr>
<tr><td>Bob</td><td></td></tr>
</table>"""
    header = "Name | Town"
    assert blocks(page)[1:] == [
        Block(header, 3, 3),
        Block("Ada | London Paris", 4, 6, glue="\n", header=header),
        Block("Bob", 7, 7, glue="\n", header=header),
    ]
    rows = (("Name", "Town"), ("Ada", "1"), ("Bob", "2"))
    without = f"<table>{''.join(f'<tr><td>{one}</td><td>{two}</td></tr>' for one, two in rows)}</table>"
    assert [block.header for block in blocks(without)] == ["", header, header]
    layout = "<table role=presentation><tr><td><h1>T</h1><p>One.</p></td><td>Two.</td></tr></table>"
    assert texts(layout) == ["T", "One.", "Two."]


def test_line_numbers_of_listings_are_left_out() -> None:
    page = (
        '<h1>T</h1><table class="highlighttable"><tr><td class="linenos"><pre>1\n2</pre></td>'
        "<td><pre>a = 1\nb = 2</pre></td></tr></table>"
    )
    assert texts(page) == ["T", "a = 1\nb = 2"]


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ('<meta charset="koi8-r">', "koi8-r"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=windows-1251">', "cp1251"),
        ("<meta charset=utf-8>", "cp1251"),
        ("", "utf-8-sig"),
        ("", "utf-16"),
        ("<meta charset=iso-8859-1>", "utf-8"),
    ],
)
def test_pages_in_any_encoding(tmp_path: Path, head: str, encoding: str) -> None:
    text = (
        "Москва — столица России, большой и старый город на реке."
        if encoding != "koi8-r"
        else "Москва, столица России."
    )
    page = f"<html><head>{head}<title>x</title></head><body><p>{text}</p></body></html>"
    path = tmp_path / "a.html"
    path.write_bytes(page.encode(encoding))
    notes = Notes()
    assert [block.text for block in read(path, notes=notes)] == ["x", text]
    assert len(notes.warnings) == (encoding == "cp1251" and "utf-8" in head)
    (tmp_path / "b.htm.gz").write_bytes(gzip.compress(page.encode(encoding)))
    assert [block.text for block in read(tmp_path / "b.htm.gz")] == ["x", text]


def test_xml_declarations_are_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "a.xhtml"
    path.write_bytes(
        '<?xml version="1.0" encoding="iso-8859-2"?>\n<html>\n<p>Zażółć gęślą jaźń</p></html>'.encode("iso-8859-2")
    )
    assert [(block.text, block.first) for block in read(path)] == [("Zażółć gęślą jaźń", 3)]


def test_what_is_not_seen_is_not_text() -> None:
    assert texts("<p>e&shy;ffi\ufb01x&nbsp;a\u200bb<wbr>c</p>") == ["effifix abc"]
