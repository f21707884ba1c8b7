"""GRIT models in ``llm`` (extra ``llm``): this module is its plugin, found by the entry point ``llm``.

::

    llm -m grit 'Why does bread rise?'                        # the default model; the pulled ones by their names
    llm embed-multi notes --files docs '*.md' -m grit --store
    llm similar notes -c 'how do I install it'

``grit/NAME`` stands for each model on this machine, ``grit`` for the default one. With GRIT_BASE_URL (and GRIT_API_KEY)
they are asked of a running ``grit serve``. Models are loaded when they are first asked, not when ``llm`` starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click
import llm
from llm import Collection, hookimpl
from pydantic import Field

from grit_mlx.errors import GritError
from grit_mlx.integrations.backend import Backend, Piece, connect

__all__ = ["GritEmbedding", "GritModel", "register_commands", "register_embedding_models", "register_models"]

_DEFAULT = "grit"


@hookimpl
def register_models(register: Any) -> None:
    """The default model and each one on this machine that writes."""
    for name, model in _models():
        register(GritModel(name, model))


@hookimpl
def register_embedding_models(register: Any) -> None:
    """The default model and each one on this machine."""
    for name, model in _models():
        register(GritEmbedding(name, model))


@hookimpl
def register_commands(cli: Any) -> None:
    """``llm grit models``."""

    @cli.group(name="grit")
    def grit() -> None:
        """GRIT models: embeddings and text from one set of weights."""

    @grit.command(name="models")
    def models() -> None:
        """List the models on this machine, as -m takes them."""
        for name, model in _models():
            click.echo(f"{name}\t{model or _default_name()}")


def _models() -> Iterator[tuple[str, str | None]]:
    """What ``-m`` takes, and the model's name or folder; None for the default."""
    from grit_mlx.model import hub

    yield _DEFAULT, None
    seen = set()
    for local in hub.local_models():
        if local.name not in seen:
            seen.add(local.name)
            yield f"{_DEFAULT}/{local.name}", str(local.folder)


def _default_name() -> str:
    from grit_mlx.model import hub

    return hub.default_model() or "none"


# llm makes its models anew for each call of get_model.
_backends: dict[str | None, Backend] = {}


def _backend(model: str | None) -> Backend:
    if model not in _backends:
        base_url = os.environ.get("GRIT_BASE_URL")
        key = os.environ.get("GRIT_API_KEY") if base_url else None
        _backends[model] = connect(None if base_url else model, base_url=base_url, api_key=key)
    return _backends[model]


class GritModel(llm.Model):
    """A model that writes."""

    can_stream = True
    supports_schema = True

    class Options(llm.Options):
        """What ``-o`` takes."""

        max_tokens: int | None = Field(default=None, description="Maximum number of tokens to generate")
        temperature: float | None = Field(default=None, description="Sampling temperature; 0 for the likeliest token")
        top_p: float | None = Field(default=None, description="Sample from the likeliest tokens up to this probability")
        top_k: int | None = Field(default=None, description="Sample from this many of the likeliest tokens")
        min_p: float | None = Field(default=None, description="Leave out tokens less likely than this fraction")
        repetition_penalty: float | None = Field(default=None, description="Divide the logits of recent tokens by this")
        presence_penalty: float | None = Field(
            default=None, description="Subtract this from the logits of recent tokens"
        )
        frequency_penalty: float | None = Field(default=None, description="Subtract this for each time they occur")
        seed: int | None = Field(default=None, description="Random seed")
        stop: str | None = Field(default=None, description="Stop at this text")

    def __init__(self, model_id: str, model: str | None) -> None:
        self.model_id = model_id
        self._model = model
        self._caches: dict[str, Any] = {}

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        """The answer, piece by piece; a conversation's keys and values are kept for its next turn."""
        options = {name: value for name, value in prompt.options.model_dump().items() if value is not None}
        if prompt.schema:
            options["schema"] = prompt.schema
        if conversation is not None and not os.environ.get("GRIT_BASE_URL"):
            options["cache"] = self._cache(conversation.id)
        last = Piece("")
        try:
            for piece in _backend(self._model).chat([_message(message) for message in prompt.messages], **options):
                last = piece if piece.prompt_tokens is not None else last
                yield piece.text
        except GritError as error:
            raise llm.ModelError(str(error)) from error
        if last.prompt_tokens is not None:
            response.set_usage(input=last.prompt_tokens, output=last.completion_tokens)

    def _cache(self, conversation: str) -> Any:
        from grit_mlx import PromptCache

        return self._caches.setdefault(conversation, PromptCache())


class GritEmbedding(llm.EmbeddingModel):
    """A model that embeds. What is stored is embedded as a document, what ``llm similar`` is asked as a query."""

    batch_size = 512

    def __init__(self, model_id: str, model: str | None) -> None:
        self.model_id = model_id
        self._model = model

    def embed(self, item: str | bytes, *, key: str | None = None) -> list[float]:
        """The vector of a text."""
        self._check(item)
        # llm does not say whether a text is a query: only a collection that is searched asks from here.
        asked = sys._getframe(1).f_code is Collection.similar.__code__
        return self._embedded([str(item)], "query" if asked else "document")[0]

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:
        """Vectors of documents."""
        yield from self._embedded([str(item) for item in items], "document")

    def _embedded(self, texts: list[str], role: str) -> list[list[float]]:
        if not texts:
            return []
        try:
            vectors = _backend(self._model).embed(texts, role=role)
        except GritError as error:
            raise llm.ModelError(str(error)) from error
        return [[float(value) for value in vector] for vector in vectors]


def _message(message: Any) -> dict[str, Any]:
    texts = [part.text for part in message.parts if hasattr(part, "text")]
    if len(texts) != len(message.parts):
        raise llm.ModelError("GRIT models take text only: no tools, no attachments.")
    return {"role": message.role, "content": "\n".join(texts)}
