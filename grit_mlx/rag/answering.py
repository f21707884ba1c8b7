"""Answers from documents, with the documents' and the query's keys and values taken from caches where they are.

``Answerer`` knows models and documents, not where documents come from: ``Rag`` puts a store before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from mlx.utils import tree_flatten
from mlx_lm.generate import GenerationResponse
from mlx_lm.models.cache import KVCache

from grit_mlx.errors import ArchitectureError, ArgumentError
from grit_mlx.gritlm import GritLM
from grit_mlx.model import device, prompts
from grit_mlx.model.attention import concatenate_caches
from grit_mlx.model.generation import PromptCache
from grit_mlx.model.options import GenerationOptions
from grit_mlx.model.prompts import embedding_prompt, literal_tokens, neutralised, rag_prompt
from grit_mlx.rag.caches import DocumentCaches, cache_key
from grit_mlx.rag.fingerprint import digest, fingerprint
from grit_mlx.rag.modes import AUTO_MODES, DocumentCost, Rates, check_mode, choose_mode
from grit_mlx.rag.rotation import Rotation

__all__ = ["POSITIONS", "Answer", "Answerer", "Document", "Turn", "default_rates"]

Layers = list[KVCache]

# Where cached texts stand that come after another: each after the one before, or, as in the official code, at the
# positions of a text that stands first.
POSITIONS: Final = ("consecutive", "official")

# Operations a second, and what attention costs beyond its operations. Rough: what is compared are modes of the same
# model on the same machine, and only the cost of reading a file stands against these.
_OPERATIONS: Final = {"cpu": 5e10, "metal": 5e12, "cuda": 5e13}
_ATTENTION_FACTOR: Final = {"cpu": 6.0, "metal": 2.0, "cuda": 2.0}  # mlx's softmax on a CPU runs on one core
_BYTES_PER_SECOND: Final = 1.5e9

_CHARACTERS_PER_TOKEN: Final = 4  # of English


@dataclass(frozen=True)
class Document:
    """A text to answer from.

    Attributes:
        content: the text, with its heading before it.
        id: what its use is counted under; a store's id of the passage.
    """

    content: str
    id: str = ""


@dataclass(frozen=True)
class Turn:
    """A question and its answer, earlier in a conversation."""

    question: str
    answer: str


@dataclass
class Answer:
    """An answer that is being written: iterate over it for the pieces, or ask for ``text``.

    Attributes:
        mode: the cache mode that was taken.
        cached_tokens: tokens that came from caches.
        computed_tokens: tokens that were computed before the first new one, documents for the cache included.
        seconds_to_first_token: from the call to the first token; None until then.
        seconds: from the call to the last token so far.
        generated_tokens: tokens that were written so far.
        finish_reason: "stop" or "length" once it is whole.
    """

    mode: str
    cached_tokens: int
    computed_tokens: int
    _pieces: Iterator[str]
    seconds_to_first_token: float | None = None
    seconds: float = 0.0
    generated_tokens: int = 0
    finish_reason: str | None = None
    _written: str = ""

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            self._written += piece
            yield piece

    @property
    def text(self) -> str:
        """The whole answer; waits for what is not written yet."""
        for _ in self:
            pass
        return self._written


class Answerer:
    """Answers questions from documents.

    Args:
        model: a model that embeds and generates.
        caches: where the keys and values of documents are kept; None to compute them each time.
        rates: what ``auto`` predicts with; None for rough ones of this device.
        positions: one of ``POSITIONS``.
        query_instruction: what a query is embedded with; None for the model's own.
    """

    def __init__(
        self,
        model: GritLM,
        caches: DocumentCaches | None = None,
        *,
        rates: Rates | None = None,
        positions: str = "consecutive",
        query_instruction: str | None = None,
    ) -> None:
        if positions not in POSITIONS:
            raise ArgumentError(f"Unknown positions {positions!r}: use one of {', '.join(POSITIONS)}.")
        self.model = model
        self.caches = caches
        self.rates = rates or default_rates(model)
        self.positions = positions
        chosen = model.settings.query_instruction if query_instruction is None else query_instruction
        self._query_prompt = embedding_prompt(chosen)
        self._document_prompt = embedding_prompt(model.settings.document_instruction)
        # The last prompt's keys and values, and which cached texts they follow: the next prompt goes on from
        # whatever it has in common.
        self._prompt_base: tuple[str, ...]
        self.reset()

    def reset(self) -> None:
        """Forget the last prompt, whose beginning the next one would go on from."""
        self._prompt_cache, self._prompt_base = PromptCache(), ()

    @cached_property
    def model_digest(self) -> str:
        """What caches of this model are told apart by."""
        return digest(fingerprint(self.model))

    @cached_property
    def rotation(self) -> Rotation:
        """Moves keys to later places.

        Raises:
            ArchitectureError: this model's cannot be moved.
        """
        return Rotation(self.model.model)

    def neutralised(self, text: str) -> str:
        """A document's or a user's text without GRIT's markers and the tokenizer's special tokens."""
        return neutralised(self.model.tokenizer, text)

    def embed_query(self, question: str) -> tuple[Any, Layers]:
        """The query's vector ``(E,)`` and, from the same pass, its keys and values."""
        text = self.neutralised(question)
        vector, layers = self.model.encode(
            text, instruction=self._query_prompt, get_cache=True, max_length=_room(self.model, text)
        )
        return vector, layers

    def embed_documents(self, contents: Sequence[str]) -> list[Layers]:
        """Keys and values of documents, as the pass that embeds them leaves them behind."""
        texts = [self.neutralised(content) for content in contents]
        room = max((_room(self.model, text) for text in texts), default=1)
        return list(self.model.encode(texts, instruction=self._document_prompt, get_cache=True, max_length=room)[1])

    def layers_of(self, documents: Sequence[Document]) -> list[Layers]:
        """Keys and values of documents, from caches or computed now; for the first place."""
        build = _Build(self, "", documents, None)
        layers = build.documents()
        build.save()
        return layers

    def prompt(
        self, question: str, documents: Sequence[Document], *, cache: str, query_layers: Layers | None = None
    ) -> tuple[Layers, list[int]]:
        """What ``answer`` hands to the model, for programs that generate on their own.

        Args:
            question: the question.
            documents: in the order of the prompt.
            cache: one of ``modes.MODES``.
            query_layers: see ``answer``.

        Returns:
            Keys and values that the prompt continues, empty for "none"; and its tokens.
        """
        build = _Build(self, self.neutralised(question), documents, query_layers)
        layers = build.layers(cache)
        build.save()
        return layers, self._prompt(cache, build.question, documents, ())

    def key(self, document: Document) -> str:
        """What the document's cache is called."""
        return cache_key(self.model_digest, document.content)

    def answer(
        self,
        question: str,
        documents: Sequence[Document],
        *,
        cache: str = "auto",
        auto_modes: Sequence[str] = AUTO_MODES,
        query_layers: Layers | None = None,
        history: Sequence[Turn] = (),
        max_tokens: int = 256,
        temperature: float = 0.0,
        **options: Any,
    ) -> Answer:
        """Answer a question from documents.

        Args:
            question: the question.
            documents: the best first; they stand in this order in the prompt.
            cache: one of ``modes.CACHE_MODES``.
            auto_modes: what "auto" chooses from.
            query_layers: the query's keys and values, from ``embed_query``; computed where a mode needs them.
            history: earlier turns; only modes that end with the query ("none", "doc", "auto") go on from them.
            max_tokens: most tokens of the answer.
            temperature: 0 for the likeliest answer.
            **options: the other fields of ``generation.GenerationOptions``.

        Raises:
            ArgumentError: an empty question, no documents, an unknown mode, or one that has no history.
            ArchitectureError: a cached text has to be moved and this model's keys cannot be.
        """
        start = time.perf_counter()
        check_mode(cache)
        if not question.strip():
            raise ArgumentError("The question is empty.")
        if not documents:
            raise ArgumentError("There are no documents to answer from.")
        if history and cache not in ("none", "doc", "auto"):
            raise ArgumentError(f"A conversation needs cache='none', 'doc' or 'auto', not {cache!r}.")
        if cache == "auto":
            chosen = [mode for mode in auto_modes if not history or mode in ("none", "doc")]
            cache = self._chosen_mode(question, documents, query_layers is not None, chosen)
        build = _Build(self, self.neutralised(question), documents, query_layers)
        layers = build.layers(cache)
        tokens = self._prompt(cache, build.question, documents, history)
        base = (cache, *build.names)
        if base != self._prompt_base:
            self._prompt_cache, self._prompt_base = PromptCache(layers), base
        responses = self.model.stream_responses(tokens, max_tokens, temperature, self._prompt_cache, **options)
        answer = Answer(
            mode=cache,
            cached_tokens=sum(layer[0].offset for layer in build.cached),
            computed_tokens=build.computed + len(tokens),
            _pieces=iter(()),
        )
        answer._pieces = self._written(answer, responses, build, start)
        return answer

    def _written(
        self, answer: Answer, responses: Iterator[GenerationResponse], build: _Build, start: float
    ) -> Iterator[str]:
        try:
            for response in responses:
                answer.seconds = time.perf_counter() - start
                if answer.seconds_to_first_token is None:
                    answer.seconds_to_first_token = answer.seconds
                    answer.cached_tokens += self._prompt_cache.reused
                    answer.computed_tokens -= self._prompt_cache.reused
                answer.generated_tokens = response.generation_tokens
                answer.finish_reason = response.finish_reason
                if response.text:
                    yield response.text
        except BaseException:
            self._prompt_base = ()  # layers may disagree on how far they came
            raise
        finally:
            build.save()  # after the answer: nobody waits for the disk

    def _prompt(self, mode: str, question: str, documents: Sequence[Document], history: Sequence[Turn]) -> list[int]:
        """The tokens after what is cached."""
        tokenizer = self.model.tokenizer
        text = "\n\n".join(self.neutralised(document.content) for document in documents)
        tokens: list[int] = []
        questions = [*(self.neutralised(turn.question) for turn in history), question]
        for number, asked in enumerate(questions):
            if mode == "none" and number == 0:
                prompt = rag_prompt("none-document-first", query=asked, document=text)
                tokens += tokenizer.encode(prompt, add_special_tokens=True)
            elif number:
                # Later turns of a conversation follow as the paper's cached documents do.
                tokens += literal_tokens(tokenizer, rag_prompt("doc", query=asked))
            else:
                tokens += literal_tokens(tokenizer, rag_prompt(mode, query=asked, document=text))
            if number < len(history):
                tokens += literal_tokens(tokenizer, self.neutralised(history[number].answer))
                tokens += [tokenizer.eos_token_id]
        return tokens

    def _chosen_mode(
        self, question: str, documents: Sequence[Document], query_cached: bool, modes: Sequence[str]
    ) -> str:
        costs = []
        for document in documents:
            key = self.key(document)
            cached = self.caches is not None and key in self.caches
            size = self.caches.size_on_disk(key) if cached and self.caches is not None else 0
            costs.append(DocumentCost(self._tokens(document.content), cached, size))
        if len(documents) > 1 and not self._can_move:
            modes = [mode for mode in modes if mode in ("none", "query")] or ["none"]
        query = DocumentCost(self._tokens(question), query_cached)
        return choose_mode(costs, query, self.rates, modes=modes)

    @cached_property
    def _can_move(self) -> bool:
        try:
            return self.rotation is not None
        except ArchitectureError:
            return False

    @staticmethod
    def _tokens(text: str) -> int:
        """About how many: to weigh one side against the other, tokenising both would cost more than it decides."""
        return 1 + len(text) // _CHARACTERS_PER_TOKEN


