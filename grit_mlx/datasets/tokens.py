"""From rows to tokens: embedding texts with their instructions, conversations with the labels of their answers.

Exact labels: of a conversation exactly the assistant's words and the token that ends each turn take part in the
loss. Marked difference from the official code, which measures turns by tokenising them one by one and forgets
the line break between them, so that the end of the first answer is masked and parts of later markers are learned.
``label_mask="official"`` computes that, for comparison.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grit_mlx.datasets.examples import ChatRow, EmbeddingRow, TextRow
from grit_mlx.errors import ArgumentError, TokenizerError
from grit_mlx.model import prompts

__all__ = ["RowError", "TokenizedChat", "TokenizedText", "tokenize_chats", "tokenize_embedding_rows"]

# Source: the official data loader, so that no text takes seconds to tokenise.
_CHARACTERS_PER_TOKEN = 10


@dataclass(frozen=True)
class TokenizedText:
    """A text to be embedded.

    Attributes:
        ids: int32, instruction and text.
        skipped: how many of them, from the start, are the instruction and left out of the mean.
    """

    ids: NDArray[np.int32]
    skipped: int


@dataclass(frozen=True)
class TokenizedChat:
    """Tokens to be generated.

    Attributes:
        ids: int32.
        learned: boolean, true on tokens that take part in the loss.
    """

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]


def tokenize_embedding_rows(
    tokenizer: Any,
    rows: Sequence[EmbeddingRow],
    *,
    query_max_length: int,
    passage_max_length: int,
    prompt_format: str = "grit",
) -> list[list[TokenizedText]]:
    """The texts of each row, in its order.

    Raises:
        ArgumentError: an instruction leaves no room for its text. ``error.row`` is the row's position.
    """
    # Texts of one instruction are tokenised together, which is many times faster than one by one.
    groups: dict[tuple[str, int], list[tuple[int, int, str]]] = defaultdict(list)
    for i, row in enumerate(rows):
        for j, (instruction, text) in enumerate(row.texts):
            limit = passage_max_length if j else query_max_length
            groups[instruction, limit].append((i, j, text[: _CHARACTERS_PER_TOKEN * limit]))
    result: list[list[Any]] = [[None] * len(row.texts) for row in rows]
    for (instruction, limit), places in groups.items():
        plain = prompt_format == "plain"
        prompt = instruction if plain else prompts.embedding_prompt(instruction)
        texts = [text for _, _, text in places]
        tokenized = prompts.tokenize_texts(tokenizer, texts, instruction=prompt, max_length=limit, joint=plain)
        for (i, j, _), tokens in zip(places, tokenized, strict=True):
            if tokens.instruction_tokens >= len(tokens.ids):
                raise RowError(i, f"its instruction takes all {limit} tokens and leaves no room for the text")
            result[i][j] = TokenizedText(np.array(tokens.ids, dtype=np.int32), tokens.instruction_tokens)
    return result


class RowError(ArgumentError):
    """One row of several cannot be used; the reader of the file adds its path and line."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def tokenize_chats(
    tokenizer: Any, rows: Sequence[ChatRow | TextRow], *, max_length: int, label_mask: str = "exact"
) -> list[TokenizedChat | None]:
    """Tokens and labels of conversations (see ``prompts.render_chat``) and of plain texts.

    Args:
        tokenizer: a Hugging Face tokenizer.
        rows: the data.
        max_length: number of tokens to keep of each, from the left.
        label_mask: one of ``settings.LABEL_MASKS``.

    Returns:
        One for each row; None if there is nothing to learn within ``max_length``.

    Raises:
        RowError: the chat template refuses the conversation.
        TokenizerError: the tokenizer cannot say where its tokens stand in the text.
    """
    if not tokenizer.is_fast:
        raise TokenizerError("Exact labels need a tokenizer.json, which this model lacks. Convert its tokenizer.")
    rendered = [_rendered(tokenizer, row, i, label_mask) for i, row in enumerate(rows)]
    result: list[TokenizedChat | None] = []
    for row, (ids, learned) in zip(rows, _encode(tokenizer, rendered), strict=True):
        if label_mask == "official" and isinstance(row, ChatRow):
            learned = _official_labels(tokenizer, row, len(ids))
        ids, learned = ids[:max_length], learned[:max_length]
        # The first token is never predicted, so it teaches nothing.
        result.append(TokenizedChat(np.array(ids, dtype=np.int32), learned) if learned[1:].any() else None)
    return result


