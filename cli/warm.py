"""Commands that use a running server: a model that is in its memory instead of this process's.

``find`` gives a `RemoteModel` where a server of the same version has the same model, loaded in the same way. It has the
methods of ``GritLM`` that commands call, and gives the same numbers: they are computed by the same calls, in the server
(``grit_mlx/server/warm.py``). If the server ends meanwhile, the model is loaded here after all.
"""

from __future__ import annotations

import base64
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from grit_mlx import errors
from grit_mlx.errors import GritError, Option
from grit_mlx.model.batching import windows
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.settings import Settings
from grit_mlx.options import option
from grit_mlx.server.client import ServerClient, UnreachableError
from grit_mlx.server.running import loaded_as, package_version, running_servers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from grit_mlx.gritlm import GritLM
    from grit_mlx.progress import Progress
    from grit_mlx.rag import Rag

__all__ = ["RemoteAnswer", "RemoteCache", "RemoteChat", "RemoteModel", "RemoteResults", "ServerUse", "find", "identity"]

logger = logging.getLogger("grit_mlx")

# Servers take requests of at most this many bytes; larger ones are computed here.
_MOST_BYTES = 60_000_000


@dataclass(frozen=True, kw_only=True)
class ServerUse:
    """Whether a command uses a running server."""

    heading: ClassVar[str] = "Model"

    no_server: bool = option(False, "Load the model here even if a running 'grit serve' has it in memory.")


def find(choice: ModelChoice, folder: Path, load: Callable[[], GritLM]) -> RemoteModel | None:
    """A model in a running server's memory that gives what this choice gives; None if there is none.

    Args:
        choice: of the model.
        folder: where it is.
        load: loads it here.
    """
    own = (choice.adapter, choice.pooling, choice.attn, choice.normalized)
    if any(value is not None for value in own) or choice.trust_remote_code:
        return None
    for server in running_servers():
        name = next((name for name, held in server.models.items() if Path(held) == folder), None)
        if name is None or server.version != package_version():
            continue
        if server.loaded.get(str(folder)) == loaded_as(folder, choice.dtype):
            return RemoteModel(ServerClient(server.address, server.key), name, folder, load)
    return None


