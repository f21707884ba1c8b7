"""Stores that are searched and answered from while they are served. Nothing here knows of HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from grit_mlx.errors import ArgumentError, GritError, Option
from grit_mlx.model.options import GenerationOptions
from grit_mlx.options import check, check_unicode, from_mapping, option
from grit_mlx.rag.answering import Document, PreparedAnswer, Turn
from grit_mlx.rag.database import sql_text
from grit_mlx.rag.options import METHODS, RagOptions
from grit_mlx.rag.rag import Rag
from grit_mlx.rag.retrieval import SearchResult, SearchResults
from grit_mlx.rag.store import Store
from grit_mlx.server.decoding import Prompt
from grit_mlx.server.replies import Refusal, RefusedError
from grit_mlx.text import kinds
from grit_mlx.text.blocks import Notes
from grit_mlx.text.encoding import Declaration, decode
from grit_mlx.text.walking import stored_name

if TYPE_CHECKING:
    from grit_mlx.server.engine import Lane

__all__ = ["FileRequest", "SearchRequest", "ServedStore", "StoreAnswer"]

T = TypeVar("T")

_SOURCES: Final = "\n\nSources:\n"
_NOTHING_FOUND: Final = "Nothing relevant was found."

# The largest file of which a part is shown; larger ones are shown from their passages.
_SHOWN_BYTES: Final = 32_000_000


@dataclass(frozen=True)
class StoreAnswer:
    """What an answer from a store is generated from.

    Attributes:
        sources: the passages.
        prompt: what to generate from; None where ``text`` is the answer: quotes, or that nothing relevant was found.
        text: what follows the answer, or stands in its place.
        held: tokens of the prompt before ``prompt.tokens``.
        cached: how many of these were not read again.
        save: keeps what was computed of the passages; for after the answer.
    """

    sources: Sequence[SearchResult]
    prompt: Prompt | None
    text: str
    held: int = 0
    cached: int = 0
    save: Callable[[], Any] = lambda: None


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What a search takes."""

    query: str = option("", "What to look for.")
    top_k: int = option(10, "Number of passages.", minimum=1, maximum=1000)
    paths: Sequence[str] = option((), "Only these files, folders or patterns.")
    metadata: Sequence[str] = option((), "Only rows with these fields, as KEY=VALUE.")
    method: str = option("hybrid", "How to search.", choices=METHODS)

    def __post_init__(self) -> None:
        check(self)
        for path in (*self.paths, *self.metadata):
            check_unicode(path, "A path")
            if "\0" in path:
                raise ArgumentError(Option("paths"), " holds a name with a zero byte.")


@dataclass(frozen=True, kw_only=True)
class FileRequest:
    """Which part of a file."""

    path: str = option("", "A file.")
    line: int = option(1, "From this line.", minimum=1)
    count: int = option(100, "Number of lines.", minimum=1, maximum=10_000)

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def of(cls, query: Mapping[str, str]) -> FileRequest:
        """From the query of an address.

        Raises:
            ArgumentError: an unknown name, or not a number.
        """
        numbers = {name for name in query if name != "path" and query[name].isdecimal() and len(query[name]) < 10}
        return from_mapping(cls, {name: int(value) if name in numbers else value for name, value in query.items()})


