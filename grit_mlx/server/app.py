"""The HTTP side: routes, and what each of them does. Shapes are ``openai``'s, ``anthropic``'s and ``reranking``'s."""

from __future__ import annotations

import asyncio
import codecs
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial, wraps
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from grit_mlx.errors import ArgumentError, GritError, Option
from grit_mlx.server import anthropic, openai, page, reranking, warm
from grit_mlx.server.engine import Lane
from grit_mlx.server.fields import object_of, read
from grit_mlx.server.guard import Guard
from grit_mlx.server.hosting import Host, Place, Target
from grit_mlx.server.metrics import CONTENT_TYPE, metrics
from grit_mlx.server.replies import Refusal, RefusedError, refusal_of
from grit_mlx.server.scoring import likelihoods, scored
from grit_mlx.server.stores import FileRequest, SearchRequest
from grit_mlx.server.streaming import DONE, EventStream, GoneError, event, wanted
from grit_mlx.server.work import Work, chat_work, chosen_logprobs, echoed, prompt_work, token_bytes, token_text

__all__ = ["Endpoints", "application", "routes"]

logger = logging.getLogger("grit_mlx")

T = TypeVar("T")

Handler = Callable[..., Awaitable[Response]]

_IDLE_CHECK_SECONDS = 15.0

# Characters that are tokenised faster than another thread is begun.
_AT_ONCE = 4000


def endpoint(method: Handler) -> Handler:
    """A handler whose errors become responses."""

    @wraps(method)
    async def handle(self: Endpoints, request: Request) -> Response:
        try:
            return await method(self, request)
        except (GoneError, ClientDisconnect):
            return Response(status_code=499)
        except Exception as error:
            if not isinstance(error, GritError):
                logger.error("Unexpected error", exc_info=error)
            return _refused(refusal_of(error), request)

    return handle


