"""GRIT's strings, and their tokens: embedding prompts, chats, prompts that continue a cache.

The markers ``<|user|>``, ``<|assistant|>`` and ``<|embed|>`` are plain text, not special tokens.
Source: the official README and evaluation code; see docs/architecture.md for where we differ on purpose.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from grit_mlx.errors import ArgumentError

__all__ = [
    "CHAT_TEMPLATE",
    "RAG_PROMPTS",
    "Message",
    "TokenizedText",
    "chat_tokens",
    "embedding_prompt",
    "literal_tokens",
    "neutralised",
    "rag_prompt",
    "tokenize_texts",
]

Message = Mapping[str, str]

EMBED = "<|embed|>\n"

# The official chat as a Jinja template, so that a tokenizer without one of its own uses the same machinery as
# the others. Newlines are written as expressions: Jinja drops one that follows a block.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ '<|user|>\\n' + message['content'] + '\\n<|assistant|>\\n' }}"
    "{% else %}"
    "{{ message['content'] + eos_token }}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endif %}"
    "{% endfor %}"
)

_ANSWER_QUERY = "Answer the prior query while optionally using the context prior to it"
_USE_CONTEXT = "Optionally using the prior context answer the query prior to it"

# What follows a cache that holds ... (the key). With nothing cached the prompt stands alone, in either order.
RAG_PROMPTS = {
    "doc": "\n<|user|>\n{query}\n\n" + _ANSWER_QUERY + "\n<|assistant|>\n",
    "query": "\n<|user|>\n{document}\n\n" + _USE_CONTEXT + "\n<|assistant|>\n",
    "doc-query": "\n<|user|>\n" + _ANSWER_QUERY + "\n<|assistant|>\n",
    "query-doc": "\n<|user|>\n" + _USE_CONTEXT + "\n<|assistant|>\n",
    "none-query-first": "<|user|>\n{query}\n\n{document}\n\n" + _USE_CONTEXT + "\n<|assistant|>\n",
    "none-document-first": "<|user|>\n{document}\n\n{query}\n\n" + _ANSWER_QUERY + "\n<|assistant|>\n",
}


def embedding_prompt(instruction: str = "") -> str:
    """What precedes a text that is embedded: the official README's ``gritlm_instruction``."""
    return f"<|user|>\n{instruction}\n{EMBED}" if instruction else EMBED


def rag_prompt(cached: str, *, query: str = "", document: str = "") -> str:
    """The prompt of a retrieval-augmented answer, given what the cache already holds.

    Args:
        cached: a key of ``RAG_PROMPTS``.
        query: the question; unused where it is cached.
        document: the passage; unused where it is cached.

    Raises:
        ArgumentError: an unknown ``cached``.
    """
    try:
        form = RAG_PROMPTS[cached]
    except KeyError:
        raise ArgumentError(f"Unknown RAG prompt {cached!r}: use one of {', '.join(RAG_PROMPTS)}.") from None
    # Not str.format twice: a query with braces in it must stay as it is.
    return form.format(query=query, document=document)


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of one text to be embedded.

    Attributes:
        ids: instruction and text, special tokens included, at most max_length.
        instruction_tokens: how many of them, from the start, are the instruction (and what precedes it).
        truncated: whether the text was longer.
    """

    ids: list[int]
    instruction_tokens: int
    truncated: bool


def tokenize_texts(
    tokenizer: Any,  # a Hugging Face tokenizer; its type costs seconds to import
    texts: Sequence[str],
    *,
    instruction: str = "",
    max_length: int | None = 512,
    add_special_tokens: bool = True,
) -> list[TokenizedText]:
    """Tokens of ``instruction + text`` for each text, and where the instruction ends.

    The two are tokenised as one string, as in the official code. Where the instruction's tokens are then no
    prefix of the result (byte-level BPE may merge across the border), they are tokenised apart instead:
    otherwise a wrong number of positions would be left out of the pool.

    Args:
        tokenizer: a Hugging Face tokenizer.
        texts: the texts.
        instruction: literal text before each; see ``embedding_prompt``.
        max_length: tokens that are kept, from the left; None keeps all.
        add_special_tokens: whether the tokenizer adds its BOS (and, where it has one, its EOS).
    """
    before, after = _affixes(tokenizer) if add_special_tokens else ([], [])
    instruction_ids = before + _encode(tokenizer, [instruction])[0] if instruction else []
    limit = None if max_length is None else max_length * _longest_token(tokenizer) + len(instruction)
    whole = _encode(tokenizer, [instruction + (text if limit is None else text[:limit]) for text in texts])

    result = []
    for text, ids in zip(texts, whole, strict=True):
        ids = before + ids
        if ids[: len(instruction_ids)] != instruction_ids:
            ids = instruction_ids + _encode(tokenizer, [text if limit is None else text[:limit]])[0]
        room = None if max_length is None else max(0, max_length - len(after))
        truncated = room is not None and len(ids) > room
        ids = ids[:room] + after
        result.append(TokenizedText(ids[:max_length], min(len(instruction_ids), len(ids)), truncated))
    return result


def literal_tokens(tokenizer: Any, text: str) -> list[int]:
    """Tokens of ``text`` alone, no BOS; ``<s>``, ``</s>`` and their like are spelled out, not obeyed."""
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


# GRIT's markers, in any letter case and with any blanks inside, such as "<|User |>".
_MARKERS = re.compile(r"<(?=\s*\|\s*(?:user|assistant|embed|system)\s*\|\s*>)", re.IGNORECASE)


def neutralised(tokenizer: Any, text: str) -> str:
    """``text`` in which no marker of GRIT's and no special token of the tokenizer's is left.

    A blank is put behind the first character of each: ``< |user|>``, ``< /s>``. Readers, model included, see what
    was meant, but the tokens are no longer those that begin a turn or end one. For texts that come from documents:
    the markers are plain text, so spelling out special tokens alone (``literal_tokens``) does not stop them.

    Marked difference from the official code, where a document can end its own turn.
    """
    text = _MARKERS.sub("< ", text)
    special = _special_pattern(tokenizer)
    if special is None:
        return text
    # More than once only if a blank brings two halves of another token together.
    for _ in range(3):
        if special.search(text) is None:
            return text
        text = special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    return special.sub("", text)


def _special_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds the special tokens of a tokenizer, the longest first; None where it has none."""
    special = sorted(
        (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special),
        key=len,
        reverse=True,
    )
    return re.compile("|".join(map(re.escape, special))) if special else None