class _Build:
    """The cached side of one prompt: taken from caches, or computed now and saved when the answer is written."""

    def __init__(
        self, answerer: Answerer, question: str, documents: Sequence[Document], query_layers: Layers | None
    ) -> None:
        self.question = question
        self.computed = 0  # tokens
        self.cached: list[Layers] = []  # that did not have to be computed
        self.names: list[str] = []  # of what is cached, in order
        self._answerer = answerer
        self._documents = documents
        self._query_layers = query_layers
        self._unsaved: list[tuple[str, str, Layers]] = []

    def layers(self, mode: str) -> Layers:
        """What the prompt of a mode continues; empty where nothing is cached."""
        texts: list[Layers] = []
        for side in mode.split("-"):
            if side == "doc":
                texts += self._document_layers(continued=mode == "query-doc")
            elif side == "query":
                texts.append(self._query())
        if not texts:
            self.names = ["none"]  # any prompt that begins the same can be gone on from
            return []
        if self._answerer.positions == "official":
            placed = texts
        else:
            starts = [sum(text[0].offset for text in texts[:i]) for i in range(len(texts))]
            # Asked for only where something moves: a model whose keys cannot be moved still has a first place.
            placed = [
                text if start == 0 else self._answerer.rotation.moved(text, start)
                for text, start in zip(texts, starts, strict=True)
            ]
        return placed[0] if len(placed) == 1 else concatenate_caches(*placed)

    def _query(self) -> Layers:
        self.names.append("query " + self.question)
        if self._query_layers is None:
            _, layers = self._answerer.embed_query(self.question)
            self.computed += layers[0].offset
            return layers
        self.cached.append(self._query_layers)
        return self._query_layers

    def documents(self) -> list[Layers]:
        """The documents, each at the first place."""
        return self._document_layers(continued=False)

    def _document_layers(self, *, continued: bool) -> list[Layers]:
        answerer = self._answerer
        if continued and answerer.positions == "official":
            return [self._official_continuation(document) for document in self._documents]
        keys = [answerer.key(document) for document in self._documents]
        self.names += keys
        found = {key: answerer.caches.get(key) if answerer.caches is not None else None for key in keys}
        self.cached += [layers for layers in found.values() if layers is not None]
        missing = {key: document for key, document in zip(keys, self._documents, strict=True) if found[key] is None}
        if missing:
            built = answerer.embed_documents([document.content for document in missing.values()])
            for (key, document), computed in zip(missing.items(), built, strict=True):
                found[key] = computed
                self.computed += computed[0].offset
                if answerer.caches is not None:
                    answerer.caches.keep(key, computed)
                    self._unsaved.append((key, document.id, computed))
        return [layers for key in keys if (layers := found[key]) is not None]

    def _official_continuation(self, document: Document) -> Layers:
        """The official code computes a document that follows a query without BOS, with a line break before it."""
        text = self._answerer.neutralised(document.content)
        model = self._answerer.model
        prompt = "\n" + prompts.embedding_prompt(model.settings.document_instruction)
        room = _room(model, text)
        layers: Layers
        _, layers = model.encode(text, instruction=prompt, get_cache=True, add_special_tokens=False, max_length=room)
        self.names.append("continued " + document.content)
        self.computed += layers[0].offset
        return layers

    def save(self) -> None:
        """Note what was used, and put what was computed on the disk."""
        caches = self._answerer.caches
        if caches is None:
            return
        caches.note_use((self._answerer.key(document), document.id) for document in self._documents)
        for key, passage, layers in self._unsaved:
            caches.save(key, passage, layers)
        self._unsaved = []


