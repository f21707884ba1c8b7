"""What fits into a model's context: the question, the documents and the answer together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from grit_mlx.errors import ArgumentError, Option

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM
    from grit_mlx.rag.encoding import Encoder

__all__ = ["Fit", "check_length", "context_of", "fitted"]

# Characters of a question that are tokenised: more of them take seconds and say no more.
_COUNTED: Final = 200_000

# At most this part of the context is kept free for an answer, however long it may become.
_ANSWER_PART: Final = 2

_SLACK: Final = 8  # tokens that joining texts may add


@dataclass(frozen=True)
class Fit:
    """How much of what was asked for fits.

    Attributes:
        documents: how many, from the best.
        forgotten: how many turns of the conversation are left out, from its beginning.
        max_tokens: maximum number of tokens of the answer; -1 for no limit.
    """

    documents: int
    forgotten: int
    max_tokens: int


def context_of(model: GritLM) -> int | None:
    """The number of tokens that a model was made for; None if its config does not say."""
    config = {**model.config.get("text_config", {}), **model.config}
    context = config.get("max_position_embeddings")
    return context if isinstance(context, int) and context > 0 else None


def check_length(encoder: Encoder, question: str, *, documents: int = 0) -> None:
    """Refuse a question that the model cannot read.

    Args:
        encoder: counts its tokens.
        question: the question.
        documents: tokens that have to fit beside it.

    Raises:
        ArgumentError: with its length.
    """
    context = context_of(encoder.model)
    if context is None:
        return
    # A token may stand for many characters, but not of all of a text.
    tokens = encoder.count(question[:_COUNTED])
    if len(question) > _COUNTED or tokens + encoder.count(encoder.query_prompt) + _SLACK + documents > context:
        more = "more than " if len(question) > _COUNTED else ""
        raise ArgumentError(
            f"The question has {more}{tokens:,} tokens, but the model's context is {context:,} tokens"
            + (f", of which a document takes {documents:,}" if documents else "")
            + ". Shorten it."
        )


def fitted(
    encoder: Encoder,
    question: str,
    documents: Sequence[str],
    *,
    mode: str,
    history: Sequence[tuple[str, str]],
    max_tokens: int,
) -> Fit:
    """How many documents and turns fit beside the question and its answer.

    Documents come before the history, and the best of them before the others; of the history the latest turns.

    Args:
        encoder: counts tokens.
        question: the question.
        documents: the best first.
        mode: one of ``modes.MODES``.
        history: questions and answers.
        max_tokens: maximum number of tokens of the answer; -1 for no limit.

    Raises:
        ArgumentError: not even the best document fits.
    """
    context = context_of(encoder.model)
    if context is None:
        return Fit(len(documents), 0, max_tokens)

    def count(text: str) -> int:
        return encoder.count(encoder.neutralised(text))

    check_length(encoder, question)
    frame = encoder.frame(mode) + _SLACK
    own = count(question) + frame + (encoder.count(encoder.query_prompt) if "query" in mode.split("-") else 0)
    answer = context // _ANSWER_PART if max_tokens < 0 else min(max_tokens, context // _ANSWER_PART)
    room = context - own - answer
    around = encoder.count(encoder.document_prompt) + _SLACK
    sizes = list(accumulate(count(document) + around for document in documents))
    kept = sum(size <= room for size in sizes)
    if not kept:
        raise ArgumentError(
            f"The question has {own - frame:,} tokens and the best document {sizes[0]:,}, which does not fit into the "
            f"model's context of {context:,} tokens with an answer of {answer:,}. Shorten the question, or lower ",
            *(Option("max_tokens"), "."),
        )
    turns = list(accumulate(count(asked) + count(said) + frame for asked, said in reversed(history)))
    remembered = sum(size <= room - sizes[kept - 1] for size in turns)
    held = own + sizes[kept - 1] + (turns[remembered - 1] if remembered else 0)
    return Fit(kept, len(history) - remembered, context - held if max_tokens < 0 else min(max_tokens, context - held))