class RemoteModel:
    """A model in a server's memory, as commands use a ``GritLM``.

    Args:
        client: reaches the server.
        name: of the model there.
        folder: of the model.
        load: loads it here.
    """

    adapter = None

    def __init__(self, client: ServerClient, name: str, folder: Path, load: Callable[[], GritLM]) -> None:
        self._client = client
        self._name = name
        self._load = load
        self._here: GritLM | None = None
        self.folder = folder

    def __getattr__(self, name: str) -> Any:
        """Whatever a server is not asked for: the model here has it."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._local(), name)

    # What commands ask of a model

    @property
    def embedding_size(self) -> int:
        """E."""
        return int(self._about["embedding_size"])

    @property
    def settings(self) -> Settings:
        """The model's settings."""
        return Settings(**self._about["settings"])

    @property
    def identity(self) -> Any:
        """What vectors depend on; see ``identity``."""
        return self._about["identity"]

    def encode(self, text: str, **options: Any) -> NDArray[np.float32]:
        """The vector ``(E,)`` of one text; see ``GritLM.encode``."""
        try:
            [line] = self._lines("encode", text=text, options=options)
        except UnreachableError:
            return self._local().encode(text, **options)  # type: ignore[no-any-return]
        return _unpacked(line["vectors"])

    def encode_iter(
        self, texts: Iterable[str], *, progress: Progress | None = None, **options: Any
    ) -> Iterator[NDArray[np.float32]]:
        """The vector ``(E,)`` of each text; see ``GritLM.encode_iter``."""
        start = 0
        for window in windows(texts):
            try:
                vectors = self._window(window, start, progress, options)
            except UnreachableError:
                vectors = self._window_here(window, start, progress, options)
            yield from vectors
            start += len(window)

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has, without those that the tokenizer adds."""
        if self._tokenizer is None:
            return len(self._local().tokenizer.encode(text, add_special_tokens=False, verbose=False))
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def stream_responses(
        self, prompt: Any, *, raw: bool = False, cache: RemoteCache | None = None, **options: Any
    ) -> Iterator[Any]:
        """An answer, token by token; see ``GritLM.stream_responses``."""
        conversation = None if cache is None else cache.name
        lines = self._lines("respond", prompt=prompt, raw=raw, options=options, conversation=conversation)
        return self._responses(lines, cache, lambda: self._answer_here(prompt, raw=raw, cache=cache, **options))

    def ask(self, **asked: Any) -> Iterator[Any]:
        """What a store says of a question, line by line; see ``warm`` of the server.

        Raises:
            UnreachableError: the server has ended.
        """
        return self._lines("ask", **asked)

    def chat(self, **asked: Any) -> Iterator[Any]:
        """A turn of a conversation about a store, line by line; as ``ask``."""
        return self._lines("chat", **asked)

    # How

    @cached_property
    def _about(self) -> Mapping[str, Any]:
        try:
            [about] = self._lines("describe", tokenizer=False)
        except UnreachableError:
            grit = self._local()
            return {
                "embedding_size": grit.embedding_size,
                "settings": asdict(grit.settings),
                "identity": identity(grit),
            }
        return about  # type: ignore[no-any-return]

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            [about] = self._lines("describe", tokenizer=True)
        except UnreachableError:
            return None
        if about["tokenizer"] is None:
            return None
        from tokenizers import Tokenizer

        return Tokenizer.from_str(about["tokenizer"])

    def _window(self, window: list[str], start: int, progress: Progress | None, options: Mapping[str, Any]) -> Any:
        if sum(map(len, window)) * 6 > _MOST_BYTES:  # as JSON writes the longest characters
            raise UnreachableError("These texts are too many for one request.")
        vectors: list[Any] = []
        for line in self._lines("encode-many", texts=window, options=options, first_index=start):
            if "done" in line and progress is not None:
                progress(start + line["done"], None)
            if "vectors" in line:
                vectors += list(_unpacked(line["vectors"]))
        return vectors

    def _window_here(self, window: list[str], start: int, progress: Progress | None, options: Mapping[str, Any]) -> Any:
        grit = self._local()
        chosen = grit.embedding_options(**options)

        def report(done: float) -> None:
            if progress is not None:
                progress(start + done, None)

        return grit.embedder.embed(window, chosen, first_index=start, progress=report)[0]

    def _responses(self, lines: Iterator[Any], cache: RemoteCache | None, here: Callable[[], Any]) -> Iterator[Any]:
        begun = False
        try:
            with closing(lines):  # type: ignore[type-var]
                for line in lines:
                    begun = True
                    if cache is not None:
                        cache.reused = line["reused"]
                    yield SimpleNamespace(**line["response"])
        except UnreachableError:
            if begun:
                raise
            yield from here()

    def _answer_here(self, prompt: Any, *, cache: RemoteCache | None, **options: Any) -> Iterator[Any]:
        held = None if cache is None else cache.here()
        for response in self._local().stream_responses(prompt, cache=held, **options):
            if cache is not None and held is not None:
                cache.reused = held.reused
            yield response

    def _local(self) -> GritLM:
        if self._here is None:
            logger.debug("The server has ended: the model is loaded here.")
            self._here = self._load()
        return self._here

    def _lines(self, call: str, **body: Any) -> Iterator[Any]:
        """The results of a call; notes are shown as they come, errors raised.

        Raises:
            UnreachableError: the server has ended, or does not take the request now.
        """
        if self._here is not None:
            raise UnreachableError("The model is here now.")
        ended = False
        lines = self._client.lines(f"/v1/warm/{call}", {"model": self._name, **body})
        try:
            for line in lines:
                if "log" in line:
                    _log(*line["log"])
                elif "error" in line:
                    raise _error(*line["error"])
                elif "end" in line:
                    ended = True
                else:
                    yield line
        except errors.ServerError as error:
            raise UnreachableError(*error.parts) from error
        finally:
            lines.close()  # type: ignore[attr-defined]
        if not ended:
            raise UnreachableError("The connection to the server broke.")


class RemoteResults(list[Any]):
    """What a store found, as ``SearchResults``."""

    def __init__(self, line: Mapping[str, Any]) -> None:
        super().__init__(map(_placed, line["results"]))
        self.question = line["question"]
        self.relevant = line["relevant"]
        self.relevance = line["relevance"]
        self.needed = line["needed"]


class RemoteAnswer:
    """What a store says of a question, as ``Response``; also the store, of which only the size is asked for.

    Attributes:
        results: what was found.
        answer: this, once there is one; None if nothing relevant was found.
        quotes: what it is made of, if it is made of quotes.
        text: then it as a whole.
    """

    def __init__(self, passages: int, results: RemoteResults, lines: Iterator[Any]) -> None:
        self.results = results
        self.answer: Any = None
        self.quotes: list[Any] = []
        self.text = ""
        self._passages = passages
        self._lines = lines
        self._first = ""

    @classmethod
    def to(cls, model: RemoteModel, question: str, store: str, **asked: Any) -> RemoteAnswer | None:
        """The answer to a question, once it has begun; None if it has to be given here.

        That is where the server ends before, or holds another model than the one that the store was made with.
        """
        try:
            return cls.of(model.ask(question=question, store=_uri(store), **asked))
        except UnreachableError:
            return None

    @classmethod
    def of(cls, lines: Iterator[Any]) -> RemoteAnswer | None:
        """What the lines of a server say; as ``to``.

        Raises:
            UnreachableError: the server has ended.
        """
        first = next(lines)
        if "other" in first:
            return None
        made = cls(first["passages"], RemoteResults(next(lines)), lines)
        for line in lines:  # up to the first piece: until then nothing is shown, and all can be done here
            made._take(line)
            if made._first:
                break
        return made

    @property
    def sources(self) -> Any:
        """The passages that the answer is from."""
        return self.results if self.answer is not None else []

    def __len__(self) -> int:
        return self._passages

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        with closing(self._lines):  # type: ignore[type-var]
            yield self._first
            for line in self._lines:
                self._take(line)
                yield line["piece"]

    def _take(self, line: Mapping[str, Any]) -> None:
        self.answer = self
        if "given" in line:
            self.results[:] = map(_placed, line["given"])
        if "quotes" in line:
            self.quotes = [_Quote(**_placed(one).__dict__) for one in line["quotes"]]
            self.text = "\n\n".join(map(str, self.quotes))
            return
        self._first = self._first or line["piece"]
        self.__dict__.update(line["answer"])


class RemoteChat:
    """A conversation about a store, held by a server, as ``Rag``. If that ends, it goes on here.

    Args:
        model: in the server's memory.
        here: the same on this machine.
        asked: what each request says besides.
    """

    def __init__(self, model: RemoteModel, here: Callable[[], Rag], asked: Mapping[str, Any]) -> None:
        self._model = model
        self._load = here
        self._here: Rag | None = None
        self._asked = asked
        self.reset()

    @classmethod
    def begin(cls, model: RemoteModel, store: str, here: Callable[[], Rag], **asked: Any) -> RemoteChat | None:
        """The conversation; None if it has to be held here, as for ``RemoteAnswer.to``."""
        made = cls(model, here, {"store": _uri(store), **asked})
        try:
            first = next(made._lines(None))
        except UnreachableError:
            return None
        made._passages = first.get("passages", 0)
        return None if "other" in first else made

    def __len__(self) -> int:
        return self._passages

    def __bool__(self) -> bool:
        return True

    def chat(self, question: str, **sampling: Any) -> Any:
        """The answer to the next question; see ``Rag.chat``."""
        if self._here is None:
            try:
                if answer := RemoteAnswer.of(self._lines(question, sampling)):
                    return answer
            except UnreachableError:
                pass
            self._here = self._load()
            for turn in self._history:
                self._here.remember(*turn)
        return self._here.chat(question, **sampling)

    def remember(self, question: str, answer: str) -> None:
        """Add a turn to the conversation."""
        self._history.append((question, answer))
        if self._here is not None:
            self._here.remember(question, answer)

    def reset(self) -> None:
        """Forget the conversation."""
        self._history: list[tuple[str, str]] = []
        self._name = uuid.uuid4().hex
        if self._here is not None:
            self._here.reset()

    def _lines(self, question: str | None, sampling: Mapping[str, Any] | None = None) -> Iterator[Any]:
        said = {"conversation": self._name, "history": self._history}
        return self._model.chat(question=question, sampling=sampling, **said, **self._asked)

    _passages = 0


class _Quote(SimpleNamespace):
    """As ``rag.quotes.Quote``, whose module brings mlx."""

    def __str__(self) -> str:
        return f"{self.text}\n({self.place})" if self.is_code else f"“{self.text}” ({self.place})"

    @property
    def place(self) -> str:
        return str(self.passage.place)


def _uri(store: str) -> str:
    """A store as a process in another folder finds it."""
    return store if "://" in store else str(Path(store).expanduser().resolve())


def _placed(given: Mapping[str, Any]) -> SimpleNamespace:
    """A result or a quote with its passage, whose place is relative to this process's folder."""
    from grit_mlx.rag.schema import StoredPassage

    return SimpleNamespace(**{**given, "passage": StoredPassage(**given["passage"])})