class Endpoints:
    """Handlers of requests.

    Args:
        host: models and stores.
    """

    def __init__(self, host: Host) -> None:
        self.host = host

    # What the server is

    async def health(self, request: Request) -> Response:
        """Whether requests can be answered."""
        if self.host.ready:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "loading"}, 503, {"retry-after": "1"})

    async def models(self, request: Request) -> Response:
        """The models that requests may name."""
        return JSONResponse(openai.models_reply(self.host.names()))

    @endpoint
    async def model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        self.host.target(name)
        listed = openai.models_reply({name: self.host.names().get(name, 0)})
        return JSONResponse(listed["data"][0])

    async def metrics(self, request: Request) -> Response:
        """Counts, for Prometheus."""
        return Response(metrics(self.host), media_type=None, headers={"content-type": CONTENT_TYPE})

    # Embedding

    @endpoint
    async def embeddings(self, request: Request) -> Response:
        """OpenAI's embeddings."""
        asked = openai.embedding_request(await _body(request))
        target = self.host.target(asked.model)
        given = openai.embedding_input(asked, ids=self.host.options.token_ids)
        async with self._entered(target) as lane:
            size = lane.model.embedding_size
            if asked.dimensions not in (None, size):
                raise ArgumentError(
                    Option("dimensions"),
                    f" must be {size}, the model's own: it was not trained for vectors that are cut short.",
                )
            begin = partial(
                lane.embed,
                given,
                instruction=asked.instruction,
                role=asked.role or target.role or "document",
                long_texts="truncate" if asked.truncate else "refuse",
            )
            if given and not isinstance(given[0], str):
                begin = partial(lane.embed_ids, given)
            short = sum(map(len, given)) < _AT_ONCE
            done = await wanted(request, asyncio.wrap_future(begin()) if short else _result(begin))
        return JSONResponse(openai.embedding_reply(done.vectors, asked, target.name, done.tokens))

    @endpoint
    async def rerank(self, request: Request) -> Response:
        """Cohere's, Jina's and others' reranking."""
        asked = reranking.rerank_request(await _body(request))
        target = self.host.target(asked.model)
        async with self._entered(target) as lane:
            how = self.host.options.rerank or ("likelihood" if lane.model.settings.generates else "cosine")
            work = _likely if how == "likelihood" else _alike
            scores = await wanted(request, work(lane, asked.query, asked.texts))
            tokens = await asyncio.to_thread(_count, lane, [asked.query, *asked.texts])
        return JSONResponse(reranking.rerank_reply(asked, scores, target.name, tokens))

    # Generating

    @endpoint
    async def chat(self, request: Request) -> Response:
        """OpenAI's chats."""
        asked = openai.chat_request(await _body(request))
        messages = openai.messages_of(asked.messages)
        target = self.host.target(asked.model)
        place, lane = await self._enter(target)
        try:
            options = asked.options(asked.limit)
            work = await wanted(request, chat_work(lane, target, messages, options, logprobs=asked.alternatives))
            if asked.stream:
                return EventStream(_chat_events(work, target.name, with_usage=asked.with_usage), place.leave)
            message = await wanted(request, _chat_message(work))
        except BaseException:
            place.leave()
            raise
        place.leave()
        name = openai.identifier("chatcmpl")
        return JSONResponse(openai.chat_reply(name, target.name, message, work.reason, work.usage))

    @endpoint
    async def completions(self, request: Request) -> Response:
        """OpenAI's completions."""
        asked = openai.completion_request(await _body(request))
        prompts = asked.prompts
        target = self.host.target(asked.model)
        if target.store is not None:
            raise ArgumentError(Option("model"), " answers chats only: use /v1/chat/completions.")
        if asked.stream and asked.echo and asked.logprobs is not None:
            raise ArgumentError(Option("stream"), " does not work with echo and logprobs together.")
        place, lane = await self._enter(target)
        try:
            options = asked.options(16)
            begin = partial(prompt_work, lane, options=options, logprobs=asked.logprobs)
            works = [await asyncio.to_thread(begin, prompt=prompt) for prompt in prompts]
            if asked.stream:
                return EventStream(_completion_events(works, asked, target.name), place.leave)
            made = [_completion(i, work, asked) for i, work in enumerate(works)]
            choices = await wanted(request, _together(made))
        except BaseException:
            place.leave()
            raise
        place.leave()
        name = openai.identifier("cmpl")
        return JSONResponse(openai.completion_reply(name, target.name, choices, _summed(works)))

    @endpoint
    async def messages(self, request: Request) -> Response:
        """Anthropic's messages."""
        asked = anthropic.message_request(await _body(request))
        target = self.host.target(asked.model)
        place, lane = await self._enter(target)
        try:
            work = await wanted(request, chat_work(lane, target, asked.chat, asked.options))
            if asked.stream:
                return EventStream(_message_events(work, target.name), place.leave)
            message = await wanted(request, _chat_message(work))
        except BaseException:
            place.leave()
            raise
        place.leave()
        return JSONResponse(anthropic.message_reply(target.name, message, work))

    @endpoint
    async def count_tokens(self, request: Request) -> Response:
        """How many tokens Anthropic's messages have."""
        asked = anthropic.message_request({"max_tokens": 1, **await _body(request)})
        target = self.host.target(asked.model)
        async with self._entered(target) as lane:
            work = await asyncio.to_thread(prompt_work, lane, asked.chat, asked.options)
        return JSONResponse({"input_tokens": work.usage.prompt})

    # Stores

    @endpoint
    async def stores(self, request: Request) -> Response:
        """What is served of stores."""
        held = [await asyncio.wrap_future(store.run(store.status)) for store in self.host.stores.values()]
        return JSONResponse({"object": "list", "data": held})

    @endpoint
    async def store(self, request: Request) -> Response:
        """What one of them holds."""
        store, _ = self.host.store(request.path_params["name"])
        return JSONResponse(await asyncio.wrap_future(store.run(store.status)))

    @endpoint
    async def search(self, request: Request) -> Response:
        """Passages for a query."""
        store, model = self.host.store(request.path_params["name"])
        asked = read(SearchRequest, await _body(request))
        async with self._entered(Target(store.name, model)) as lane:
            found = store.run(store.search, lane, asked)
            return JSONResponse(await wanted(request, asyncio.wrap_future(found)))

    @endpoint
    async def file(self, request: Request) -> Response:
        """A part of an indexed file."""
        store, _ = self.host.store(request.path_params["name"])
        asked = FileRequest.of(request.query_params)
        part = store.run(store.file, asked.path, line=asked.line, count=asked.count)
        return JSONResponse(await wanted(request, asyncio.wrap_future(part)))

    # Places

    async def _enter(self, target: Target) -> tuple[Place, Lane]:
        place = self.host.enter(target.model)
        try:
            lane = target.model.loaded_lane()
            if lane is None:
                lane = await asyncio.to_thread(target.model.lane)
            return place, lane
        except BaseException:
            place.leave()
            raise

    @asynccontextmanager
    async def _entered(self, target: Target) -> AsyncIterator[Lane]:
        place, lane = await self._enter(target)
        try:
            yield lane
        finally:
            place.leave()


