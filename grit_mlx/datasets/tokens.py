"""From rows to tokens: embedding texts with their instructions, conversations with the labels of their answers.

Exact labels: of a conversation exactly the assistant's words and the token that ends each turn take part in the
loss. Marked difference from the official code, which measures turns by tokenising them one by one and forgets
the line break between them: there the end of the first answer is masked and parts of later markers are learned.
``label_mask="official"`` computes that, for comparison.
"""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grit_mlx.datasets.examples import ChatRow, EmbeddingRow, TextRow
from grit_mlx.errors import ArgumentError, TokenizerError
from grit_mlx.model.prompts import CHAT_TEMPLATE, embedding_prompt, literal_tokens, tokenize_texts

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
        prompt = embedding_prompt(instruction)
        texts = [text for _, _, text in places]
        tokenized = tokenize_texts(tokenizer, texts, instruction=prompt, max_length=limit)
        for (i, j, _), tokens in zip(places, tokenized, strict=True):
            if tokens.instruction_tokens >= len(tokens.ids):
                raise RowError(i, f"its instruction takes all {limit} tokens and leaves no room for the text")
            result[i][j] = TokenizedText(np.array(tokens.ids, dtype=np.int32), tokens.instruction_tokens)
    return result


class RowError(ArgumentError):
    """One row of several cannot be used; the reader of the file turns it into one with path and line."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def tokenize_chats(
    tokenizer: Any,
    rows: Sequence[ChatRow | TextRow],
    *,
    max_length: int,
    label_mask: str = "exact",
) -> list[TokenizedChat | None]:
    """Tokens and labels of conversations (in the tokenizer's chat template, else GRIT's) and of plain texts.

    Args:
        tokenizer: a Hugging Face tokenizer.
        rows: the data.
        max_length: tokens that are kept of each, from the left.
        label_mask: one of ``settings.LABEL_MASKS``.

    Returns:
        One for each row; None where nothing is left to learn within ``max_length``.

    Raises:
        RowError: the chat template refuses the conversation.
        TokenizerError: the tokenizer cannot say where its tokens stand in the text.
    """
    if not tokenizer.is_fast:
        raise TokenizerError("Exact labels need a tokenizer.json, which this model lacks. Convert its tokenizer.")
    rendered = [_rendered(tokenizer, row, i, label_mask) for i, row in enumerate(rows)]
    encoded = _encode(tokenizer, rendered)
    result: list[TokenizedChat | None] = []
    for row, (ids, learned) in zip(rows, encoded, strict=True):
        if label_mask == "official" and isinstance(row, ChatRow):
            learned = _official_labels(tokenizer, row, len(ids))
        ids, learned = ids[:max_length], learned[:max_length]
        # The first token is never predicted, so it teaches nothing.
        result.append(TokenizedChat(np.array(ids, dtype=np.int32), learned) if learned[1:].any() else None)
    return result


@dataclass
class _Rendered:
    """A row as one string, in which marks stand for the special tokens that somebody typed."""

    text: str
    answers: list[tuple[int, int]]  # spans of characters that are learned
    hidden: dict[str, str]  # mark -> what it stands for


def _rendered(tokenizer: Any, row: ChatRow | TextRow, index: int, label_mask: str) -> _Rendered:
    hidden: dict[str, str] = {}
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    if isinstance(row, TextRow):
        body = _hide(tokenizer, row.text, hidden) + eos
        return _Rendered(bos + body, [(len(bos), len(bos + body))], hidden)
    messages = [{**message, "content": _hide(tokenizer, message["content"], hidden)} for message in row.messages]
    for message in messages:
        if message["role"] == "assistant":
            message["content"] = message["content"].strip()  # as in the official code
    try:
        text, answers = (_with_template if tokenizer.chat_template else _with_grit)(tokenizer, messages)
    except Exception as error:  # templates raise whatever Jinja raises
        raise RowError(index, f"the chat template refuses it: {error}") from error
    return _Rendered(text, answers[-1:] if label_mask == "prefix" else answers, hidden)


def _with_grit(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """GRIT's own chat; equal to ``formats.CHAT_TEMPLATE`` (tested), without Jinja's time for each row."""
    text, answers = tokenizer.bos_token or "", []
    for i, message in enumerate(_without_system(messages)):
        if message["role"] == "user":
            text += "\n" * (i > 0) + f"<|user|>\n{message['content']}\n<|assistant|>\n"
        else:
            start = len(text)
            text += message["content"] + (tokenizer.eos_token or "")
            answers.append((start, len(text)))
    return text, answers


def _without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """GRIT has no system role: what it says goes before the first user's words."""
    if messages[0]["role"] != "system":
        return messages
    first = {**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def _with_template(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """Any template: an answer is what a turn adds to the prompt that generation would start from."""

    def render(count: int, **options: Any) -> str:
        return str(tokenizer.apply_chat_template(messages[:count], tokenize=False, **options))

    text = render(len(messages))
    answers = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        content, before, after = message["content"], render(i, add_generation_prompt=True), render(i + 1).rstrip()
        # A template may prompt with more than it keeps (an open <think>), and may write a turn otherwise once others
        # follow it (Qwen 3 drops the thoughts). Then the turn is its words and what ends it.
        start = len(before) if text.startswith(before) else text.find(content, len(render(i)))
        end = len(after)
        if not text.startswith(after):
            end = text.find(content, start) + len(content)
            ending = after[after.rfind(content) + len(content) :]
            end += len(ending) if text.startswith(ending, end) else 0
        if start < 0 or not text.startswith(before[: len(render(i))]) or content not in text[start:end]:
            raise ArgumentError("the answers cannot be found in what it writes")
        answers.append((start, end))
    return text, answers


def _hide(tokenizer: Any, content: str, hidden: dict[str, str]) -> str:
    """The content with a mark in place of each string that would become a special token."""

    def mark(match: re.Match[str]) -> str:
        name = f"\ue000{uuid.uuid4().hex}\ue001"
        hidden[name] = match.group()
        return name

    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not any(token in content for token in special):
        return content
    return re.sub("|".join(map(re.escape, sorted(special, key=len, reverse=True))), mark, content)


def _encode(tokenizer: Any, rendered: Sequence[_Rendered]) -> list[tuple[list[int], NDArray[np.bool_]]]:
    """Tokens of each string, and which of them lie in its answers."""
    plain = [i for i, one in enumerate(rendered) if not one.hidden]
    encoded = dict(zip(plain, _encode_with_spans(tokenizer, [rendered[i].text for i in plain]), strict=True))
    result = []
    for i, one in enumerate(rendered):
        ids, spans = encoded[i] if i in encoded else _encode_hidden(tokenizer, one)
        learned = np.zeros(len(ids), dtype=bool)
        starts, ends = spans.T
        for start, end in one.answers:
            learned |= (ends > start) & (starts < end)
        result.append((ids, learned))
    return result


def _encode_with_spans(tokenizer: Any, texts: list[str]) -> list[tuple[list[int], NDArray[np.int64]]]:
    """Tokens, and ``(L, 2)`` the characters that each stands for."""
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    result = []
    for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        spans = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        spans[:, 1] = np.maximum(spans[:, 1], spans[:, 0] + 1)
        result.append((list(ids), spans))
    return result


def _encode_hidden(tokenizer: Any, one: _Rendered) -> tuple[list[int], NDArray[np.int64]]:
    """As ``_encode_with_spans``, with what the marks stand for spelled out: nobody can end a turn by typing it."""
    ids: list[int] = []
    spans = [np.zeros((0, 2), dtype=np.int64)]
    at = 0
    for piece in re.split("(" + "|".join(map(re.escape, one.hidden)) + ")", one.text):
        if piece in one.hidden:
            tokens = literal_tokens(tokenizer, one.hidden[piece])
            found = np.tile([0, len(piece)], (len(tokens), 1))
        elif piece:
            [(tokens, found)] = _encode_with_spans(tokenizer, [piece])
        else:
            continue
        ids += tokens
        spans.append(found + at)
        at += len(piece)
    return ids, np.concatenate(spans)


def _official_labels(tokenizer: Any, row: ChatRow, length: int) -> NDArray[np.bool_]:
    """What the official code learns of a conversation (``training/data.py``, CustomCollator)."""
    if tokenizer.chat_template and tokenizer.chat_template != CHAT_TEMPLATE:
        raise ArgumentError("label_mask='official' is for GRIT's own chat format: this tokenizer has a template.")
    learned = np.ones(length, dtype=bool)
    at = 0
    for i, message in enumerate(_without_system(row.messages)[:-1]):
        bos = (tokenizer.bos_token or "") if i == 0 else ""
        user = message["role"] == "user"
        turn = (
            f"{bos}<|user|>\n{message['content']}\n<|assistant|>\n"
            if user
            else message["content"].strip() + (tokenizer.eos_token or "")
        )
        tokens = len(tokenizer.encode(turn, add_special_tokens=False))
        if user:
            learned[at : at + tokens] = False
        at += tokens
    return learned
