"""Reranking, in the shape that Cohere's, Jina's and other clients share."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from grit_mlx.errors import ArgumentError, Option
from grit_mlx.options import check, check_unicode, option
from grit_mlx.server.fields import read, texts_of

__all__ = ["RerankRequest", "rerank_reply", "rerank_request"]

_IGNORED: Final = (
    "rank_fields",
    "max_chunks_per_doc",
    "max_tokens_per_doc",
    "priority",
    "truncate",
    "truncation",
    "user",
)


@dataclass(frozen=True, kw_only=True)
class RerankRequest:
    """What the ``rerank`` endpoints take."""

    query: str = option("", "What to look for.")
    documents: list[Any] = option([], "Texts, or objects with a text.")
    model: str | None = option(None, "Which model.")
    top_n: int | None = option(None, "How many results.", minimum=1)
    return_documents: bool = option(False, "Whether results hold their documents.")

    def __post_init__(self) -> None:
        check(self)
        check_unicode(self.query, "The query")
        if not self.query.strip():
            raise ArgumentError(Option("query"), " is empty.")

    @property
    def texts(self) -> list[str]:
        """Of the documents."""
        return texts_of([one.get("text") if isinstance(one, Mapping) else one for one in self.documents], "documents")


def rerank_request(body: Mapping[str, Any]) -> RerankRequest:
    """Read a request."""
    return read(RerankRequest, body, ignored=_IGNORED)


def rerank_reply(request: RerankRequest, scores: Sequence[float], model: str, tokens: int) -> dict[str, Any]:
    """Documents by their scores, the best first."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[: request.top_n]
    texts = request.texts if request.return_documents else []
    results = [
        {"index": i, "relevance_score": scores[i], **({"document": {"text": texts[i]}} if texts else {})} for i in order
    ]
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"id": str(uuid.uuid4()), "model": model, "results": results, "meta": meta, "usage": usage}
