"""The three sources that training never reads, as sets of grit eval: python recipes/grit-tiny/kept_apart.py"""

from __future__ import annotations

import gzip
import json

import sources


def main() -> None:
    for name in sources.KEPT_APART:
        folder = sources.WORK / "kept" / name
        folder.mkdir(parents=True, exist_ok=True)
        passages: dict[str, str] = {}
        queries, judgements = [], ["query-id\tcorpus-id\tscore"]
        for number, (_, query, passage, _) in enumerate(sources.pairs(name)):
            key = passages.setdefault(passage, f"p{len(passages)}")
            queries.append({"_id": f"q{number}", "text": query})
            judgements.append(f"q{number}\t{key}\t1")
        corpus = [{"_id": key, "title": "", "text": passage} for passage, key in passages.items()]
        for file, rows in (("corpus", corpus), ("queries", queries)):
            with gzip.open(folder / f"{file}.jsonl.gz", "wt", encoding="utf-8") as out:
                out.writelines(json.dumps(row) + "\n" for row in rows)
        (folder / "qrels.tsv").write_text("\n".join(judgements) + "\n", encoding="utf-8")
        print(f"{folder}: {len(queries):,} queries, {len(corpus):,} passages")


if __name__ == "__main__":
    main()
