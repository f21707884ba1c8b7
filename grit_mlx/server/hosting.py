"""The models and stores that a server was started with, by the names that clients use. Nothing here knows of HTTP."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from grit_mlx.errors import BusyError, GritError, ServerError
from grit_mlx.gritlm import GritLM
from grit_mlx.model import threads
from grit_mlx.server.engine import Engine, Lane
from grit_mlx.server.options import ServeOptions
from grit_mlx.server.replies import Refusal, RefusedError
from grit_mlx.server.stores import ServedStore

if TYPE_CHECKING:
    from grit_mlx.model.options import ModelChoice

__all__ = ["Host", "HostedModel", "Place", "Target"]

logger = logging.getLogger("grit_mlx")

# What may follow a model's name, so that clients without a field for it can say what their texts are.
_ROLES = ("query", "document", "similarity")

_STORE_PREFIX = "rag:"

Load = Callable[["ModelChoice"], GritLM]


class HostedModel:
    """A model that is loaded when it is needed.

    Args:
        engine: computes.
        name: to clients.
        choice: which.
        load: loads it.

    Attributes:
        created: when it was loaded last, in seconds since 1970.
        users: requests that use it now.
    """

    def __init__(self, engine: Engine, name: str, choice: ModelChoice, load: Load) -> None:
        self.name = name
        self.created = int(time.time())
        self.users = 0
        self.on_unload: list[Callable[[], None]] = []
        self._engine = engine
        self.choice = choice
        self._load = load
        self._lock = threading.Lock()
        self._lane: Lane | None = None
        self._used = time.monotonic()

    @property
    def is_loaded(self) -> bool:
        """Whether it is in memory."""
        return self._lane is not None

    def lane(self) -> Lane:
        """Its place in the engine; loads it first if need be.

        Raises:
            ModelError: it cannot be loaded.
        """
        with self._lock:
            self._used = time.monotonic()
            if self._lane is None:
                self._lane = self._engine.open(self._load(self.choice))
                self.created = int(time.time())
            return self._lane

    def loaded_lane(self) -> Lane | None:
        """The same if it can be had without waiting."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            self._used = time.monotonic()
            return self._lane
        finally:
            self._lock.release()

    def done(self) -> None:
        """A request has ended."""
        self.users -= 1
        self._used = time.monotonic()

    def unload(self, idle_seconds: float) -> bool:
        """Unload it if it was not used for this long; whether that was so."""
        with self._lock:
            if self._lane is None or self.users or time.monotonic() - self._used < idle_seconds:
                return False
            self._engine.close(self._lane)
            self._lane = None
            for release in self.on_unload:
                release()
        gc.collect()
        threads.run(mx.clear_cache)
        logger.info("%s was unloaded", self.name)
        return True


@dataclass(frozen=True)
class Target:
    """What a request's ``model`` names.

    Attributes:
        name: as the client wrote it.
        model: which computes.
        role: what texts are embedded as; None if the name does not say.
        store: to answer from.
    """

    name: str
    model: HostedModel
    role: str | None = None
    store: ServedStore | None = None


class Place:
    """A request's place among those that the server takes at a time; ``leave`` frees it."""

    def __init__(self, host: Host, model: HostedModel) -> None:
        self._host, self._model, self._left = host, model, False

    def leave(self) -> None:
        """Free it; more than once is once."""
        if not self._left:
            self._left = True
            self._host.leave(self._model)