def default_rates(model: GritLM) -> Rates:
    """Rough rates of this device, from the model's size and shape."""
    here = device.current_device().kind
    config: Mapping[str, Any] = {**model.config, **(model.config.get("text_config") or {})}
    named: Any = tree_flatten(model.model.parameters())
    parameters = sum(array.size for name, array in named if _computes(name))
    experts, used = config.get("num_local_experts"), config.get("num_experts_per_tok")
    share = used / experts if experts and used else 1.0  # nearly all of a mixture's weights are its experts'
    heads = int(config.get("num_attention_heads") or 1)
    size = int(config.get("head_dim") or int(config.get("hidden_size") or 1) // heads)
    layers = int(config.get("num_hidden_layers") or 1)
    operations = _OPERATIONS[here]
    return Rates(
        token=2 * parameters * share / operations,
        pair=4 * heads * size * layers * _ATTENTION_FACTOR[here] / operations,
        byte=1 / _BYTES_PER_SECOND,
        step=GenerationOptions.prefill_step_size if here == "cpu" else 1,  # on a CPU mlx computes what is masked
    )


def _computes(name: str) -> bool:
    """Whether every token of a prompt is multiplied with a weight: not with the embeddings, nor with the head."""
    return "embed" not in name and "lm_head" not in name


def _room(model: GritLM, text: str) -> int:
    """Tokens to read of a text: all. A token stands for at least a byte."""
    return max(model.settings.max_length, len(text.encode()) + 64)