class RemoteCache:
    """Keys and values of a conversation, held by the server; see ``PromptCache``.

    Attributes:
        reused: how many tokens the last prompt did not have to compute.
    """

    def __init__(self) -> None:
        self._here: Any = None
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.name = uuid.uuid4().hex
        self.reused = 0
        if self._here is not None:
            self._here.reset()

    def here(self) -> Any:
        """The one of this process."""
        if self._here is None:
            from grit_mlx.model.generation import PromptCache

            self._here = PromptCache()
        return self._here


def identity(grit: GritLM | RemoteModel) -> Any:
    """What the vectors of a model depend on."""
    if isinstance(grit, RemoteModel):
        return grit.identity
    from mlx.utils import tree_flatten

    from grit_mlx.rag.fingerprint import digest, fingerprint

    weights: Any = tree_flatten(grit.model.parameters())
    return [digest(fingerprint(grit)), sorted({str(value.dtype) for _, value in weights})]


def _unpacked(packed: Mapping[str, Any]) -> NDArray[np.float32]:
    import numpy as np

    return np.frombuffer(base64.b64decode(packed["data"]), dtype="<f4").reshape(packed["shape"]).copy()


def _part(given: Any) -> Any:
    return Option(given["option"], given["value"]) if isinstance(given, dict) else given


def _log(level: int, message: str, arguments: list[Any], extra: Mapping[str, Any]) -> None:
    logger.log(level, message, *map(_part, arguments), extra=dict(extra))


def _error(kind: str, parts: list[Any], attributes: Mapping[str, Any]) -> GritError:
    """An error of the server's as one of this process."""
    known: type[GritError] = getattr(errors, kind)
    error = known.__new__(known, *map(_part, parts))
    GritError.__init__(error, *map(_part, parts))
    error.__dict__.update(attributes)
    return error
