"""What is scored, behind one interface: a GRIT model, BM25, a sentence-transformers model.

Shapes: N texts, E embedding size, D documents, W queries of a window.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from grit_mlx.errors import DocumentError, ModelError, first_line
from grit_mlx.evaluation.answers import AnswerLoss, answer_loss
from grit_mlx.evaluation.sets import AnswerSet, PairSet, RetrievalSet
from grit_mlx.gritlm import GritLM
from grit_mlx.optional import optional
from grit_mlx.progress import Progress
from grit_mlx.vectors.compression import FloatVectors, largest, unit
from grit_mlx.vectors.fusion import score_shares

__all__ = ["BM25System", "DenseSystem", "GritSystem", "Rankings", "SentenceTransformerSystem", "System", "Watch"]

# For each query the ids of documents, best first, with their scores: 1 for the best, 0 for the worst of all documents.
Rankings = dict[str, dict[str, float]]

# Shows work: called with a label and an amount of work, it opens a context in which progress can be reported.
Watch = Callable[[str, int], AbstractContextManager[Progress]]

# From W queries to scores ``(W, D)`` of the documents; minus infinity for one that is not a hit.
_Scorer = Callable[[list[str]], FloatVectors]

# Number of queries whose scores are held at once.
_WINDOW = 256


def unwatched(label: str, total: int) -> AbstractContextManager[Progress]:
    """Shows nothing."""
    return nullcontext(lambda done, known: None)


class System(ABC):
    """What is scored on sets.

    Attributes:
        name: what tables call it.
    """

    name: str

    @abstractmethod
    def rankings(self, data: RetrievalSet, depth: int, watch: Watch = unwatched) -> Rankings:
        """The best documents for each query that is scored, at most ``depth``.

        A document that is the query itself (the same id and text) is left out unless it is judged relevant.
        """

    def similarities(self, data: PairSet, watch: Watch = unwatched) -> FloatVectors | None:
        """How similar the sentences of each pair are, ``(N,)``; None if the system cannot tell."""
        return None

    def losses(self, data: AnswerSet, watch: Watch = unwatched) -> AnswerLoss | None:
        """How well it predicts the answers; None if the system cannot tell."""
        return None

    def settings(self) -> Mapping[str, Any]:
        """What its scores depend on, for the record."""
        return {}


class _Scoring(System):
    """A system that gives each document a score for each query.

    Documents are sorted by id, the last first: of equal scores the earlier one is taken, as trec_eval does.
    """

    def rankings(self, data: RetrievalSet, depth: int, watch: Watch = unwatched) -> Rankings:
        documents = sorted(data.documents, reverse=True)
        score = self._scorer(data, documents, watch)
        found: Rankings = {}
        asked = data.asked
        for at in range(0, len(asked), _WINDOW):
            window = asked[at : at + _WINDOW]
            for query, scores in zip(window, score([data.queries[one] for one in window]), strict=True):
                best = largest(scores, depth + 1)
                hits = {documents[i]: float(scores[i]) for i in best if np.isfinite(scores[i])}
                others = [name for name in hits if not _is_itself(data, query, name)][:depth]
                lowest = self._lowest(scores)
                found[query] = score_shares({name: hits[name] for name in others}, lowest)
        return found

    def _lowest(self, scores: FloatVectors) -> float:
        """The score of the worst document of a query, ``(D,)``."""
        return float(scores.min(initial=np.inf, where=np.isfinite(scores)))

    @abstractmethod
    def _scorer(self, data: RetrievalSet, documents: Sequence[str], watch: Watch) -> _Scorer:
        """What scores the documents."""


def _is_itself(data: RetrievalSet, query: str, document: str) -> bool:
    same = query == document and data.queries[query] == data.documents[document]
    return same and document not in data.relevant.get(query, {})


class DenseSystem(_Scoring):
    """A system that makes vectors; those of the last corpus are kept."""

    def __init__(self) -> None:
        self._kept: tuple[bytes, FloatVectors] = (b"", np.empty((0, 0), np.float32))

    @abstractmethod
    def encode(self, texts: list[str], role: str, data_name: str, progress: Progress | bool = False) -> FloatVectors:
        """Unit vectors of texts, ``(N, E)``.

        Args:
            texts: of the set.
            role: one of ``settings.ROLES``; "similarity" for sentences.
            data_name: the set's.
            progress: called with the number of texts done.
        """

    def similarities(self, data: PairSet, watch: Watch = unwatched) -> FloatVectors | None:
        """Cosines, ``(N,)``."""
        texts = list(dict.fromkeys([*data.first, *data.second]))  # many sentences are in several pairs
        with watch(f"{self.name}: {data.name}", len(texts)) as progress:
            vectors = dict(zip(texts, self.encode(texts, "similarity", data.name, progress), strict=True))
        first, second = (np.stack([vectors[text] for text in side]) for side in (data.first, data.second))
        return np.asarray(np.sum(first * second, axis=1))

    def _scorer(self, data: RetrievalSet, documents: Sequence[str], watch: Watch) -> _Scorer:
        # A document without text has no vector, and is never found. Equal texts share a column of the product, since
        # its last bits may differ from column to column.
        texts = dict.fromkeys(data.documents[one] for one in documents if data.documents[one].strip())
        if not texts:
            raise DocumentError(f"All documents of {data.name} are empty.", path=data.name)
        vectors = self._corpus(list(texts), data.name, watch)
        column = {text: number for number, text in enumerate(texts)}
        columns = np.array([column.get(data.documents[one], len(texts)) for one in documents])

        def score(queries: list[str]) -> FloatVectors:
            scores = np.full((len(queries), len(texts) + 1), -np.inf, dtype=np.float32)
            scores[:, :-1] = self.encode(queries, "query", data.name) @ vectors.T
            return scores[:, columns]

        return score

    def _corpus(self, texts: list[str], name: str, watch: Watch) -> FloatVectors:
        digest = hashlib.sha256()
        for text in texts:
            digest.update(len(text).to_bytes(8, "little") + text.encode("utf-8"))
        if self._kept[0] != digest.digest():
            self._kept = (b"", self._kept[1][:0])  # two corpora at once may not fit
            with watch(f"{self.name}: {name}", len(texts)) as progress:
                self._kept = (digest.digest(), self.encode(texts, "document", name, progress))
        return self._kept[1]


class GritSystem(DenseSystem):
    """A GRIT model.

    Args:
        model: loaded in mode ``"unified"``, or ``"embedding"`` if no answers are scored.
        name: what to call it; None for its folder's name.
        instruction: for queries, without GRIT's markers; None for the model's setting.
        instructions: for single sets, by their names; for pairs that of both sentences.
        options: of ``GritLM.encode``, such as ``max_length`` and ``batch_size``.
    """

    def __init__(
        self,
        model: GritLM,
        *,
        name: str | None = None,
        instruction: str | None = None,
        instructions: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.name = model.folder.name if name is None else name
        self._instruction = instruction
        self._instructions = instructions or {}
        self._options = options or {}

    def encode(self, texts: list[str], role: str, data_name: str, progress: Progress | bool = False) -> FloatVectors:
        """See ``DenseSystem``."""
        instruction = self._instruction if role == "query" else None
        if role != "document":
            instruction = self._instructions.get(data_name, instruction)
        return unit(self.model.encode(texts, role=role, instruction=instruction, progress=progress, **self._options))

    def losses(self, data: AnswerSet, watch: Watch = unwatched) -> AnswerLoss | None:
        """See ``System``."""
        with watch(f"{self.name}: {data.name}", len(data.rows)) as progress:
            return answer_loss(self.model, data, progress=progress)

    def settings(self) -> Mapping[str, Any]:
        """See ``System``."""
        used = self.model.settings
        return {
            "folder": str(self.model.folder),
            "pooling": used.pooling,
            "attn": used.attn,
            "query_instruction": used.query_instruction if self._instruction is None else self._instruction,
            "document_instruction": used.document_instruction,
            "similarity_instruction": used.similarity_instruction,
            "instructions": dict(self._instructions),
            "max_length": used.max_length,
            **{name: value for name, value in self._options.items() if value is not None},
        }


class SentenceTransformerSystem(DenseSystem):
    """Any model of the sentence-transformers library (extra ``sentence-transformers``).

    Args:
        name: a folder, or the id of a model on the hub.

    Raises:
        DependencyError: the library is not installed.
        ModelError: it cannot load the model.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        purpose = "A sentence-transformers model"
        library = optional("sentence_transformers", extra="sentence-transformers", purpose=purpose)
        self.name = name.rstrip("/").rpartition("/")[2]
        self._path = name
        try:
            self._model = library.SentenceTransformer(name)
        except Exception as error:  # the library raises whatever its parts raise
            raise ModelError(f"sentence-transformers cannot load {name!r}: {first_line(error)}") from error

    def encode(self, texts: list[str], role: str, data_name: str, progress: Progress | bool = False) -> FloatVectors:
        """See ``DenseSystem``."""
        method = "encode" if role == "similarity" else f"encode_{role}"
        # Versions before 5 have encode alone; the others add the prompts that the model was trained with.
        encode = getattr(self._model, method, self._model.encode)
        return unit(np.asarray(encode(texts, convert_to_numpy=True, show_progress_bar=False), dtype=np.float32))

    def settings(self) -> Mapping[str, Any]:
        """See ``System``."""
        return {"model": self._path, "max_length": self._model.max_seq_length}


