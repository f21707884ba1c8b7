"""How often a model answers with words of its passage, on held-out questions.

    python recipes/grit-tiny/copying.py MODEL... [--rows 100]

Questions from ../shared/data/dev, each with the first sentences of a passage that answers it. Prints for each prompt
format how many answers are a complete sentence of the passage, how many are its first sentence, and how many appear in
it word for word. Then prints how many answers to prompts without a passage say that a passage is missing.
"""

from __future__ import annotations

import argparse

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import numpy as np
import sources

from grit_mlx import GritLM
from grit_mlx.evaluation.sets import RetrievalSet, load_set
from grit_mlx.rag import Answerer, Document

SETS = ("clapnq_dev", "xquad_en")
WORDS = 90  # maximum per passage
LONGEST = 80  # maximum tokens per answer
FORMS = {"passage, question": "{passage}\n\n{question}", "question, passage": "{question}\n\n{passage}"}


def sample(rows: int) -> list[tuple[str, list[str]]]:
    """Questions, each with the sentences of a passage."""
    rng = np.random.default_rng(9)
    found = []
    for name in SETS:
        data = load_set(sources.DEV / name)
        assert isinstance(data, RetrievalSet)
        asked = [query for query in data.queries if data.relevant.get(query)]
        for i in rng.permutation(len(asked))[:rows]:
            kept: list[str] = []
            for sentence in sources.sentences(data.documents[next(iter(data.relevant[asked[i]]))]):
                if kept and len(" ".join([*kept, sentence]).split()) > WORDS:
                    break
                kept.append(sentence)
            found.append((data.queries[asked[i]], kept))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rows", type=int, default=100, help="number of questions per set")
    options = parser.parse_args()
    found = sample(options.rows)
    for name in options.models:
        model = GritLM(name)
        answerer = Answerer(model)
        answers = {}
        for way, form in FORMS.items():
            prompts = [form.replace("{question}", q).replace("{passage}", " ".join(kept)) for q, kept in found]
            answers[way] = model.generate_batch(prompts, max_tokens=LONGEST)
        for cache in ("none", "doc", "query"):
            answers[f"rag, cache {cache}"] = [
                answerer.answer(q, [Document(" ".join(kept))], cache=cache, max_tokens=LONGEST).text
                for q, kept in found
            ]
        for way, texts in answers.items():
            pairs = [(text.strip(), kept) for text, (_, kept) in zip(texts, found, strict=True)]
            whole = sum(text in kept for text, kept in pairs)
            first = sum(text == kept[0] for text, kept in pairs)
            within = sum(bool(text) and text in " ".join(kept) for text, kept in pairs)
            told = f"a complete sentence {whole}, the first {first}, word for word {within}"
            print(f"{name}: {way}: {told} of {len(pairs)}", flush=True)
        alone = model.generate_batch([q for q, _ in found], max_tokens=LONGEST)
        print(
            f"{name}: no passage: says so {sum(text.strip() == sources.UNKNOWN for text in alone)} of {len(alone)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