async def _body(request: Request) -> dict[str, Any]:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        message = f"The body is compressed ({encoding:.40}), which is not supported. Send it as it is."
        raise RefusedError(Refusal(415, message, code="unsupported_encoding"))
    body = await request.body()
    return await asyncio.to_thread(object_of, body) if len(body) > 100_000 else object_of(body)


def _refused(refusal: Refusal, request: Request) -> Response:
    body = refusal.anthropic if request.url.path.startswith("/v1/messages") else refusal.openai
    return JSONResponse(body, refusal.status, refusal.headers)


async def _result(begin: Callable[[], Any]) -> Any:
    """The result of a job of the engine that is begun in another thread, for tokenising takes a while."""
    return await asyncio.wrap_future(await asyncio.to_thread(begin))


async def _likely(lane: Lane, query: str, documents: list[str]) -> list[float]:
    lane.model.check_generates()
    scores: list[float] = await asyncio.wrap_future(lane.compute(likelihoods(lane.model, query, documents)))
    return scores


async def _alike(lane: Lane, query: str, documents: list[str]) -> list[float]:
    asked = await _result(partial(lane.embed, [query], role="query"))
    found = await _result(partial(lane.embed, documents, role="document"))
    scores = (found.vectors @ asked.vectors[0]) / np.linalg.norm(found.vectors, axis=1) / np.linalg.norm(asked.vectors)
    return [float(score) for score in scores]


def _count(lane: Lane, texts: list[str]) -> int:
    return sum(len(lane.model.tokenizer.encode(text, add_special_tokens=False)) for text in texts)


async def _chat_message(work: Work) -> dict[str, Any]:
    """A complete answer as OpenAI's message."""
    text, logprobs = "", []
    async for token in work.tokens():
        text += token.text
        if token.logprob is not None:
            logprobs.append(chosen_logprobs(work.lane.model, token))
    message: dict[str, Any] = {"content": (text + work.tail).strip() if not text else text + work.tail}
    if logprobs:
        message["logprobs"] = {"content": logprobs, "refusal": None}
    return message if work.citations is None else {**message, "citations": work.citations}


async def _chat_events(work: Work, model: str, *, with_usage: bool) -> AsyncGenerator[bytes, None]:
    name = openai.identifier("chatcmpl")
    chunk = partial(openai.chat_chunk, name, model)
    # First and last: who stops an answer has the sources of what was written.
    cited: dict[str, Any] = {} if work.citations is None else {"citations": work.citations}
    yield event(chunk({"role": "assistant", "content": "", **cited}))
    tokens = work.tokens()
    try:
        async for token in tokens:
            told = None if token.logprob is None else [chosen_logprobs(work.lane.model, token)]
            if token.text or told:
                extra = {} if told is None else {"logprobs": {"content": told, "refusal": None}}
                yield event(chunk({"content": token.text, **extra}))
        if work.tail:
            yield event(chunk({"content": work.tail if work.written else work.tail.strip()}))
        yield event(chunk(cited, work.reason))
        if with_usage:
            yield event(chunk(None, usage=work.usage))
        yield DONE
    except Exception as error:
        yield event(_told(error).openai)
    finally:
        await tokens.aclose()