class BM25System(_Scoring):
    """BM25 by the bm25s library (extra ``eval``), with its defaults: Lucene's variant, k1 1.5, b 0.75.

    Words are stemmed by Snowball's stemmer; a document without any word of the query is not a hit.

    Args:
        language: Snowball's name for it; stop words are left out for ``"english"`` only.

    Raises:
        DependencyError: bm25s or PyStemmer is not installed.
    """

    name = "BM25"

    def __init__(self, language: str = "english") -> None:
        self._library = optional("bm25s", extra="eval", purpose="BM25")
        stemmers = optional("Stemmer", extra="eval", purpose="BM25 (its stemmer PyStemmer)")
        self._stemmer = stemmers.Stemmer(language)
        self._language = language

    def settings(self) -> Mapping[str, Any]:
        """See ``System``."""
        return {"language": self._language, "method": "lucene", "k1": 1.5, "b": 0.75}

    def _scorer(self, data: RetrievalSet, documents: Sequence[str], watch: Watch) -> _Scorer:
        index = self._library.BM25(method="lucene", k1=1.5, b=0.75)
        words = self._words([data.documents[identifier] for identifier in documents])
        if not any(words):
            raise DocumentError(f"All documents of {data.name} are without words.", path=data.name)
        index.index(words, show_progress=False)

        def score(queries: list[str]) -> FloatVectors:
            none = np.zeros(len(documents), dtype=np.float32)
            rows = [index.get_scores(one) if one else none for one in self._words(queries)]
            scores = np.stack(rows).astype(np.float32)
            return np.where(scores > 0, scores, -np.inf).astype(np.float32)

        return score

    def _lowest(self, scores: FloatVectors) -> float:
        return 0.0  # of a document without any word of the query

    def _words(self, texts: list[str]) -> list[list[str]]:
        stop = "en" if self._language == "english" else None
        options = {"stopwords": stop, "stemmer": self._stemmer, "return_ids": False, "show_progress": False}
        return list(self._library.tokenize(texts, **options))