class ServedStore:
    """A store, one request at a time; what is published meanwhile is seen by the next one.

    Args:
        name: to clients.
        uri: see ``Store``.
    """

    def __init__(self, name: str, uri: str) -> None:
        self.name = name
        self.uri = uri
        self._store: Store | None = None
        self._rag: tuple[Lane, Rag] | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"grit-store-{name}")

    def run(self, function: Callable[..., T], *arguments: Any, **options: Any) -> Future[T]:
        """Call one of the methods below in the store's thread."""
        return self._worker.submit(function, *arguments, **options)

    def close(self) -> None:
        """End the store's thread."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def use(self, lane: Lane) -> Rag:
        """Search and answer with a model.

        Raises:
            StoreError: there is no store, or another model's.
        """
        if self._store is None:
            self._store = Store(self.uri)
        self._store.require()
        self._store.refresh()
        if self._rag is None or self._rag[0] is not lane:
            # Caches hold the keys and values of a whole model.
            self._rag = lane, Rag(lane.model, self._store, RagOptions(cache="none" if lane.model.is_split else "auto"))
        return self._rag[1]

    def release(self) -> None:
        """Forget the model, which is being unloaded."""
        self._rag = self._store = None

    def search(self, lane: Lane, asked: SearchRequest) -> dict[str, Any]:
        """The passages that match a query best.

        Raises:
            ArgumentError: an empty query, or a filter that nothing satisfies.
        """
        store = self.use(lane).store
        filters: dict[str, Any] = {"paths": asked.paths, "metadata": asked.metadata}
        results = store.search(asked.query, top=asked.top_k, method=asked.method, **filters)
        if not results and any(filters.values()):
            store.check_filters(**filters)
        found = [self.citation(i, one) for i, one in enumerate(results, start=1)]
        return {
            "object": "list",
            "store": self.name,
            "query": asked.query,
            "relevant": results.relevant,
            "results": found,
        }

    def status(self) -> dict[str, Any]:
        """What the store holds."""
        store = self._store or Store(self.uri)
        store.refresh()
        stats = store.stats()
        values = {name: value for name, value in asdict(stats).items() if name != "caches"}
        cached = {"files": stats.caches.files, "bytes": stats.caches.bytes}
        return {"object": "store", "id": self.name, "folder": self.uri, **values, "caches": cached}

    def file(self, path: str, *, line: int, count: int) -> dict[str, Any]:
        """A part of an indexed file, as it was indexed.

        Args:
            path: a file's name as ``search`` gives it.
            line: the first line, page or whatever the file's places count, from 1.
            count: how many.

        Raises:
            RefusedError: no such file was indexed.
        """
        store = self._store or Store(self.uri)
        store.require()
        store.refresh()
        # Not resolved: what a link leads to was not indexed under its name.
        name = path if "\0" in path or Path(path).is_absolute() else stored_name(Path.cwd() / path)
        passages = list(store.require().passages_where(f"name = {sql_text(name)}"))
        if not passages:
            message = f"The store {self.name} holds no file {path!r:.200}."
            raise RefusedError(Refusal(404, message, param="path", code="file_not_found"))
        passages.sort(key=lambda passage: (passage.line, passage.end_line))
        unit = passages[0].unit
        shown = {"path": name, "unit": unit, "line": line, "total": max(one.end_line for one in passages)}
        lines = _lines(store, name) if unit == "line" else None
        if lines is not None:
            part = lines[line - 1 : line - 1 + count]
            return {**shown, "total": len(lines), "end_line": line - 1 + len(part), "text": "\n".join(part)}
        here = [one for one in passages if one.end_line >= line and one.line < line + count]
        end = max((one.end_line for one in here), default=line)
        return {**shown, "end_line": end, "text": "\n\n".join(one.text for one in here), "passages": True}

    def prepare(self, lane: Lane, messages: Sequence[Mapping[str, str]], options: GenerationOptions) -> StoreAnswer:
        """What to answer the last message of a chat from.

        Raises:
            ArgumentError: messages that do not take turns, or a question that cannot be answered.
        """
        system, turns, question = _conversation(messages)
        rag = self.use(lane)
        results = self._found(rag, turns, question)
        if not results.relevant and (rag.quotes or not turns):
            return StoreAnswer([], None, _NOTHING_FOUND)
        if rag.quotes:
            response = rag.respond(results)
            return StoreAnswer(response.sources, None, response.text or _NOTHING_FOUND)
        documents = [Document(one.passage.content, one.passage.id) for one in results]
        prepared = rag.answerer.prepare(
            f"{system}\n\n{question}" if system else question,
            documents,
            cache=rag.options.cache,
            query_cache=None if turns or system else results.query_cache or None,
            history=turns,
            options=options,
        )
        sources = results[: len(documents) - prepared.left_out]
        return self._answer(rag, prepared, sources)

    def _answer(self, rag: Rag, prepared: PreparedAnswer, sources: Sequence[SearchResult]) -> StoreAnswer:
        prefix = prepared.prefix
        held = prefix.layers[0].offset if prefix.layers else 0
        # The model's context is seen to: ``prepared`` is within it.
        prompt = Prompt(prepared.tokens, prepared.options, prefix.layers, (self.name, prepared.mode, *prefix.names))
        listed = _SOURCES + "\n".join(_shown(i, source) for i, source in enumerate(sources, start=1))
        save = rag.answerer.prefixes.save
        return StoreAnswer(sources, prompt, listed, held, prefix.cached_tokens, lambda: save(prefix))

    def _found(self, rag: Rag, turns: Sequence[Turn], question: str) -> SearchResults:
        """Passages for a question; a turn may be about what was said before, so the last question helps."""
        if turns:
            with suppress(ArgumentError):  # both together may be longer than the context
                found = rag.find(f"{turns[-1].question}\n{question}")
                return replace(found, question=question, query_cache=None)
        return rag.find(question)

    def citation(self, index: int, result: SearchResult) -> dict[str, Any]:
        """A passage as clients get it."""
        passage = result.passage
        return {
            "index": index,
            "id": passage.id,
            "store": self.name,
            "path": passage.source,
            "place": passage.place,
            "unit": passage.unit,
            "line": passage.line,
            "end_line": passage.end_line,
            "heading": passage.heading,
            "text": passage.text,
            "metadata": dict(pair.split("=", 1) for pair in passage.metadata),
            "score": round(result.score, 6),
            "cosine": None if result.cosine is None else round(result.cosine, 6),
        }


def _conversation(messages: Sequence[Mapping[str, str]]) -> tuple[str, list[Turn], str]:
    """A chat's system message, its turns so far, and the question."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    for i, message in enumerate(rest):
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            raise ArgumentError(
                Option("messages"),
                f" must alternate between user and assistant: {message['role']!r} stands where {expected!r} belongs.",
            )
    if len(rest) % 2 == 0:
        raise ArgumentError(Option("messages"), " must end with a user's question.")
    contents = [message["content"] for message in rest]
    # What was listed below an answer is not part of it.
    pairs = zip(contents[:-1:2], contents[1::2], strict=True)
    return system, [Turn(asked, said.partition(_SOURCES)[0]) for asked, said in pairs], contents[-1]


def _shown(index: int, source: SearchResult) -> str:
    heading = " ".join(source.passage.heading.split())
    return f"[{index}] {source.passage.place}" + (f" ({heading})" if heading else "")


def _lines(store: Store, name: str) -> list[str] | None:
    """The lines of a file if it still is what was indexed; None otherwise, or if it is not a file of lines.

    A link that was put in its place meanwhile leads to another content.
    """
    path = Path(name)
    with suppress(OSError, GritError, ValueError):
        if path.suffix == ".gz" or path.stat().st_size > _SHOWN_BYTES:
            return None
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() in store.require().hashes_of(name):
            declared: Declaration = "markup" if kinds.kind_of(name).name == "html" else "none"
            return decode(data, name=name, declared=declared, notes=Notes()).splitlines()
    return None
