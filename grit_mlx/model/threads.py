"""Which thread mlx computes in: one of ours, for all that does not come from the main thread.

mlx binds streams and compiled functions to the thread that made them, keeps a native thread for each stream for as
long as the process lives, and aborts if a thread that computed is still alive, or just ending, when the interpreter
does (ml-explore/mlx#3126 and #4506). So work from threads other than the main one is done by one worker, in turn,
and the worker ends before the interpreter does. Thread pools, ``asyncio.to_thread``, a web framework's threads and
daemon threads are all the same to it. Answers are generated there in any case: mlx-lm keeps a stream open between two
tokens, which only the thread that opened it can close, and Ctrl-C then never stops a step half-way.

A process that was forked after its parent computed has none of mlx's threads: it is refused, or it would wait forever.
"""

from __future__ import annotations

import atexit
import contextvars
import os
import queue
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import Any, Final, ParamSpec, TypeVar

import mlx.core as mx

from grit_mlx.errors import ModelError

__all__ = ["arrays_of", "check_process", "computes", "pulse", "run", "settle", "steps", "stopped_by"]

T = TypeVar("T")
P = ParamSpec("P")

_END: Final = object()

# Seconds that a caller waits for a generator to be closed.
_PATIENCE: Final = 5.0


# Called by work that takes long, again and again; raises once it is to stop.
_pulse: contextvars.ContextVar[Callable[[], None]] = contextvars.ContextVar("pulse", default=lambda: None)


@contextmanager
def stopped_by(check: Callable[[], None]) -> Iterator[None]:
    """Let long work in this thread, and what it hands to the one that computes, stop where a function raises."""
    token = _pulse.set(check)
    try:
        yield
    finally:
        _pulse.reset(token)


def pulse() -> Callable[[], None]:
    """What long work is to call every few milliseconds, from any thread: it raises once the work is to stop."""
    return _pulse.get()


class _Worker:
    """The thread that computes for all threads but the main one."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._stopped = False
        self.generators: weakref.WeakSet[Generator[Any, None, None]] = weakref.WeakSet()
        self._thread = threading.Thread(target=self._work, name="grit-mlx", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> T:
        """The function's result, or what it raised."""
        job = _Job(function)
        if self._stopped and _is_main():
            job.work()  # the interpreter is ending, and nobody is left to wait for
        else:
            self._jobs.put(job)
            job.done.acquire()  # for ever if the interpreter ends first, which only daemon threads live to see
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[no-any-return]

    def close(self, generator: Generator[Any, None, None]) -> None:
        """Close a generator that was stepped here."""
        if self._stopped:
            # The worker closes it, or has; until then it must not be collected here, whose thread is not its stream's.
            if not self.is_this_thread():
                self._thread.join(timeout=_PATIENCE)
            return
        job = _Job(generator.close)
        self._jobs.put(job)
        # Not for ever: whoever collects garbage may hold a lock that the work before this wants.
        job.done.acquire(timeout=_PATIENCE)

    def is_this_thread(self) -> bool:
        """Whether the worker is asking."""
        return threading.get_ident() == self._thread.ident

    def stop(self) -> None:
        """End the thread after what it is doing now."""
        self._stopped = True
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._stopped:
            job.work()
            job = None  # or its arrays would live until the next one
        for generator in list(self.generators):
            with suppress(Exception):
                generator.close()  # its stream can be closed by no other thread
        mx.clear_streams()


class _Job:
    def __init__(self, function: Callable[[], Any]) -> None:
        # With the caller's context variables, as if it were called there.
        self._function = contextvars.copy_context().run, function
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def work(self) -> None:
        within, function = self._function
        try:
            self.result = within(function)
        except BaseException as error:
            self.error = error
        del self._function, within, function
        self.done.release()


class _Process:
    """What this process has of mlx."""

    def __init__(self) -> None:
        self.computed = False
        self.forked = False
        self.worker: _Worker | None = None
        self.lock = threading.Lock()

    def begin(self) -> None:
        if not self.computed:
            self.computed = True
            # After threads that are waited for have ended, and before the interpreter takes the rest down.
            atexit.register(self.end)

    def the_worker(self) -> _Worker:
        with self.lock:
            if self.worker is None:
                self.worker = _Worker()
            return self.worker

    def end(self) -> None:
        if self.forked:
            return
        if self.worker is not None:
            self.worker.stop()
        mx.clear_streams()

    def after_fork(self) -> None:
        self.forked = self.forked or self.computed
        self.worker, self.lock = None, threading.Lock()


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _process.after_fork())


def check_process() -> None:
    """Refuse to compute in a process that was forked after its parent computed.

    Raises:
        ModelError: it was.
    """
    if _process.forked:
        raise ModelError(
            "This process was forked from one that had used a model, which mlx does not survive. Start processes "
            'with multiprocessing.get_context("spawn"), or load the model after the fork (no preloading).'
        )
    _process.begin()


def run(function: Callable[..., T], /, *arguments: Any) -> T:
    """Call a function that computes with mlx, and wait for its result.

    What it returns must be evaluated, and so must the arrays that it is given.

    Raises:
        ModelError: this process was forked.
    """
    check_process()
    if _is_main():
        return function(*arguments)
    worker = _process.the_worker()
    return function(*arguments) if worker.is_this_thread() else worker.call(lambda: function(*arguments))


def computes(function: Callable[P, T]) -> Callable[P, T]:
    """The function, called by ``run``."""

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        return run(partial(function, *arguments, **options))

    return call


def settle(arrays: Any) -> None:
    """Evaluate arrays that the main thread may have changed or moved and not evaluated, before they leave it."""
    if _is_main():
        mx.eval(arrays)


class _CancelledError(Exception):
    """Nobody wants the next item any more."""


def steps(generator: Generator[T, None, None], cancelled: threading.Event) -> Iterator[T]:
    """The same items; each is computed, and the generator closed, by the worker.

    A web framework takes each item of a stream in another thread of its pool.

    Args:
        generator: what computes; arrays that it is given must be evaluated.
        cancelled: set once nobody wants more, for a generator that can stop before its next item.

    Raises:
        ModelError: this process was forked.
    """
    check_process()
    worker = _process.the_worker()
    worker.generators.add(generator)
    item: Any = None

    def check() -> None:
        if cancelled.is_set():
            raise _CancelledError

    try:
        while True:
            with stopped_by(check):
                item = worker.call(lambda: next(generator, _END))
            if item is _END:
                return
            yield item
    finally:
        cancelled.set()
        if not _process.forked:
            worker.close(generator)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def arrays_of(thing: object) -> list[mx.array]:
    """All arrays that a model can reach, in whatever attributes and collections they are."""
    arrays: list[mx.array] = []
    seen: set[int] = set()
    waiting = [thing]
    while waiting:
        one = waiting.pop()
        if isinstance(one, mx.array):
            arrays.append(one)
        if isinstance(one, str | bytes | int | float | type | mx.array) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one
        # What belongs to a model: its modules, and plain objects of the code it was made by.
        if type(one).__module__.partition(".")[0] not in ("builtins", "types"):
            waiting += getattr(one, "__dict__", {}).values()
    return arrays
