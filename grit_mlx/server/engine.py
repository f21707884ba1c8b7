"""The engine: embeddings and answers of several models, computed side by side in one process.

One thread schedules: it takes what arrived, computes a batch of embeddings, then the next token of every answer, and
hands over what is done. mlx computes in the library's own thread (``model/threads.py``). Whoever asks, in whatever
thread, gets a future, or is called with each token::

    engine = Engine()
    lane = engine.open(GritLM())
    vectors = lane.embed(["a text"]).result().vectors
    lane.generate(prompt, print)
    engine.stop()

- All texts that wait are embedded together, whichever requests they belong to and whatever their instruction; there is
  no timer: what arrives during a step is the next batch.
- While answers are being written a batch is bounded by time, so that no stream waits for a large request, and both get
  half of the time.
- What fails, fails alone: the others of its batch are computed again.
- Of a model that is split among processes this is the one that leads (``model/team.py``). While nothing is asked the
  others rest, and where one of them has ended, the engine does.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from mlx_lm.models.cache import LRUPromptCache
from numpy.typing import NDArray

from grit_mlx.errors import ProcessError, ServerError, TextError
from grit_mlx.model import device, threads
from grit_mlx.model.embedding import Piece
from grit_mlx.model.inputs import token_ids
from grit_mlx.model.options import EmbeddingOptions
from grit_mlx.server.decoding import Answer, Decoder, Prompt, Token, within_context, worded

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM
    from grit_mlx.model.embedding import Embedder
    from grit_mlx.model.team import Team

__all__ = ["Counts", "Embedded", "Engine", "Lane"]

logger = logging.getLogger("grit_mlx")

# Seconds that a batch of embeddings may take while answers are being written, and its tokens as long as the model's
# speed is not known.
_STEP_SECONDS: Final = 0.08
_FIRST_STEP: Final = 256

# Seconds for which a model's answers are written before another model's turn. Alone it goes on until a request arrives:
# a turn more costs two changes of threads.
_TURN_SECONDS: Final = 0.05
_ALONE_SECONDS: Final = 1.0

# Requests with more texts are batches of their own: they can be abandoned when nobody wants them any more.
_SHARED_TEXTS: Final = 256

_LANE_PREFIXES: Final = 64  # prompts that are kept, at most, whatever their size

# Seconds for which other processes rest, the first time and at most: a request may have to wait for that long.
_FIRST_REST: Final = 0.005
_LONGEST_REST: Final = 0.1


@dataclass(frozen=True)
class Embedded:
    """What became of some texts.

    Attributes:
        vectors: ``(N, E)`` float32.
        tokens: how many were read, instructions included.
    """

    vectors: NDArray[np.float32]
    tokens: int


@dataclass
class Counts:
    """What the engine has done since it started."""

    texts: int = 0
    embedding_requests: int = 0
    embedding_batches: int = 0
    embedding_tokens: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    written_tokens: int = 0


@dataclass
class _Texts:
    """The texts of one request."""

    pieces: list[Piece]
    count: int
    future: Future[Embedded]

    @property
    def tokens(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces)


class _Task:
    """Something that is computed in steps, for one future or several."""

    def __init__(self, steps: Generator[Any, None, Any], futures: Sequence[Future[Any]]) -> None:
        self._steps = steps
        self._futures = futures

    def step(self) -> bool:
        """Compute the next step; whether there is another one."""
        if all(future.cancelled() for future in self._futures):
            self._steps.close()
            return False
        try:
            self.stepped(next(self._steps))
        except StopIteration as end:
            self.succeed(end.value)
        except Exception as error:
            self.fail(error)
        else:
            return True
        return False

    def stepped(self, done: Any) -> None:
        """Called after each step."""

    def succeed(self, result: Any) -> None:
        """Called with the result."""
        for future in self._futures:
            _settle(future, result)

    def fail(self, error: Exception) -> None:
        """Called with what went wrong."""
        for future in self._futures:
            _settle(future, worded(error))

    def abandon(self) -> None:
        """Called where the engine stops first."""
        self._steps.close()
        self.fail(ServerError("The server is stopping."))


class _Batch(_Task):
    """The texts of several requests, embedded together."""

    def __init__(self, lane: Lane, requests: Sequence[_Texts]) -> None:
        self._lane = lane
        self._requests = requests
        pieces, count = [], 0
        for request in requests:
            pieces += [replace(piece, text=count + piece.text) for piece in request.pieces]
            count += request.count
        steps = lane.embedder.steps(pieces, count, EmbeddingOptions(), limit=lane.limit)
        super().__init__(steps, [request.future for request in requests])
        self._started = time.perf_counter()

    def step(self) -> bool:
        self._started = time.perf_counter()
        return super().step()

    def stepped(self, done: Any) -> None:
        self._lane.engine.counts.embedding_batches += 1
        self._lane.measured(done.tokens, time.perf_counter() - self._started)

    def succeed(self, result: Any) -> None:
        vectors, start, counts = result[0], 0, self._lane.engine.counts
        for request in self._requests:
            counts.texts += request.count
            counts.embedding_tokens += request.tokens
            _settle(request.future, Embedded(vectors[start : start + request.count], request.tokens))
            start += request.count

    def fail(self, error: Exception) -> None:
        if len(self._requests) == 1 or isinstance(error, ServerError):
            super().fail(error)
            return
        for request in self._requests:
            self._lane.engine.begin(_Batch(self._lane, [request]))


@dataclass(eq=False)
class Lane:
    """One model's place in the engine. Its methods may be called by any thread.

    Attributes:
        engine: whose.
        model: the model.
    """

    engine: Engine
    model: GritLM
    decoder: Decoder | None = None
    waiting: deque[_Texts] = field(default_factory=deque)
    _tokens_per_second: float | None = None

    @property
    def embedder(self) -> Embedder:
        """Of the model."""
        return self.model.embedder

    def embed(self, texts: Sequence[str], **options: Any) -> Future[Embedded]:
        """Embed texts; ``options`` are ``GritLM.encode``'s, without ``get_cache`` and ``batch_size``.

        They are tokenised at once, in the caller's thread.

        Raises:
            TextError: names the index of a text that cannot be embedded.
            ArgumentError: an option that cannot work.
        """
        future: Future[Embedded] = Future()
        if not texts:
            future.set_result(Embedded(np.zeros((0, self.model.embedding_size), dtype=np.float32), 0))
            return future
        return self._queued(self.embedder.pieces(texts, self.model.embedding_options(**options)), len(texts), future)

    def embed_ids(self, rows: Sequence[Sequence[int]]) -> Future[Embedded]:
        """Embed token ids as they are, without an instruction.

        Raises:
            TextError: names the index of a row that is too long, or has an id that the model does not.
        """
        longest = self.model.settings.max_length
        for index, row in enumerate(rows):
            if not 0 < len(row) <= longest:
                raise TextError(f"Text {index} has {len(row)} tokens, not 1 to {longest}.", index=index)
            token_ids(row, rows=self.model.rows, what=f"text {index}")
        return self._queued([Piece(i, list(row), 0) for i, row in enumerate(rows)], len(rows), Future())

    def _queued(self, pieces: list[Piece], count: int, future: Future[Embedded]) -> Future[Embedded]:
        self.engine.counts.embedding_requests += 1
        self.engine.call(lambda: self.waiting.append(_Texts(pieces, count, future)))
        return future

    def generate(self, prompt: Prompt, deliver: Callable[[Token | Exception], None]) -> Answer:
        """Generate an answer.

        Args:
            prompt: what from; its options are cut to the model's context.
            deliver: called by a thread of the engine's with each token, or with the error that ends the answer.

        Returns:
            The answer, for ``cancel``.

        Raises:
            ModeError: the model cannot generate.
        """
        self.model.check_generates()
        answer = Answer(within_context(self.model, prompt), deliver)
        self.engine.call(lambda: self._begin(answer))
        return answer

    def cancel(self, answer: Answer) -> None:
        """End an answer that nobody wants any more."""
        self.engine.call(lambda: self.decoder.remove(answer) if self.decoder is not None else None)

    def compute(self, steps: Generator[Any, None, Any]) -> Future[Any]:
        """Run a generator, a step at a time between those of others; its value is the future's result."""
        future: Future[Any] = Future()
        self.engine.call(lambda: self.engine.begin(_Task(steps, [future])))
        return future

    def _begin(self, answer: Answer) -> None:
        if self.decoder is None:
            self.decoder = Decoder(self.model, self.engine.prefixes)
        self.engine.counts.answers += 1
        self.decoder.add(answer)
        self.engine.counts.prompt_tokens += len(answer.prompt.tokens)
        self.engine.counts.reused_tokens += answer.reused or 0

    def limit(self) -> int | None:
        """Tokens of the next batch of embeddings, so that no stream stalls; None while nothing is written."""
        if not self.engine.is_writing:
            return None
        speed = self._tokens_per_second
        return _FIRST_STEP if speed is None else max(1, int(speed * _STEP_SECONDS))

    def measured(self, tokens: int, seconds: float) -> None:
        """Note the speed of a batch."""
        speed = tokens / max(seconds, 1e-6)
        known = self._tokens_per_second
        self._tokens_per_second = speed if known is None else 0.7 * known + 0.3 * speed


