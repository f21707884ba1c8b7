"""Ranking and relevance on documentation: which method finds the file that answers, and which questions are refused.

    python benchmarks/ranking.py [--model NAME] [--python FOLDER]

Two corpora: Python's documentation, from Debian's package python3-doc (fetched with apt-get and dpkg-deb, unless
--python names the folder "html" of one that is installed), and this project's docs/ and README. The questions with the
files that answer them are in ranking.json; they were written before anything was measured. Files rank by their best
passage. Of each question, also of those that have nothing to do with the corpus, it is noted whether it was answered.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
from common import HERE, machine, median, save, seconds

from grit_mlx import GritLM
from grit_mlx.rag import Store

METHODS = ("bm25", "dense", "rrf", "hybrid")
DEPTHS = (1, 3, 10)
PASSAGES = 40  # in which ten files are found
ANSWERED_FROM = 4  # passages, as in ``grit rag ask``
# Of Python's documentation what teaches and describes it; not, say, what changed in Python 2.
PARTS = ("library", "howto", "tutorial", "reference", "faq", "extending", "installing", "glossary.html")


def fetched(folder: Path) -> Path:
    subprocess.run(["apt-get", "download", "python3-doc", "python3.11-doc"], cwd=folder, check=True)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    return next(folder.glob("usr/share/doc/python3.*/html"))


def corpus(name: str, model: GritLM, folder: Path, paths: Sequence[Path], root: Path) -> dict[str, Any]:
    store = Store(folder / name, model)
    store.index(paths)
    questions = json.loads((HERE / "ranking.json").read_text(encoding="utf-8"))[name]
    related, unrelated = questions["related"], questions["unrelated"]
    found: dict[str, list[int]] = {}
    for method in METHODS:
        ranks = []
        for question, expected in related:
            results = store.search(question, top=PASSAGES, method=method)
            assert [hit.score for hit in results] == sorted((hit.score for hit in results), reverse=True)
            names = [os.path.relpath(hit.passage.source, root.resolve()) for hit in results]
            files = list(dict.fromkeys(names))
            ranks.append(min((files.index(one) for one in expected if one in files), default=len(files)))
        found[method] = [sum(rank < depth for rank in ranks) for depth in DEPTHS]
    answered = [store.search(question, top=ANSWERED_FROM) for question, _ in related]
    others = [store.search(question, top=ANSWERED_FROM) for question in unrelated]
    row = {
        "corpus": name,
        "files": store.stats().files,
        "passages": len(store),
        "questions": len(related),
        "found": found,
        "answered": sum(results.relevant for results in answered),
        "unrelated": len(unrelated),
        "refused": sum(not results.relevant for results in others),
        "wrongly_refused": [results.question for results in answered if not results.relevant],
        "wrongly_answered": [results.question for results in others if results.relevant],
        "judging_ms": round(1000 * median([seconds(lambda one=one: judged(store, one)) for one in answered]), 1),
    }
    print(json.dumps(row, indent=1, ensure_ascii=False), file=sys.stderr)
    return row


def judged(store: Store, results: Any) -> bool:
    store._retriever = None  # forget what was looked up
    _ = store._searcher().exact
    return bool(store._relevance(results.question, results.results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model to use (default: the built-in model)")
    parser.add_argument("--python", type=Path, help="the documentation's folder html (default: fetch it)")
    options = parser.parse_args()
    model = GritLM(options.model, mode="embedding")
    with TemporaryDirectory() as name:
        folder, project = Path(name), HERE.parent
        html = options.python or fetched(folder)
        rows = [
            corpus("grit-mlx", model, folder, [project / "docs", project / "README.md"], project / "docs"),
            corpus("python", model, folder, [html / part for part in PARTS], html),
        ]
    save(f"ranking-{machine()['device']}", {"model": model.folder.name, "corpora": rows})


if __name__ == "__main__":
    main()
