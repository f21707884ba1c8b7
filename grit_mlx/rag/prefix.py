"""The cached part of a prompt: keys and values of the question and of documents, from caches or computed now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

import mlx.core as mx

from grit_mlx.errors import ArchitectureError, ArgumentError
from grit_mlx.model import threads
from grit_mlx.model.caches import concatenate_caches
from grit_mlx.rag.caches.documents import DocumentCaches, cache_key
from grit_mlx.rag.encoding import Encoder
from grit_mlx.rag.fingerprint import digest, fingerprint
from grit_mlx.rag.modes import Rates, about_tokens
from grit_mlx.rag.rates import default_rates
from grit_mlx.rag.rotation import Rotation

if TYPE_CHECKING:
    from grit_mlx.model.caches import TextCache

__all__ = ["POSITIONS", "Document", "Prefix", "PrefixBuilder"]

# Where a cached text stands that follows another: after it, or, as in the official code, at the positions of a text
# that stands first.
POSITIONS: Final = ("consecutive", "official")


@dataclass(frozen=True)
class Document:
    """A text to answer from."""

    content: str  # with its heading before it
    id: str = ""  # of a store's passage: what its uses are counted under


@dataclass
class Prefix:
    """What a prompt continues."""

    layers: TextCache = field(default_factory=list)  # empty if nothing is cached
    names: list[str] = field(default_factory=list)  # of the cached texts; prefixes with the same names are the same
    cached_tokens: int = 0  # from caches
    computed_tokens: int = 0  # computed for it
    _unsaved: list[tuple[str, Document, TextCache]] = field(default_factory=list)
    _used: list[tuple[str, str]] = field(default_factory=list)


class PrefixBuilder:
    """Builds prefixes of one model.

    Args:
        encoder: computes keys and values.
        caches: where those of documents are kept; None to compute them each time.
        positions: one of ``POSITIONS``.
        model_digest: of the model's fingerprint; None to compute it when it is needed.

    Raises:
        ArgumentError: unknown positions.
    """

    def __init__(
        self, encoder: Encoder, caches: DocumentCaches | None, *, positions: str, model_digest: str | None
    ) -> None:
        if positions not in POSITIONS:
            raise ArgumentError(f"Unknown positions {positions!r}: use one of {', '.join(POSITIONS)}.")
        self.encoder = encoder
        self.caches = caches
        self.positions = positions
        self._digest = model_digest

    def key(self, document: Document) -> str:
        """The name of the document's cache."""
        if self._digest is None:
            self._digest = digest(fingerprint(self.encoder.model))
        return cache_key(self._digest, document.content)

    @cached_property
    def rotation(self) -> Rotation:
        """Moves keys to later places.

        Raises:
            ArchitectureError: this model's cannot be moved.
        """
        return Rotation(self.encoder.model.model)

    @cached_property
    def can_move(self) -> bool:
        """Whether this model's keys can be moved."""
        try:
            return self.rotation is not None
        except ArchitectureError:
            return False

    def build(
        self,
        mode: str,
        question: str,
        documents: Sequence[Document],
        query_cache: TextCache | None = None,
        *,
        fastest: bool = False,
    ) -> Prefix:
        """What the prompt of a mode continues.

        Args:
            mode: one of ``modes.MODES``.
            question: the question.
            documents: in the order of the prompt.
            query_cache: the question's keys and values, if they were computed already.
            fastest: compute what would take longer to come from a bucket.

        Raises:
            ArchitectureError: a text has to be moved and this model's keys cannot be.
        """
        if "doc" in mode.split("-"):
            self._fetch(documents, fastest=fastest)
        return self._built(mode, question, documents, query_cache)

    @threads.computes
    def _built(self, mode: str, question: str, documents: Sequence[Document], query_cache: TextCache | None) -> Prefix:
        prefix = self._begun(documents)
        texts: list[TextCache] = []
        for side in mode.split("-"):
            if side == "query":
                texts.append(self._query(prefix, question, query_cache))
            elif side == "doc" and mode == "query-doc" and self.positions == "official":
                texts += [self._continued(prefix, document) for document in documents]
            elif side == "doc":
                texts += self._documents(prefix, documents)
        if not texts:
            prefix.names = ["none"]  # prompts that begin alike share what they have in common
            return prefix
        if self.positions == "consecutive":
            starts = [sum(text[0].offset for text in texts[:i]) for i in range(len(texts))]
            # A model whose keys cannot be moved still has a first place.
            texts = [
                self.rotation.moved(text, start) if start else text for text, start in zip(texts, starts, strict=True)
            ]
        prefix.layers = texts[0] if len(texts) == 1 else concatenate_caches(*texts)
        mx.eval([(layer.keys, layer.values) for layer in prefix.layers])
        return prefix

    def documents(self, documents: Sequence[Document]) -> list[TextCache]:
        """Keys and values of documents, each at the first place; saves what it computes."""
        self._fetch(documents)
        prefix = self._begun(documents)
        layers = self._documents(prefix, documents)
        self.save(prefix)
        return layers

    def save(self, prefix: Prefix) -> None:
        """Count the uses of documents, and write those that were computed to disk."""
        if self.caches is not None:
            self.caches.note_use(prefix._used)
            for key, document, layers in prefix._unsaved:
                self.caches.save(key, document.id, layers)
        prefix._used, prefix._unsaved = [], []

    def _begun(self, documents: Sequence[Document]) -> Prefix:
        """An empty prefix; the documents count as used, whatever the mode."""
        used = documents if self.caches is not None else ()
        return Prefix(_used=[(self.key(document), document.id) for document in used])

    @property
    def rates(self) -> Rates:
        """How fast this machine is."""
        rates, sharing = default_rates(self.encoder.model), self.caches and self.caches.sharing
        return replace(rates, downloaded_byte=1 / sharing.bytes_per_second) if sharing else rates

    def _fetch(self, documents: Sequence[Document], *, fastest: bool = False) -> None:
        """Bring what other machines have cached to this one; only what it would not compute faster, if so wanted."""
        if self.caches is None or self.caches.sharing is None:
            return
        rates, wanted = self.rates, {}
        for document in documents:
            key, tokens = self.key(document), about_tokens(document.content)
            _, size = self.caches.sizes(key)
            if size and not (fastest and size * rates.downloaded_byte > rates.run(tokens, bidirectional=True)):
                wanted[key] = document.id
        self.caches.fetch(wanted)

    def _query(self, prefix: Prefix, question: str, layers: TextCache | None) -> TextCache:
        prefix.names.append("query " + question)
        if layers is not None:
            prefix.cached_tokens += layers[0].offset
            return layers
        _, layers = self.encoder.query(question)
        prefix.computed_tokens += layers[0].offset
        return layers

    def _continued(self, prefix: Prefix, document: Document) -> TextCache:
        layers = self.encoder.continued(document.content)
        prefix.names.append("continued " + document.content)
        prefix.computed_tokens += layers[0].offset
        return layers

    def _documents(self, prefix: Prefix, documents: Sequence[Document]) -> list[TextCache]:
        by_key = {self.key(document): document for document in documents}
        found = {key: self.caches.get(key) if self.caches is not None else None for key in by_key}
        known = {key: layers for key, layers in found.items() if layers is not None}
        prefix.cached_tokens += sum(layers[0].offset for layers in known.values())
        missing = {key: document for key, document in by_key.items() if key not in known}
        if missing:
            computed = self.encoder.vectors_and_caches([document.content for document in missing.values()])[1]
            for (key, document), layers in zip(missing.items(), computed, strict=True):
                known[key] = layers
                prefix.computed_tokens += layers[0].offset
                prefix._unsaved.append((key, document, layers))
                if self.caches is not None:
                    self.caches.keep(key, layers)
        keys = [self.key(document) for document in documents]
        prefix.names += keys
        return [known[key] for key in keys]