class Engine:
    """See above.

    Args:
        prefix_bytes: memory for keys and values of earlier prompts.

    Attributes:
        counts: what it has done.
        on_loss: called in the engine's thread, which ends then, where the processes of a model that is split cannot go
            on together.
    """

    def __init__(self, *, prefix_bytes: int = 1 << 30) -> None:
        self.counts = Counts()
        self.on_loss: Callable[[ProcessError], None] = lambda _: None
        self._team: Team | None = None
        self.prefixes = LRUPromptCache(max_size=_LANE_PREFIXES, max_bytes=prefix_bytes)
        self._lanes: list[Lane] = []
        self._tasks: deque[_Task] = deque()
        self._inbox: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._owed = 0.0  # seconds that answers are to be written before the next batch of embeddings
        self._lock = threading.Lock()
        self._stopping = self._closed = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="grit-engine", daemon=True)
        self._thread.start()

    def open(self, model: GritLM) -> Lane:
        """A place for a model."""
        lane = Lane(self, model)

        def begin() -> None:
            self._lanes.append(lane)
            self._team = model.team

        self.call(begin)
        return lane

    def close(self, lane: Lane) -> None:
        """Forget a model, and what was computed with it."""

        def forget() -> None:
            with suppress(ValueError):
                self._lanes.remove(lane)
            if lane.decoder is not None:
                lane.decoder.close()
            self.prefixes.trim_to(n_sequences=0)

        self.call(forget)

    def stop(self, patience: float = 0.0) -> None:
        """End the thread, after what is being computed if that takes no longer than ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while self.active and time.monotonic() < deadline:
            time.sleep(0.02)
        self._stopping = True
        with suppress(ServerError):  # it is stopped
            self.call(lambda: None)
        self._stopped.wait(30)

    @property
    def is_writing(self) -> bool:
        """Whether answers are being written."""
        return any(lane.decoder for lane in self._lanes if lane.decoder is not None)

    @property
    def active(self) -> int:
        """Requests that wait or are being computed."""
        answers = sum(len(lane.decoder) for lane in list(self._lanes) if lane.decoder is not None)
        return answers + len(self._tasks) + sum(len(lane.waiting) for lane in list(self._lanes)) + self._inbox.qsize()

    def call(self, function: Callable[[], Any]) -> None:
        """Have the engine's thread call this before its next step."""
        with self._lock:
            if self._closed:
                raise ServerError("The server is stopping.")
            self._inbox.put(function)

    def begin(self, task: _Task) -> None:
        """In the engine's thread: compute this as well."""
        self._tasks.append(task)

    def _work(self) -> None:
        with device.wired():
            while not self._stopping and (self._team is None or self._team.lost is None):
                with suppress(ProcessError):  # the team is lost
                    self._take()
                    self._step()
        self._stopping = True
        if self._team is not None and self._team.lost is not None:
            self.on_loss(self._team.lost)
        with self._lock:
            self._closed = True
        self._take()
        for lane in self._lanes:
            if lane.decoder is not None:
                lane.decoder.close()
            for request in lane.waiting:
                _settle(request.future, ServerError("The server is stopping."))
        for task in self._tasks:
            task.abandon()
        self._stopped.set()

    def _take(self) -> None:
        """What arrived; waits for something if there is nothing to do."""
        wait = not (self._tasks or self.is_writing or self._stopping)
        with suppress(queue.Empty):
            while True:
                arrived = self._awaited() if wait else self._inbox.get_nowait()
                wait = False
                try:
                    arrived()
                except ProcessError:  # the loop ends
                    pass
                except Exception as error:
                    logger.error("Unexpected error", exc_info=error)
        for lane in self._lanes:
            self._gather(lane)

    def _awaited(self) -> Callable[[], Any]:
        """What arrives next."""
        if self._team is None:
            return self._inbox.get()
        seconds = _FIRST_REST
        while True:
            threads.run(self._team.rest, seconds)
            with suppress(queue.Empty):
                return self._inbox.get(timeout=seconds)
            seconds = min(2 * seconds, _LONGEST_REST)

    def _gather(self, lane: Lane) -> None:
        """Make batches of the texts that wait."""
        together: list[_Texts] = []
        while lane.waiting:
            request = lane.waiting.popleft()
            if request.future.cancelled():
                continue
            if request.count > _SHARED_TEXTS:
                self.begin(_Batch(lane, [request]))
            else:
                together.append(request)
        if together:
            self.begin(_Batch(lane, together))

    def _step(self) -> None:
        if self._tasks and (self._owed <= 0 or not self.is_writing):
            begun = time.perf_counter()
            task = self._tasks.popleft()
            if task.step():
                self._tasks.append(task)
            self._owed = time.perf_counter() - begun
        writing = [lane for lane in self._lanes if lane.decoder is not None and len(lane.decoder)]
        turn = _ALONE_SECONDS if len(writing) == 1 else _TURN_SECONDS
        for lane in writing:
            if lane.decoder is not None:
                begun = time.perf_counter()
                seconds = min(max(self._owed, 0.0), _STEP_SECONDS) if self._tasks else turn
                self.counts.written_tokens += lane.decoder.step(seconds, lambda: not self._inbox.empty())
                self._owed -= time.perf_counter() - begun


def _settle(future: Future[Any], result: Any) -> None:
    """Give a future its result or its error, unless it was cancelled."""
    with suppress(CancelledError, Exception):
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