async def _message_events(work: Work, model: str) -> AsyncGenerator[bytes, None]:
    tokens = work.tokens()
    try:
        for one in anthropic.first_events(model, work):
            yield event(one, one["type"])
        async for token in tokens:
            if token.text:
                yield event(anthropic.piece(token.text), "content_block_delta")
        if work.tail:
            yield event(anthropic.piece(work.tail if work.written else work.tail.strip()), "content_block_delta")
        for one in anthropic.last_events(work):
            yield event(one, one["type"])
    except Exception as error:
        yield event(_told(error).anthropic, "error")
    finally:
        await tokens.aclose()


def _told(error: Exception) -> Refusal:
    if not isinstance(error, GritError):
        logger.error("Unexpected error", exc_info=error)
    return refusal_of(error)


async def _completion(index: int, work: Work, asked: openai.CompletionRequest) -> dict[str, Any]:
    """One text of a completion."""
    assert work.prompt is not None
    model, told = work.lane.model, asked.logprobs is not None
    prompt = list(work.prompt.tokens)
    shown = _Logprobs(model)
    text = ""
    if asked.echo:
        text = echoed(work)
        if told:
            scores = await asyncio.wrap_future(work.lane.compute(scored(model, prompt, asked.logprobs or 0)))
            for number, score in zip(prompt, scores, strict=True):
                shown.add(number, score.logprob, score.top)
    if asked.max_tokens != 0:
        async for token in work.tokens():
            text += token.text
            if told:
                shown.add(token.id, token.logprob, token.top)
    reason = work.reason if asked.max_tokens != 0 else "length"
    return openai.completion_choice(index, text, reason, shown.take() if told else None)


class _Logprobs:
    """Log-probabilities in the shape of OpenAI's completions."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._length = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._columns: dict[str, list[Any]] = {}
        self.take()

    def take(self) -> dict[str, list[Any]]:
        """What was added since this was last called."""
        taken = self._columns
        self._columns = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        return taken

    def add(self, token: int, logprob: float | None, top: Any) -> None:
        """The next token, the likeliest in its place after it."""
        best: dict[str, float] = {}
        for other, value in top:
            best.setdefault(self._name(other), value)
        row = (self._name(token), logprob, None if logprob is None else best, self._length)
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)
        if token not in self._model.tokenizer.all_special_ids:  # they are not in the text
            spelled = token_bytes(self._model, token)
            text = token_text(self._model, token) if spelled is None else self._decoder.decode(spelled)
            self._length += len(text)

    def _name(self, token: int) -> str:
        """A token's text; of a part of a character its bytes as OpenAI writes them, or several would have one name."""
        text = token_text(self._model, token)
        if "\ufffd" not in text or not (spelled := token_bytes(self._model, token)):
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