def chat_tokens(
    tokenizer: Any,
    messages: Sequence[Message],
) -> list[int]:
    """The prompt of a chat whose last message is the user's, up to where the assistant answers.

    The tokenizer's own chat template is used where it has one, GRIT's elsewhere. GRIT has no system role: there
    a leading system message is put before the first user message.

    Marked difference from the official code: a message that spells ``</s>`` or another special token cannot end
    a turn. Such strings are spelled out in plain tokens.

    Raises:
        ArgumentError: names the message and what is wrong with it.
    """
    template = None if tokenizer.chat_template else CHAT_TEMPLATE
    conversation = _checked(messages, alternate=template is not None)

    def render(contents: Sequence[str]) -> str:
        filled = [{**m, "content": c} for m, c in zip(conversation, contents, strict=True)]
        return str(
            tokenizer.apply_chat_template(filled, chat_template=template, tokenize=False, add_generation_prompt=True)
        )

    return _encode_untrusted(tokenizer, render, [m["content"] for m in conversation])


def _encode_untrusted(
    tokenizer: Any,
    render: Callable[[Sequence[str]], str],
    contents: Sequence[str],
) -> list[int]:
    """Tokens of ``render(contents)``, in which only what ``render`` itself wrote can be a special token."""
    pattern = _special_pattern(tokenizer)
    if pattern is None or not any(pattern.search(content) for content in contents):
        return list(tokenizer.encode(render(contents), add_special_tokens=False))
    # Hide each such string behind a mark that no one can guess, render, then encode the pieces between the marks
    # as usual and the hidden strings letter by letter.
    mark = uuid.uuid4().hex
    hidden: list[str] = []

    def hide(match: re.Match[str]) -> str:
        hidden.append(match.group())
        return f"\ue000{mark}-{len(hidden) - 1}\ue001"

    rendered = render([pattern.sub(hide, content) for content in contents])
    ids: list[int] = []
    for i, piece in enumerate(re.split(f"\ue000{mark}-([0-9]+)\ue001", rendered)):
        if i % 2:
            ids += literal_tokens(tokenizer, hidden[int(piece)])
        elif piece:
            ids += tokenizer.encode(piece, add_special_tokens=False)
    return ids


def _checked(messages: Sequence[Message], *, alternate: bool) -> list[dict[str, str]]:
    """The messages as plain dictionaries; for GRIT's template also without a system message."""
    conversation: list[dict[str, str]] = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ArgumentError(f"Message {i} must be a table with 'role' and 'content', not {message!r:.80}.")
        if not isinstance(message["content"], str):
            raise ArgumentError(f"Message {i} must have text as its content, not {message['content']!r:.80}.")
        conversation.append(dict(message))
    if not conversation or conversation[-1]["role"] != "user":
        raise ArgumentError("A chat needs a user's message at its end, for the model to answer.")
    if not alternate:
        return conversation
    if conversation[0]["role"] == "system":
        system = conversation.pop(0)["content"]
        if not conversation or conversation[0]["role"] != "user":
            raise ArgumentError("After the system message comes a user's message.")
        conversation[0]["content"] = f"{system}\n\n{conversation[0]['content']}"
    for i, message in enumerate(conversation):
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            raise ArgumentError(
                f"Messages must alternate between user and assistant: {message['role']!r} stands where "
                f"{expected!r} belongs."
            )
    return conversation


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each text, without the special tokens that a tokenizer adds."""
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning about the model's context: the caller truncates
    )
    return encoded["input_ids"]  # type: ignore[no-any-return]


def _affixes(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    full = tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    raise ArgumentError("The tokenizer changes a text when it adds special tokens; pass add_special_tokens=False.")


@lru_cache(maxsize=4)
def _longest_token(tokenizer: Any) -> int:
    """An upper bound of the characters that one token stands for; found once for each tokenizer.

    A text is cut to ``max_length`` times this before it is tokenised: no more characters can matter, and a file
    of megabytes given as one text costs no more than its beginning. Doubled, because BPE may choose other merges
    near a cut.
    """
    return 2 * max(map(len, tokenizer.get_vocab()), default=1)