class Host:
    """Models and stores by name.

    Args:
        options: of the server.
        models: each name with its choice; the first is used where a request names none.
        stores: each name with its folder.
        load: loads the only model, which is split among processes; None where this process loads all of each.

    Attributes:
        ready: whether all of them are loaded.
        is_split: whether the model is split among processes.
        refused: how many requests found no place.
    """

    def __init__(
        self,
        options: ServeOptions,
        models: Mapping[str, ModelChoice],
        stores: Mapping[str, str],
        *,
        load: Load | None = None,
    ) -> None:
        self.options = options
        self.is_split = load is not None
        self.engine = Engine(prefix_bytes=options.prompt_memory)
        self.models = {
            name: HostedModel(self.engine, name, choice, load or GritLM.from_choice) for name, choice in models.items()
        }
        self.stores = {name: ServedStore(name, uri) for name, uri in stores.items()}
        self._readers: dict[str, HostedModel] = {}  # of each store, the model that it was made with
        self.ready = False
        self.refused = 0
        self._requests = 0
        self._lock = threading.Lock()

    def load(self) -> None:
        """Load every model, and open every store with the one that it was made with.

        Raises:
            GritError: one of them cannot be.
        """
        for model in self.models.values():
            model.lane()
        for store in self.stores.values():
            self._open(store)
        self.ready = True

    def _open(self, store: ServedStore) -> None:
        wrong: GritError | None = None
        for model in self.models.values():
            try:
                store.use(model.lane())
            except GritError as error:
                wrong = wrong or error
            else:
                self._readers[store.name] = model
                model.on_unload.append(store.release)
                return
        raise wrong or ServerError("There is no model to search with.")

    @property
    def requests(self) -> int:
        """Requests that have a place now."""
        return self._requests

    def names(self) -> dict[str, int]:
        """The models that requests may name, each with when it was loaded."""
        names = {name: model.created for name, model in self.models.items()}
        return names | {_STORE_PREFIX + name: model.created for name, model in self._readers.items()}

    def target(self, name: Any) -> Target:
        """What a request's ``model`` names.

        Raises:
            RefusedError: nothing.
        """
        if name is None:
            return Target(next(iter(self.models)), next(iter(self.models.values())))
        name = str(name)
        if name in self.models:
            return Target(name, self.models[name])
        if name.startswith(_STORE_PREFIX):
            store, reader = self.store(name.removeprefix(_STORE_PREFIX))
            return Target(name, reader, store=store)
        model, _, role = name.rpartition(":")
        if model in self.models and role in _ROLES:
            return Target(name, self.models[model], role)
        known = ", ".join(self.names())
        message = f"There is no model {name!r:.80} here: there is {known}. Models are chosen when the server starts."
        raise RefusedError(Refusal(404, message, param="model", code="model_not_found"))

    def store(self, name: str) -> tuple[ServedStore, HostedModel]:
        """A store by its name, and the model that it was made with.

        Raises:
            RefusedError: there is none.
        """
        store, reader = self.stores.get(name), self._readers.get(name)
        if store is None or reader is None:
            known = f"there is {', '.join(self.stores)}" if self.stores else "the server was started without --store"
            message = f"There is no store {name!r:.80} here: {known}."
            raise RefusedError(Refusal(404, message, code="store_not_found"))
        return store, reader

    def enter(self, model: HostedModel) -> Place:
        """A place for a request.

        Raises:
            RefusedError: the models are still being loaded.
            BusyError: there is none.
        """
        if not self.ready:
            message = "The model is still being loaded. Try again in a moment."
            raise RefusedError(Refusal(503, message, "server_error", code="loading"))
        with self._lock:
            if self._requests >= self.options.max_queue:
                self.refused += 1
                raise BusyError(
                    f"The server has {self._requests} requests, as many as it takes. Try again in a moment."
                )
            self._requests += 1
            model.users += 1
        return Place(self, model)

    def leave(self, model: HostedModel) -> None:
        """For ``Place``."""
        with self._lock:
            self._requests -= 1
            model.done()

    def unload_idle(self) -> None:
        """Unload the models that were not used for as long as the options say."""
        if self.options.idle and self.ready:
            for model in self.models.values():
                model.unload(60 * self.options.idle)

    def stop(self, patience: float) -> None:
        """End the engine; what is being computed has ``patience`` seconds."""
        self.ready = False
        with suppress(GritError):
            self.engine.stop(patience)
        for store in self.stores.values():
            store.close()