async def _together(works: list[Any]) -> list[Any]:
    """The results of several coroutines; all are cancelled where one fails."""
    tasks = [asyncio.ensure_future(one) for one in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _completion_events(
    works: list[Work], asked: openai.CompletionRequest, model: str
) -> AsyncGenerator[bytes, None]:
    """Pieces of several texts as they come."""
    name = openai.identifier("cmpl")
    choices = [_completion_choices(i, work, asked) for i, work in enumerate(works)]
    together = choices[0] if len(choices) == 1 else _merged(choices)
    try:
        async for choice in together:
            yield event(openai.completion_reply(name, model, [choice], None))
        if asked.with_usage:
            yield event(openai.completion_reply(name, model, [], _summed(works)))
        yield DONE
    except Exception as error:
        yield event(_told(error).openai)
    finally:
        await together.aclose()


async def _completion_choices(
    index: int, work: Work, asked: openai.CompletionRequest
) -> AsyncGenerator[dict[str, Any], None]:
    """Pieces of one text."""
    choice = partial(openai.completion_choice, index)
    shown = _Logprobs(work.lane.model)
    tokens = work.tokens()
    try:
        if asked.echo:
            yield choice(echoed(work), None)
        async for token in tokens:
            told = None
            if asked.logprobs is not None:
                shown.add(token.id, token.logprob, token.top)
                told = shown.take()
            if token.text or told or token.finish_reason:
                yield choice(token.text, token.finish_reason, told)
    finally:
        await tokens.aclose()


async def _merged(streams: list[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """The items of several streams as they come; all end where one fails."""
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    async def follow(stream: AsyncGenerator[T, None]) -> None:
        try:
            async for item in stream:
                await arrived.put((item, None))
            await arrived.put((None, None))
        except Exception as error:
            await arrived.put((None, error))
        finally:
            await stream.aclose()

    tasks = [asyncio.create_task(follow(stream)) for stream in streams]
    try:
        left = len(tasks)
        while left:
            item, error = await arrived.get()
            if error is not None:
                raise error
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _summed(works: list[Work]) -> openai.Usage:
    usages = [work.usage for work in works]
    return openai.Usage(
        sum(usage.prompt for usage in usages),
        sum(usage.completion for usage in usages),
        sum(usage.cached for usage in usages),
    )


def routes(host: Host) -> list[BaseRoute]:
    """What the server answers."""
    ends = Endpoints(host)
    get: dict[str, Handler] = {
        "/health": ends.health,
        "/metrics": ends.metrics,
        "/v1/models": ends.models,
        "/v1/models/{name:path}": ends.model,
        "/v1/stores": ends.stores,
        "/v1/stores/{name}": ends.store,
        "/v1/stores/{name}/file": ends.file,
    }
    post: dict[str, Handler] = {
        "/v1/embeddings": ends.embeddings,
        "/v1/chat/completions": ends.chat,
        "/v1/completions": ends.completions,
        "/v1/messages": ends.messages,
        "/v1/messages/count_tokens": ends.count_tokens,
        "/v1/stores/{name}/search": ends.search,
        **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), ends.rerank),
    }
    return [
        *(Route(path, handler, methods=["GET"]) for path, handler in get.items()),
        *(Route(path, handler, methods=["POST"]) for path, handler in post.items()),
    ]


def application(
    host: Host,
    *,
    keys: list[str] | None = None,
    loaded: Callable[[GritError | None], None] = lambda _: None,
    more: list[BaseRoute] | None = None,
) -> Guard:
    """The server as an ASGI application.

    Args:
        host: models and stores, not yet loaded.
        keys: see ``Guard``.
        loaded: called once, by the loop's thread, when everything is loaded, or with what went wrong.
        more: further routes.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_load(host, loaded)), asyncio.create_task(_watch_idle(host))]
        try:
            async with AsyncExitStack() as running:
                if tools is not None:
                    await running.enter_async_context(tools.router.lifespan_context(tools))
                yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(host.stop, 0.0)

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path:.100} is not something that this server does."
        code = "not_found"
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            message, code = f"{request.url.path:.100} takes {allowed}, not {request.method}.", "method_not_allowed"
        refused = _refused(Refusal(error.status_code, message, code=code), request)
        refused.headers.update(error.headers or {})
        return refused

    async def itself(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    tools = _tools(itself)
    app = Starlette(
        routes=[
            *routes(host),
            *page.routes(),
            # Commands compute in an order of their own, which other processes do not follow.
            *(() if host.is_split else warm.routes(host)),
            *(tools.routes if tools is not None else ()),
            *(more or []),
        ],
        lifespan=lifespan,
        exception_handlers={404: refuse, 405: refuse},
    )
    return Guard(app, host=host.options.host, keys=keys or (), origins=host.options.origins)


def _tools(app: ASGIApp) -> Starlette | None:
    """The tools at ``/mcp``; None where mcp is not installed."""
    if find_spec("mcp") is None:
        return None
    from grit_mlx.server.tools import mcp_app

    tools: Starlette = mcp_app(app)
    return tools


async def _load(host: Host, loaded: Callable[[GritError | None], None]) -> None:
    try:
        await asyncio.to_thread(host.load)
    except GritError as error:
        loaded(error)
    except Exception as error:
        logger.error("Unexpected error", exc_info=error)
        loaded(refusal_error(error))
    else:
        loaded(None)


def refusal_error(error: Exception) -> GritError:
    """An unexpected error of loading, as one that has a message."""
    from grit_mlx.server.decoding import worded

    return worded(error)


async def _watch_idle(host: Host) -> None:
    while True:
        await asyncio.sleep(min(_IDLE_CHECK_SECONDS, max(0.05, 15 * host.options.idle)))
        with suppress(GritError):
            await asyncio.to_thread(host.unload_idle)
