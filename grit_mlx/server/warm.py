"""What commands ask of a running server: the library's own calls, as they would make them in a process of their own.

Nothing is batched with other requests here, and numbers are passed on bit by bit, so that a command prints the same
whether it uses a server or not. A response is lines of JSON: notes, errors and results in the order in which they came.
Between batches of texts, and between tokens, the engine serves others.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from grit_mlx.errors import GritError, Option
from grit_mlx.model.generation import PromptCache
from grit_mlx.rag.answering import Turn
from grit_mlx.rag.fingerprint import digest, fingerprint
from grit_mlx.rag.options import ChatOptions, RagOptions, StoreOptions
from grit_mlx.rag.rag import Rag
from grit_mlx.rag.rag import Response as RagResponse
from grit_mlx.rag.retrieval import SearchResults
from grit_mlx.rag.store import Store
from grit_mlx.server.decoding import worded
from grit_mlx.server.fields import object_of
from grit_mlx.server.hosting import Host
from grit_mlx.server.replies import refusal_of
from grit_mlx.server.streaming import EventStream

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM

__all__ = ["routes"]

T = TypeVar("T")

Emit = Callable[[Mapping[str, Any]], None]

# Conversations of commands whose keys and values are kept.
_CONVERSATIONS: Final = 4
# Vectors in a line.
_VECTORS: Final = 256

# Where the notes of the request that is being computed go.
_emit: contextvars.ContextVar[Emit | None] = contextvars.ContextVar("grit_emit", default=None)


class _GoneError(Exception):
    """The command has ended."""


def routes(host: Host) -> list[Route]:
    """The routes, for the server's application."""
    warm = _Warm(host)
    logging.getLogger("grit_mlx").addHandler(_Forwarding())
    calls = {
        "describe": _describe,
        "encode": _encode,
        "encode-many": _encode_many,
        "ask": _ask,
        "chat": warm.chat,
        "respond": warm.respond,
    }
    return [
        Route(f"/v1/warm/{name}", partial(warm.handle, call), methods=["POST"], name=f"warm:{name}")
        for name, call in calls.items()
    ]


class _Warm:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._conversations: OrderedDict[str, PromptCache] = OrderedDict()
        self._chats: OrderedDict[str, _StoreChat] = OrderedDict()
        for model in host.models.values():
            model.on_unload.append(self._chats.clear)  # they hold it

    async def handle(self, call: Callable[[GritLM, Mapping[str, Any], Emit], None], request: Request) -> Response:
        """Answer a request by one of the calls below."""
        try:
            body = await asyncio.to_thread(object_of, await request.body())
            target = self._host.target(body.pop("model", None))
            place = self._host.enter(target.model)
        except GritError as error:
            refusal = refusal_of(error)
            return JSONResponse(refusal.openai, refusal.status)
        try:
            lane = await asyncio.to_thread(target.model.lane)
        except BaseException as error:
            place.leave()
            if not isinstance(error, GritError):
                raise
            refusal = refusal_of(error)
            return JSONResponse(refusal.openai, refusal.status)
        return EventStream(_lines(partial(call, lane.model, body)), place.leave)

    def respond(self, model: GritLM, body: Mapping[str, Any], emit: Emit) -> None:
        """An answer, as ``GritLM.stream_responses`` gives it."""
        cache = self._conversation(body.get("conversation"))
        responses = model.stream_responses(body["prompt"], raw=body["raw"], cache=cache, **body["options"])
        with closing(responses):  # type: ignore[type-var]
            for one in responses:
                counts = ("text", "finish_reason", "prompt_tokens", "prompt_tps", "generation_tokens", "generation_tps")
                measured = {name: getattr(one, name) for name in (*counts, "peak_memory")}
                emit({"response": measured, "reused": cache.reused if cache is not None else 0})

    def _conversation(self, name: str | None) -> PromptCache | None:
        return None if name is None else _kept(self._conversations, name, PromptCache)

    def chat(self, model: GritLM, body: Mapping[str, Any], emit: Emit) -> None:
        """A turn of what ``grit rag chat`` says about a store; without a question only how many passages it holds."""
        chat = _kept(self._chats, body["conversation"], _StoreChat)
        with chat.lock:
            if chat.rag is None or chat.rag.model is not model:
                store = _named_store(model, body, emit)
                if store is None:
                    return
                chat.rag = Rag(model, store, ChatOptions(**body["chosen"]))
            emit({"passages": len(chat.rag.store)})
            if body["question"] is None:
                return
            chat.rag.history = [Turn(*turn) for turn in body["history"]]
            response = chat.rag.chat(body["question"], **body["sampling"])
            _found(response.results, emit)
            _answered(response, emit)