def _rendered(tokenizer: Any, row: ChatRow | TextRow, index: int, label_mask: str) -> prompts.Rendered:
    if isinstance(row, TextRow):
        return prompts.render_text(tokenizer, row.text)
    messages = [
        {**message, "content": message["content"].strip()} if message["role"] == "assistant" else dict(message)
        for message in row.messages  # stripped as in the official code
    ]
    weights = [message.pop("weight", message.pop("train", 1)) for message in messages if message["role"] == "assistant"]
    try:
        rendered = _in_template(tokenizer, messages, row.tools)
    except ArgumentError as error:
        raise RowError(index, f"{str(error)[:1].lower()}{str(error)[1:]}") from error
    except Exception as error:  # templates raise whatever Jinja raises
        raise RowError(index, f"the chat template refuses it: {error}") from error
    if not all(weights):  # OpenAI's way to say which answers are not learned
        kept = zip(rendered.answers, weights, strict=True)
        rendered = replace(rendered, answers=[answer for answer, weight in kept if weight])
    return replace(rendered, answers=rendered.answers[-1:]) if label_mask == "prefix" else rendered


def _in_template(tokenizer: Any, messages: list[dict[str, Any]], tools: Any) -> prompts.Rendered:
    """As ``prompts.render_chat``, with the arguments of calls as JSON for templates that want them so."""
    try:
        return prompts.render_chat(tokenizer, messages, tools=tools)
    except TypeError:
        as_json = [
            {**one, "tool_calls": [_with_json(call) for call in one["tool_calls"]]} if "tool_calls" in one else one
            for one in messages
        ]
        return prompts.render_chat(tokenizer, as_json, tools=tools)


def _with_json(call: Any) -> Any:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _encode(tokenizer: Any, texts: Sequence[prompts.Rendered]) -> list[tuple[list[int], NDArray[np.bool_]]]:
    """Tokens of each text, and which of them lie in its answers."""
    # All at once, which is many times faster than one by one.
    pieces = [one.pieces for one in texts]
    plain = [piece for one, parts in zip(texts, pieces, strict=True) for piece in parts if piece not in one.typed]
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    encoded: Any = tokenizer(plain, **options) if plain else {"input_ids": [], "offset_mapping": []}
    tokens = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    result = []
    for one, parts in zip(texts, pieces, strict=True):
        ids: list[int] = []
        spans: list[NDArray[np.int64]] = [np.zeros((0, 2), dtype=np.int64)]  # of characters, (L, 2)
        at = 0
        for piece in parts:
            if piece in one.typed:
                found = prompts.literal_tokens(tokenizer, one.typed[piece])
                offsets = [(0, len(piece))] * len(found)
            else:
                found, offsets = next(tokens)
            ids += found
            spans.append(np.array(offsets, dtype=np.int64).reshape(-1, 2) + at)
            at += len(piece)
        starts, ends = np.concatenate(spans).T
        ends = np.maximum(ends, starts + 1)
        learned = np.zeros(len(ids), dtype=bool)
        for start, end in one.answers:
            learned |= (ends > start) & (starts < end)
        result.append((ids, learned))
    return result


def _official_labels(tokenizer: Any, row: ChatRow, length: int) -> NDArray[np.bool_]:
    """What the official code learns of a conversation (``training/data.py``, CustomCollator)."""
    if not prompts.has_grit_format(tokenizer):
        raise ArgumentError("label_mask='official' is for GRIT's chat format: this tokenizer's template has another.")
    learned = np.ones(length, dtype=bool)
    at = 0
    for i, message in enumerate(prompts.without_system(row.messages)[:-1]):
        user = message["role"] == "user"
        bos, eos = (tokenizer.bos_token or "") * (i == 0), tokenizer.eos_token or ""
        turn = bos + prompts.user_turn(message["content"]) if user else message["content"].strip() + eos
        tokens = len(tokenizer.encode(turn, add_special_tokens=False))
        if user:
            learned[at : at + tokens] = False
        at += tokens
    return learned
