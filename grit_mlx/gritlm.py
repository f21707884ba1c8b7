"""class GritLM: one model that embeds and generates. The SDK.

Shapes: N texts, E embedding size, B batch, L length.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.generate import GenerationResponse
from numpy.typing import NDArray

from grit_mlx.errors import ArgumentError, ModeError, Option
from grit_mlx.model import generation, hub, inputs, loading, official, prompts
from grit_mlx.model.attention import table_rows
from grit_mlx.model.batching import windows
from grit_mlx.model.caches import TextCache
from grit_mlx.model.checkpoint import decoder_config
from grit_mlx.model.embedding import Embedder
from grit_mlx.model.generation import PromptCache
from grit_mlx.model.options import EmbeddingOptions, GenerationOptions, ModelChoice
from grit_mlx.model.team import Team
from grit_mlx.model.writers import only_embeds
from grit_mlx.options import check_unicode, from_mapping
from grit_mlx.progress import Progress, reporting
from grit_mlx.vectors.compression import DTYPES, CompressedVectors, compress, cosine

__all__ = ["GritLM"]

logger = logging.getLogger("grit_mlx")

Prompt = str | Sequence[prompts.Message] | Sequence[int] | NDArray[Any] | mx.array | Mapping[str, Any]
Document = str | Mapping[str, str]
Cache: TypeAlias = "PromptCache | TextCache | None"


class GritLM:
    """One model, two attention modes: ``encode`` embeds bidirectionally, ``generate`` writes causally.

    The names follow the official ``gritlm`` package, so that programs written for it carry over.

    Args:
        model_name_or_path: a folder, a hub id, a short name (``"gritlm-7b"``), or None for the default model.
        mode: ``"unified"``; ``"embedding"`` leaves the language-model head out of memory; ``"generative"``
            cannot embed and so loads any mlx-lm model.
        pooling_method: ``"mean"``, ``"weightedmean"``, ``"lasttoken"`` or ``"cls"``. None, here and for the next two,
            is the model's setting (``grit.json``).
        normalized: whether vectors have length 1.
        attn: ``"bbcc"`` (bidirectional embedding) or ``"cccc"`` (causal).
        dtype: ``"auto"`` (float32 on a CPU, as stored on a GPU), ``"stored"``, ``"float32"``, ``"float16"`` or
            ``"bfloat16"``.
        adapter_path: a folder with a LoRA or DoRA adapter in mlx-lm's layout.
        revision: branch, tag or commit of a hub repository.
        trust_remote_code: run Python code that comes with the model.
        projection: for the official package: the length that vectors must have.
        embed_eos: for the official package: text that is put after each text that is embedded.
        **options: what the official package passes to transformers; see docs/python.md.

    Raises:
        ModelError: the model cannot be found, downloaded, read or used; one of its kinds.
        ModeError: ``"generative"`` of a model that only embeds.
        ArgumentError: an unknown mode, pooling, attn or dtype.
    """

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        mode: str = "unified",
        pooling_method: str | None = None,
        normalized: bool | None = None,
        attn: str | None = None,
        dtype: str = "auto",
        adapter_path: str | Path | None = None,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        projection: int | None = None,
        embed_eos: str = "",
        **options: Any,
    ) -> None:
        choice = ModelChoice(
            model=model_name_or_path,
            adapter=adapter_path,
            revision=revision,
            dtype=official.dtype_name(official.constructor(options).get("dtype", dtype)),
            trust_remote_code=trust_remote_code,
            pooling=pooling_method and pooling_method.replace("_", ""),  # the official README spells weighted_mean
            attn=attn,
            normalized=normalized,
        )
        self._set_up(loading.load(choice, mode=mode), mode)
        self._warns = not self.trained_to_embed
        if projection is not None and projection != (self.projection and self.embedding_size):
            raise ArgumentError(f"{self.folder} has no projection to {projection} dimensions.")
        if embed_eos and self.tokenizer.convert_tokens_to_ids(embed_eos) in (None, self.tokenizer.unk_token_id):
            raise ArgumentError(f"The tokenizer has no token {embed_eos!r}, which embed_eos asks for.")
        self.embed_eos = embed_eos

    @classmethod
    def from_choice(cls, choice: ModelChoice, *, mode: str = "unified", team: Team | None = None) -> GritLM:
        """As the constructor, from one value; ``team`` are processes that compute together, which all call this."""
        self = cls.from_loaded(loading.load(choice, mode=mode, team=team), mode=mode)
        self._warns = not self.trained_to_embed
        return self

    @classmethod
    def from_loaded(cls, loaded: loading.LoadedModel, *, mode: str = "unified") -> GritLM:
        """A GritLM around a model that is in memory already, with the settings it was loaded with."""
        self = cls.__new__(cls)
        self._set_up(loaded, mode)
        return self

    def _set_up(self, loaded: loading.LoadedModel, mode: str) -> None:
        self.mode = mode
        self.settings = loaded.settings
        self.model = loaded.model
        self.config = loaded.config
        self.folder = loaded.folder
        self.adapter = loaded.adapter
        self.trained_to_embed = loaded.trained_to_embed
        self._warns = False  # who put it together knows what it is
        self._loaded = loaded
        if mode == "generative":
            self.check_generates()
        # Programs written for the official package call the tokenizer itself; mlx-lm wants its wrapper.
        self.tokenizer = loaded.tokenizer._tokenizer
        official.with_arrays(self.tokenizer)
        self._engine_tokenizer = loaded.tokenizer
        self.rows = table_rows(loaded.model) or len(self.tokenizer)
        self.projection = loaded.projection
        self.embed_eos = ""
        self._embedder = None if loaded.hidden_size is None else Embedder(loaded)

    def with_attention(self, attn: str) -> GritLM:
        """The same weights, embedding with this attention."""
        settings = self.settings.override(attn=attn)
        return GritLM.from_loaded(replace(self._loaded, settings=settings), mode=self.mode)

    def __repr__(self) -> str:
        parts = [repr(hub.name_of(self.folder)), f"mode={self.mode!r}"]
        if self.adapter is not None:
            parts.append(f"adapter={self.adapter.name!r}")
        if self._embedder is not None:
            parts += [f"embedding_size={self.embedding_size}", f"pooling={self.settings.pooling!r}"]
            parts.append(f"max_length={self.settings.max_length}")
        weights: Any = tree_flatten(self.model.parameters())  # its other form is a dictionary
        dtypes = {str(value.dtype).rpartition(".")[2] for _, value in weights}
        return f"GritLM({', '.join(parts)}, dtype={'+'.join(sorted(dtypes))!r})"

    def __reduce__(self) -> Any:
        raise ArgumentError("A model cannot be copied or sent to another process: load it in each process by name.")

    # Embedding

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        instruction: str | None = None,
        embed_instruction: bool = False,
        get_cache: bool = False,
        convert_to_numpy: bool = True,
        add_special_tokens: bool = True,
        *,
        role: str | None = None,
        output_dtype: str = "float32",
        long_texts: str = "truncate",
        progress: Progress | bool | None = None,
        normalized: bool | None = None,
        truncate_dim: int | None = None,
        batch_tokens: int | None = None,
        **other: Any,
    ) -> Any:
        """Embed texts; numbers equal the official package's.

        A text's vector does not depend on its neighbours, and the order is kept. Batches are formed by length
        within what memory allows; there is no batch size to guess.

        Args:
            sentences: one text or many.
            batch_size: maximum number of texts per batch; None for what fits into memory.
            max_length: maximum number of tokens of a text, instruction included; None for the model's setting (512).
            instruction: literal text put before each text. Its tokens are attended to but, for mean pooling, left out
                of the mean. With ``role`` the bare instruction, which is put into GRIT's format.
            embed_instruction: include the instruction's tokens in the mean.
            get_cache: also return the keys and values of each text, for ``generate(cache=...)``.
            convert_to_numpy: False returns an ``mx.array``.
            add_special_tokens: whether the tokenizer adds its BOS.
            role: ``"query"``, ``"document"`` or ``"similarity"``: use the model's own instruction for this role,
                unless ``instruction`` is another one.
            output_dtype: ``"float32"``, ``"float16"``, ``"int8"`` or ``"binary"``; the last two return
                ``CompressedVectors`` with scales.
            long_texts: ``"truncate"`` reads the first ``max_length`` tokens; ``"average"`` reads all, in chunks
                of that length whose vectors are averaged, weighted by their tokens; ``"refuse"`` raises a TextError.
            progress: called with texts done and texts in all; True draws a bar on stderr, False none, None draws one
                for many texts if stderr is a terminal.
            normalized: whether the vectors have length 1; None for what the model was loaded for.
            truncate_dim: keep so many numbers of each vector, its first; for models that were trained for it.
            batch_tokens: maximum number of tokens per batch, padding included; None for what is fastest here.
            **other: arguments of the official package and of sentence-transformers; see docs/python.md.

        Returns:
            ``(N, E)``, or ``(E,)`` for a single text. With ``get_cache`` a pair of that and a list with the
            ``TextCache`` of each text (of a single text just that).

        Raises:
            TextError: names the index of an empty text, or of one that the instruction leaves no room for.
            ArgumentError: texts of another type, or options that do not go together.
            ModeError: the model was loaded for generating only.
            NonFiniteError: the model computed NaN or infinity.
            MemoryLimitError: one text alone does not fit into memory.
        """
        if other:
            own = {
                "batch_size": batch_size,
                "max_length": max_length,
                "instruction": instruction,
                "embed_instruction": embed_instruction,
                "get_cache": get_cache,
                "convert_to_numpy": convert_to_numpy,
                "add_special_tokens": add_special_tokens,
                "role": role,
                "output_dtype": output_dtype,
                "long_texts": long_texts,
                "progress": progress,
                "normalized": normalized,
                "truncate_dim": truncate_dim,
                "batch_tokens": batch_tokens,
            }
            result = self.encode(sentences, **own | official.encode(other, own=own))
            return official.as_tensor(result) if other.get("convert_to_tensor") else result
        single = inputs.is_single(sentences)
        texts = list(inputs.texts_of([str(sentences)] if single else sentences))
        options = self.embedding_options(
            batch_size=batch_size,
            max_length=max_length,
            instruction=instruction,
            embed_instruction=embed_instruction,
            get_cache=get_cache,
            add_special_tokens=add_special_tokens,
            role=role,
            long_texts=long_texts,
            normalized=normalized,
            truncate_dim=truncate_dim,
            batch_tokens=batch_tokens,
        )
        if output_dtype not in DTYPES:
            raise ArgumentError(
                "Unknown ", Option("output_dtype"), f" {output_dtype!r}: use one of {', '.join(DTYPES)}."
            )
        if not convert_to_numpy and output_dtype in {"int8", "binary"}:
            raise ArgumentError(f"output_dtype={output_dtype!r} is a NumPy format: leave convert_to_numpy at True.")

        vectors = np.zeros((len(texts), options.truncate_dim or self.embedding_size), dtype=np.float32)
        caches: list[TextCache] = []
        with reporting(progress, "Embedding", len(texts)) as report:
            for start, computed, kept in self._embedded(texts, options, report, len(texts)):
                vectors[start : start + len(computed)] = computed
                caches += kept

        result = _as(vectors, output_dtype, convert_to_numpy)
        if single:
            result = _only(result)
        if not get_cache:
            return result
        return result, caches[0] if single else caches

    def encode_queries(self, queries: str | Iterable[str], instruction: str | None = None, **options: Any) -> Any:
        """Embed search queries.

        Args:
            queries: one text or many.
            instruction: literal text put before each. None puts the model's own query instruction into GRIT's format
                (the official package uses no instruction and no format there).
            **options: as for ``encode``.
        """
        role = "query" if instruction is None and options.get("prompt") is None else None
        return self.encode(queries, instruction=instruction, role=role, **options)

    def encode_corpus(
        self, corpus: Document | Iterable[Document] | Any, instruction: str | None = None, **options: Any
    ) -> Any:
        """Embed documents.

        Args:
            corpus: texts, or tables with ``"text"`` and perhaps ``"title"``, which is put before the text with a
                space.
            instruction: as for ``encode_queries``; documents have none by default, but GRIT's format.
            **options: as for ``encode``.

        Raises:
            ArgumentError: a table without ``"text"``.
        """
        role = "document" if instruction is None and options.get("prompt") is None else None
        return self.encode(inputs.documents_of(corpus), instruction=instruction, role=role, **options)

    # As sentence-transformers calls them.

    def encode_query(self, sentences: str | Iterable[str], **options: Any) -> Any:
        """Embed search queries, as ``encode_queries``."""
        return self.encode_queries(sentences, **options)

    def encode_document(self, sentences: Any, **options: Any) -> Any:
        """Embed documents, as ``encode_corpus``."""
        return self.encode_corpus(sentences, **options)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
        """Cosines of all pairs: of ``(N, E)`` and ``(M, E)`` the matrix ``(N, M)``."""
        return cosine(np.atleast_2d(np.asarray(embeddings1)), np.atleast_2d(np.asarray(embeddings2)))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
        """Cosines of the rows of ``(N, E)`` with those of another ``(N, E)``: ``(N,)``."""
        return np.array([cosine(a, b) for a, b in zip(embeddings1, embeddings2, strict=True)], dtype=np.float32)

    def get_sentence_embedding_dimension(self) -> int:
        """E, the length of a vector."""
        return self.embedding_size

    get_embedding_dimension = get_sentence_embedding_dimension

    @property
    def max_seq_length(self) -> int:
        """Maximum number of tokens of a text that is embedded."""
        return self.settings.max_length

    def encode_iter(
        self, sentences: Iterable[str], *, progress: Progress | None = None, **options: Any
    ) -> Iterator[NDArray[np.float32]]:
        """Embed any number of texts in constant memory: one ``(E,)`` float32 vector for each, in order.

        Args:
            sentences: any iterable of texts; it is read as the vectors are taken.
            progress: called with texts done and None.
            **options: ``EmbeddingOptions``, as for ``encode``, without ``get_cache``.

        Raises:
            As ``encode``; an index counts from the first text of all.
        """
        chosen = self.embedding_options(**options)
        if inputs.is_single(sentences):
            raise ArgumentError("encode_iter takes an iterable of texts; for a single text use encode.")
        texts = inputs.texts_of(sentences)
        # Not itself a generator: wrong options are refused now, not when the first vector is taken.
        return (vector for _, computed, _ in self._embedded(texts, chosen, progress, None) for vector in computed)

    def _embedded(
        self, texts: Iterable[str], options: EmbeddingOptions, progress: Progress | None, total: int | None
    ) -> Iterator[tuple[int, NDArray[np.float32], list[TextCache]]]:
        """Window by window: the index of the first text, vectors ``(N, E)``, and caches if ``options`` ask for them."""
        embedder = self.embedder
        if self._warns:
            self._warns = False
            logger.warning(
                "%s was not trained to embed, so its scores say little. Use a model that was (grit models list "
                "--available), or tune this one: grit train --init",
                hub.name_of(self.folder),
            )
        texts = (text + self.embed_eos for text in texts) if self.embed_eos else texts
        start = 0
        for window in windows(texts):
            shifted = None if progress is None else partial(_shifted, progress, start, total)
            yield start, *embedder.embed(window, options, first_index=start, progress=shifted)
            start += len(window)

    @property
    def engine_tokenizer(self) -> Any:
        """The tokenizer in mlx-lm's wrapper, which knows the tokens that end an answer."""
        return self._engine_tokenizer

    @property
    def embedding_size(self) -> int:
        """E, the length of a vector."""
        return self.embedder.size

    @property
    def pooling_method(self) -> str:
        """How token states become a vector."""
        return self.settings.pooling

    @property
    def normalized(self) -> bool:
        """Whether vectors have length 1."""
        return self.settings.normalized

    @property
    def attn(self) -> str:
        """The attention mode."""
        return self.settings.attn

    @property
    def device(self) -> str:
        """Where PyTorch's tensors have to be to be handed over: in the memory that mlx shares with the CPU."""
        return "cpu"

    def to(self, *_: Any, **__: Any) -> GritLM:
        """Itself, as PyTorch's other methods give it: mlx has one memory, and the dtype is chosen at load."""
        return self

    eval = train = cpu = cuda = half = bfloat16 = requires_grad_ = to

    @property
    def embedder(self) -> Embedder:
        """What computes vectors, a batch at a time.

        Raises:
            ModeError: the model was loaded for generating only.
        """
        return self._require_embedder()

    def _require_embedder(self) -> Embedder:
        if self._embedder is None:
            raise ModeError(
                "This model was loaded with mode='generative' and cannot embed. Load it with mode='unified'."
            )
        return self._embedder

    def embedding_options(self, **options: Any) -> EmbeddingOptions:
        """The options with the model's own settings in place of None, and the instruction as it precedes a text."""
        self._require_embedder()
        known = {field.name: None for field in fields(EmbeddingOptions)}
        chosen = from_mapping(EmbeddingOptions, official.encode(options, own=known))
        if (dim := chosen.truncate_dim) is not None and dim > self.embedding_size:
            size = self.embedding_size
            raise ArgumentError(Option("truncate_dim"), f" must be at most {size}, the length of a vector, not {dim}.")
        if chosen.max_length is None:
            chosen = replace(chosen, max_length=self.settings.max_length)
        if chosen.role is None:
            return replace(chosen, instruction=chosen.instruction or "")
        own = self.settings.instruction(chosen.role)
        instruction = own if chosen.instruction is None else chosen.instruction
        return replace(chosen, instruction=self.settings.prompt(instruction))

    # Generating

    def generate(
        self,
        prompt: Prompt | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        cache: Cache = None,
        **options: Any,
    ) -> Any:
        """The model's complete answer, as a text. The arguments are ``stream``'s.

        As in the official package, ``(B, L)`` token ids (an array, a tensor, or what the tokenizer returns) give an
        array of the same kind that holds each row and its answer, padded on the right.
        """
        prompt = options.pop("input_ids", prompt)
        rows = official.token_rows(prompt, options.pop("attention_mask", None))
        if rows is None:
            return "".join(self.stream(prompt, max_tokens, temperature, cache, **options))
        if (length := options.pop("max_length", None)) is not None:  # transformers counts the prompt as well
            max_tokens = max(1, length - max(map(len, rows)))
        if len(rows) == 1:
            responses = self.stream_responses(rows[0], max_tokens, temperature, cache, **options)
            answers = [[response.token for response in responses]]
        else:
            chosen, _ = self._generation_options(max_tokens, temperature, cache, options)
            tokens = [self.prompt_tokens(row, raw=False, continues=False) for row in rows]
            answers = generation.batch_tokens(self.model, self._engine_tokenizer, tokens, chosen)
        padding = self.tokenizer.pad_token_id or 0
        return official.like(prompt, [row + answer for row, answer in zip(rows, answers, strict=True)], padding)

    def stream(
        self, prompt: Prompt, max_tokens: int = 256, temperature: float = 0.0, cache: Cache = None, **options: Any
    ) -> Iterator[str]:
        """The model's answer, piece by piece.

        Args:
            prompt: a text, which becomes a user's message; a chat as ``[{"role": ..., "content": ...}, ...]``; or
                token ids, which are used as they are.
            max_tokens: maximum number of tokens to generate; -1 for no limit.
            temperature: 0 always takes the most likely token.
            cache: a ``PromptCache`` to reuse what the last prompt computed; or a text's keys and values from
                ``encode(get_cache=True)``, which ``prompt`` then continues (see ``prompts.rag_prompt``).
            **options: the other fields of ``GenerationOptions`` (``top_p``, ``top_k``, ``seed``, ``stop``, ``kv_bits``,
                ...), and ``raw``: take a text as the complete prompt, without the chat format; special tokens in it
                are obeyed. ``schema`` is a JSON schema (a mapping, its text, or a Pydantic class), ``regex`` a regular
                expression, ``choice`` a list of texts: the answer then has this form unless ``max_tokens`` cuts it.

        Raises:
            ArgumentError: an empty prompt, or an option out of range.
            ModeError: the model only embeds, or was loaded for embedding only.
        """
        responses = self.stream_responses(prompt, max_tokens, temperature, cache, **options)
        return (response.text for response in responses if response.text)

    def stream_responses(
        self,
        prompt: Prompt,
        max_tokens: int = 256,
        temperature: float = 0.0,
        cache: Cache = None,
        *,
        raw: bool = False,
        **options: Any,
    ) -> Iterator[GenerationResponse]:
        """As ``stream``, but mlx-lm's ``GenerationResponse``: text, token, tokens per second, finish reason."""
        chosen, cache = self._generation_options(max_tokens, temperature, cache, options)
        continues = cache is not None and not isinstance(cache, PromptCache)
        tokens = self.prompt_tokens(prompt, raw=raw, continues=continues)
        held = cache[0].offset if continues and cache else 0  # type: ignore[index]
        within = self.within_context(chosen, held + len(tokens))
        if (team := self._loaded.team) is None or team.split is None:
            responses = generation.stream_responses(self.model, self._engine_tokenizer, tokens, within, cache=cache)
        else:
            if cache is not None:
                raise ArgumentError("A model that is split among processes does not reuse what it computed before.")
            responses = self._leading(team, tokens, within)
        return responses if within is chosen else self._noted(responses)

    def _leading(self, team: Team, tokens: Sequence[int], options: GenerationOptions) -> Iterator[GenerationResponse]:
        with team.doing("generate", tokens=tokens, options=asdict(options)):
            yield from self._together(tokens, options)

    def _together(self, tokens: Sequence[int], options: GenerationOptions) -> Iterator[GenerationResponse]:
        model, team = self.model, self._loaded.team
        return generation.stream_responses(model, self._engine_tokenizer, tokens, options, team=team)

    @property
    def team(self) -> Team | None:
        """The processes that compute together; None where this one computes alone."""
        return self._loaded.team

    @property
    def is_split(self) -> bool:
        """Whether this process has only a part of the model: what it has of keys and values is not to be kept."""
        return self.team is not None and self.team.split is not None

    @property
    def jobs(self) -> dict[str, Callable[..., object]]:
        """What a process that follows its team's leader computes, for ``Team.follow``."""

        def generate(tokens: list[int], options: dict[str, Any]) -> None:
            for _ in self._together(tokens, GenerationOptions(**options)):
                pass

        return {"generate": generate} | ({} if self._embedder is None else {"embed": self._embedder.follow})

    def generate_batch(
        self,
        prompts: Iterable[Prompt],
        max_tokens: int = 256,
        temperature: float = 0.0,
        *,
        raw: bool = False,
        **options: Any,
    ) -> list[str]:
        """Answers to many prompts, computed together; the arguments are ``stream``'s.

        Raises:
            ArgumentError: as for ``stream``; also for ``kv_bits``, which batches do not have.
            ModeError: the model was loaded for embedding only.
        """
        chosen, _ = self._generation_options(max_tokens, temperature, None, options)
        if isinstance(prompts, str | Mapping | set) or not isinstance(prompts, Iterable):
            raise ArgumentError("generate_batch takes a list of prompts; for a single one use generate.")
        tokens = [self.prompt_tokens(prompt, raw=raw, continues=False) for prompt in prompts]
        chosen = self.within_context(chosen, max(map(len, tokens), default=0))
        return generation.generate_batch(self.model, self._engine_tokenizer, tokens, chosen)

    def _generation_options(
        self, max_tokens: int, temperature: float, cache: Any, options: Mapping[str, Any]
    ) -> tuple[GenerationOptions, Any]:
        """The options under our names, and the cache."""
        self.check_generates()
        if not (temperature == 0 and "temp" in options):
            options = {"temperature": temperature, **options}
        taken = official.generate(options)
        cache = official.text_cache(taken.pop("cache", cache))
        taken = {"max_tokens": max_tokens, **taken}
        return from_mapping(
            GenerationOptions, {name: value for name, value in taken.items() if value is not None}
        ), cache

    def within_context(self, options: GenerationOptions, tokens: int) -> GenerationOptions:
        """The options for an answer that ends where the model's context does: beyond it, models write rubbish.

        Raises:
            ArgumentError: they name a token that the model does not have.
        """
        inputs.token_ids(list(options.logit_bias), rows=self.rows, what="logit_bias")
        room = int(decoder_config(self.config).get("max_position_embeddings") or 0) - tokens
        if room < 1 or 0 <= options.max_tokens <= room:
            return options
        return replace(options, max_tokens=room)

    def _noted(self, responses: Iterator[GenerationResponse]) -> Iterator[GenerationResponse]:
        for response in responses:
            if response.finish_reason == "length":
                context = decoder_config(self.config)["max_position_embeddings"]
                logger.warning("The answer ends here because the model's context of %d tokens is full.", context)
            yield response

    def check_generates(self) -> None:
        """Refuse a model that cannot write.

        Raises:
            ModeError: it only embeds, or was loaded for embedding only; the message names what helps.
        """
        if not self.settings.generates:
            raise only_embeds(self.folder)
        if self.mode == "embedding":
            raise ModeError(
                "This model was loaded with mode='embedding' and cannot generate. Load it with mode='unified'."
            )

    def prompt_tokens(self, prompt: Any, *, raw: bool, continues: bool) -> list[int]:
        """The tokens of a prompt; warns if they exceed what the model was trained on."""
        rows = official.token_rows(prompt)
        tokens = inputs.token_ids(rows[0] if rows and len(rows) == 1 else prompt, rows=self.rows)
        if tokens is None:
            tokens = self._text_tokens(prompt, raw=raw, continues=continues)
            if unknown := prompts.unknown_token(self.tokenizer, tokens):
                raise ArgumentError(f"The prompt {unknown}.")
        context = self.config.get("max_position_embeddings")
        if isinstance(context, int) and len(tokens) >= context:
            logger.warning(
                "The prompt has %d tokens, but the model was trained on at most %d: expect poor answers.",
                len(tokens),
                context,
            )
        return tokens

    def _text_tokens(self, prompt: Any, *, raw: bool, continues: bool) -> list[int]:
        if isinstance(prompt, str):
            if not prompt.strip():
                raise ArgumentError("The prompt is empty.")
            check_unicode(prompt, "The prompt")
            if continues:
                return prompts.literal_tokens(self.tokenizer, prompt)
            return (prompts.raw_tokens if raw else prompts.chat_tokens)(self.tokenizer, prompt)
        if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
            return prompts.chat_tokens(self.tokenizer, prompt)
        raise ArgumentError("A prompt is a text, a list of messages or a list of token ids.")


def _as(vectors: NDArray[np.float32], dtype: str, convert_to_numpy: bool) -> Any:
    if not convert_to_numpy:
        return mx.array(vectors.astype(dtype))
    return compress(vectors, dtype)


def _only(vectors: Any) -> Any:
    if isinstance(vectors, CompressedVectors):
        return replace(vectors, values=vectors.values[0], scales=vectors.scales[0])
    return vectors[0]


def _shifted(progress: Progress, start: int, total: int | None, done: float) -> None:
    progress(start + done, total)