class _StoreChat:
    """A conversation about a store, one turn at a time: the one before may not have noticed yet that it is over."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rag: Rag | None = None


def _kept(held: OrderedDict[str, T], name: str, make: Callable[[], T]) -> T:
    """What is held under a name, made where there is nothing; the least recently used is forgotten."""
    one = held.setdefault(name, make())
    held.move_to_end(name)
    while len(held) > _CONVERSATIONS:
        held.popitem(last=False)
    return one


def _describe(model: GritLM, body: Mapping[str, Any], emit: Emit) -> None:
    """What commands have to know of a model."""
    from mlx.utils import tree_flatten

    weights: Any = tree_flatten(model.model.parameters())
    tokenizer = getattr(model.tokenizer, "backend_tokenizer", None)
    if tokenizer is not None and body["tokenizer"]:
        tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        tokenizer.no_padding()
        tokenizer.no_truncation()
    emit(
        {
            "embedding_size": model.embedding_size,
            "identity": [digest(fingerprint(model)), sorted({str(value.dtype) for _, value in weights})],
            "settings": asdict(model.settings),
            "tokenizer": tokenizer.to_str() if tokenizer is not None and body["tokenizer"] else None,
        }
    )


def _encode(model: GritLM, body: Mapping[str, Any], emit: Emit) -> None:
    """The vector of one text, as ``GritLM.encode`` gives it."""
    emit({"vectors": _packed(model.encode(body["text"], **body["options"]))})


def _encode_many(model: GritLM, body: Mapping[str, Any], emit: Emit) -> None:
    """The vectors of a window of texts, as ``GritLM.encode_iter`` gives them."""

    def report(done: float) -> None:
        emit({"done": done})

    options = model.embedding_options(**body["options"])
    vectors, _ = model.embedder.embed(body["texts"], options, first_index=body["first_index"], progress=report)
    for start in range(0, len(vectors), _VECTORS):
        emit({"vectors": _packed(vectors[start : start + _VECTORS])})


def _named_store(model: GritLM, body: Mapping[str, Any], emit: Emit) -> Store | None:
    """The store that a command names; None, which it is told, where another model is to be used with it."""
    store = Store(body["store"], options=StoreOptions(**body["caches"]))
    store.require()
    if not body["named"] and not store.takes(model):
        emit({"other": True})  # the command loads the model that the store was made with
        return None
    return store


def _ask(model: GritLM, body: Mapping[str, Any], emit: Emit) -> None:
    """What ``grit rag ask`` does with a store."""
    chosen = RagOptions(**body["chosen"])
    store = _named_store(model, body, emit)
    if store is None:
        return
    emit({"passages": len(store)})
    if not body["answering"] and not chosen.rerank:
        if chosen.method != "bm25":
            store.use(model)
        _found(store.search(body["question"], chosen), emit)
        return
    rag = Rag(model, store, chosen)
    results = rag.find(body["question"])
    _found(results, emit)
    if body["answering"]:
        _answered(rag.respond(results, **body["sampling"]), emit)


def _answered(response: RagResponse, emit: Emit) -> None:
    answer = response.answer
    if answer is None:
        return
    given = [asdict(one) for one in response.results]
    if answer.quotes:
        emit({"quotes": [{**asdict(one), "passage": asdict(one.passage)} for one in answer.quotes], "given": given})
        return
    names = ("mode", "cached_tokens", "computed_tokens", "generated_tokens", "finish_reason", "left_out", "forgotten")

    def told() -> dict[str, Any]:
        seconds = {"seconds_to_first_token": answer.seconds_to_first_token, "seconds": answer.seconds}
        return seconds | {name: getattr(answer, name) for name in names}

    emit({"answer": told(), "piece": "", "given": given})
    for piece in answer:
        emit({"answer": told(), "piece": piece})
    emit({"answer": told(), "piece": ""})


def _found(results: SearchResults, emit: Emit) -> None:
    found = {"question": results.question, "relevant": results.relevant}
    found |= {"relevance": results.relevance, "needed": results.needed}
    emit({**found, "results": [asdict(one) for one in results]})


def _packed(vectors: Any) -> dict[str, Any]:
    array = np.ascontiguousarray(vectors, dtype="<f4")
    return {"shape": array.shape, "data": base64.b64encode(array.tobytes()).decode("ascii")}


class _Forwarding(logging.Handler):
    """Sends what is logged while a request is computed to the command, which shows it."""

    def emit(self, record: logging.LogRecord) -> None:
        send = _emit.get()
        if send is not None:
            arguments = record.args if isinstance(record.args, tuple) else ()
            extra = {name: record.__dict__[name] for name in ("cut_texts", "cut_at") if name in record.__dict__}
            with suppress(_GoneError):
                send({"log": [record.levelno, str(record.msg), [_spelled(one) for one in arguments], extra]})


def _spelled(part: Any) -> Any:
    """A part of a message: options keep their names, which each command spells in its own way."""
    if isinstance(part, Option):
        return {"option": part.name, "value": part.value}
    return part if isinstance(part, str | int | float) else str(part)


def _told(error: Exception) -> dict[str, Any]:
    known = worded(error)
    others = {name: value for name, value in vars(known).items() if name in ("index", "path", "line")}
    kind = next(one.__name__ for one in type(known).__mro__ if one.__module__ == GritError.__module__)
    return {"error": [kind, [_spelled(part) for part in known.parts], others]}


async def _lines(call: Callable[[Emit], None]) -> AsyncGenerator[bytes, None]:
    """What a call emits, from a thread of its own; its next step fails once nobody reads."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()
    gone = threading.Event()

    def emit(item: Mapping[str, Any]) -> None:
        if gone.is_set():
            raise _GoneError
        loop.call_soon_threadsafe(arrived.put_nowait, item)

    def work() -> None:
        _emit.set(emit)
        with suppress(_GoneError, RuntimeError):  # the loop may be closed
            try:
                call(emit)
            except _GoneError:
                return
            except Exception as error:
                emit(_told(error))
            emit({"end": True})

    threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True).start()
    try:
        while True:
            item = await arrived.get()
            yield json.dumps(item).encode() + b"\n"
            if "end" in item:  # type: ignore[operator]
                return
    finally:
        gone.set()
