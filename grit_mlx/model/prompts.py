"""GRIT's strings, and their tokens: embedding prompts, chats, prompts that continue a cache.

The markers ``<|user|>``, ``<|assistant|>`` and ``<|embed|>`` are plain text, not special tokens.
Source: the official README and evaluation code; see docs/architecture.md for where we differ on purpose.
"""

from __future__ import annotations

import copy
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from grit_mlx.errors import ArgumentError, TokenizerError, first_line
from grit_mlx.model.answers import answer_spans
from grit_mlx.options import check_unicode

__all__ = [
    "PLAIN_RAG_PROMPTS",
    "RAG_PROMPTS",
    "Message",
    "Rendered",
    "TokenizedText",
    "chat_tokens",
    "embedding_prompt",
    "has_grit_format",
    "limit_vocabulary",
    "literal_tokens",
    "neutralised",
    "rag_prompt",
    "rag_tokens",
    "raw_tokens",
    "render_chat",
    "render_text",
    "tokenize_texts",
    "unknown_token",
    "user_turn",
    "without_system",
]

Message = Mapping[str, Any]

# Where a tokenizer keeps the number of tokens that its model has. It may have more itself, or be given more later.
_ROWS = "_grit_rows"

# Where it keeps its copy that spells special tokens out.
_LITERAL = "_grit_literal"

_ANSWER_QUERY = "Answer the prior query while optionally using the context prior to it"
_USE_CONTEXT = "Optionally using the prior context answer the query prior to it"


def user_turn(content: str) -> str:
    """A user's message in GRIT's format, up to where the assistant answers."""
    return f"<|user|>\n{content}\n<|assistant|>\n"


# What follows a cache that holds ... (the key). With nothing cached the prompt stands alone, in either order.
RAG_PROMPTS = {
    "doc": "\n" + user_turn("{query}\n\n" + _ANSWER_QUERY),
    "query": "\n" + user_turn("{document}\n\n" + _USE_CONTEXT),
    "doc-query": "\n" + user_turn(_ANSWER_QUERY),
    "query-doc": "\n" + user_turn(_USE_CONTEXT),
    "none-query-first": user_turn("{query}\n\n{document}\n\n" + _USE_CONTEXT),
    "none-document-first": user_turn("{document}\n\n{query}\n\n" + _ANSWER_QUERY),
}


_FROM_TEXT = "If it does not hold the answer, say so."

# The same for models with a chat of their own, which were not trained on GRIT's prompts: what the user says after a
# cache that holds ... (the key).
PLAIN_RAG_PROMPTS = {
    "doc": "Answer the question from the text above. " + _FROM_TEXT + "\n\nQuestion: {query}",
    "query": "{document}\n\nAnswer the question above from this text. " + _FROM_TEXT,
    "doc-query": "Answer the question above from the text before it. " + _FROM_TEXT,
    "query-doc": "Answer the question above from the text after it. " + _FROM_TEXT,
    "none": "{document}\n\nAnswer the question from the text above. " + _FROM_TEXT + "\n\nQuestion: {query}",
}


def embedding_prompt(instruction: str = "") -> str:
    """What precedes a text that is embedded: the official README's ``gritlm_instruction``."""
    return f"<|user|>\n{instruction}\n<|embed|>\n" if instruction else "<|embed|>\n"


def rag_prompt(cached: str, *, query: str = "", document: str = "") -> str:
    """The prompt of a retrieval-augmented answer, given what the cache already holds.

    Args:
        cached: a key of ``RAG_PROMPTS``.
        query: the question; unused if it is cached.
        document: the passage; unused if it is cached.

    Raises:
        ArgumentError: an unknown ``cached``.
    """
    try:
        form = RAG_PROMPTS[cached]
    except KeyError:
        raise ArgumentError(f"Unknown RAG prompt {cached!r}: use one of {', '.join(RAG_PROMPTS)}.") from None
    # Not str.format twice: a query with braces in it must stay as it is.
    return form.format(query=query, document=document)


def rag_tokens(
    tokenizer: Any, cached: str, questions: Sequence[str], *, document: str, answers: Sequence[str] = ()
) -> list[int]:
    """The tokens of the prompt of a retrieval-augmented answer, after what the cache already holds.

    In GRIT's words for models with GRIT's chat, else in plain words in the model's own chat.

    Args:
        tokenizer: a Hugging Face tokenizer.
        cached: "none", "doc", "query", "doc-query" or "query-doc".
        questions: those of the conversation so far, and the one to be answered.
        document: the passages; unused if they are cached.
        answers: to all questions but the last.
    """
    if not has_grit_format(tokenizer):
        return _plain_rag_tokens(tokenizer, cached, questions, document=document, answers=answers)
    first = {"query": questions[0], "document": document}
    if cached == "none":
        tokens = raw_tokens(tokenizer, rag_prompt("none-document-first", **first))
    else:
        tokens = literal_tokens(tokenizer, rag_prompt(cached, **first))
    for answer, following in zip(answers, questions[1:], strict=True):
        tokens += [*literal_tokens(tokenizer, answer), tokenizer.eos_token_id]
        # Later turns of a conversation follow as the paper's cached documents do.
        tokens += literal_tokens(tokenizer, rag_prompt("doc", query=following))
    return tokens


def _plain_rag_tokens(
    tokenizer: Any, cached: str, questions: Sequence[str], *, document: str, answers: Sequence[str]
) -> list[int]:
    first = PLAIN_RAG_PROMPTS[cached].format(query=questions[0], document=document)
    messages = [{"role": "user", "content": first}]
    for answer, following in zip(answers, questions[1:], strict=True):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": following}]
    tokens = chat_tokens(tokenizer, messages)
    if cached == "none":
        return tokens
    return tokens[1:] if tokens[:1] == [tokenizer.bos_token_id] else tokens  # the cached text begins with it


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of one text to be embedded.

    Attributes:
        ids: instruction and text, special tokens included, at most ``max_length``.
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
    joint: bool = False,
) -> list[TokenizedText]:
    """Tokens of ``instruction + text`` for each text, and where the instruction ends.

    The two are tokenised as one string, as in the official code. If the instruction's tokens are then not a prefix
    of the result (byte-level BPE may merge across the border), they are tokenised separately instead: otherwise the
    wrong number of positions would be left out of the pool.

    Args:
        tokenizer: a Hugging Face tokenizer.
        texts: the texts.
        instruction: literal text before each; see ``embedding_prompt``.
        max_length: number of tokens to keep, from the left; None keeps all.
        add_special_tokens: whether the tokenizer adds its BOS, and its EOS if it does so.
        joint: never tokenise them separately; what the instruction's tokens alone would be is taken as its part.
            sentence-transformers does so, with prompts that end in a blank.
    """
    before, after = _affixes(tokenizer) if add_special_tokens else ([], [])
    instruction_ids = before + _encode(tokenizer, [instruction])[0] if instruction else []
    limit = None if max_length is None else max_length * _longest_token(tokenizer) + len(instruction)
    texts = [text[:limit] for text in texts]
    result = []
    for text, ids in zip(texts, _encode(tokenizer, [instruction + text for text in texts]), strict=True):
        ids = before + ids
        if not joint and ids[: len(instruction_ids)] != instruction_ids:
            ids = instruction_ids + _encode(tokenizer, [text])[0]
        room = None if max_length is None else max(0, max_length - len(after))
        truncated = room is not None and len(ids) > room
        ids = ids[:room] + after
        result.append(TokenizedText(ids[:max_length], min(len(instruction_ids), len(ids)), truncated))
    return result


def limit_vocabulary(tokenizer: Any, rows: int) -> None:
    """Remember how many rows a model's table has: its tokenizer may have more tokens; see ``unknown_token``."""
    tokenizer.__dict__[_ROWS] = rows


def unknown_token(tokenizer: Any, ids: Sequence[int]) -> str | None:
    """What to say of tokens that the tokenizer has and the model does not; None if there are none among ``ids``.

    mlx reads other memory for an id beyond the table, without an error.
    """
    rows = tokenizer.__dict__.get(_ROWS)
    if rows is None or not len(ids) or max(ids) < rows:
        return None
    token = next(int(one) for one in ids if one >= rows)
    return (
        f"holds the token {tokenizer.decode([token])!r}, which the tokenizer has but the model, with {rows:,}, has not"
    )


def raw_tokens(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a complete prompt behind BOS, unless it begins with that; special tokens in it are obeyed.

    Without the EOS that some tokenizers put behind every text: the model would take the prompt for finished.
    """
    begun = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    before = [] if begun else _affixes(tokenizer)[0]
    return [*before, *tokenizer.encode(text, add_special_tokens=False)]


def literal_tokens(tokenizer: Any, text: str) -> list[int]:
    """Tokens of ``text`` alone, without BOS; ``</s>`` and other special tokens are spelled out, not obeyed."""
    backend = _literal_backend(tokenizer)
    if backend is None:
        return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
    return list(backend.encode(text, add_special_tokens=False).ids)


def _literal_backend(tokenizer: Any) -> Any:
    """A tokenizer's engine that spells special tokens out; None if it has none.

    A copy: ``split_special_tokens`` sets a flag of the one engine that all threads share, and what another thread
    tokenises meanwhile would be spelled out, or obeyed, by that flag.
    """
    kept = tokenizer.__dict__.get(_LITERAL)
    shared = getattr(tokenizer, "backend_tokenizer", None)
    if kept is None and shared is not None:
        kept = copy.deepcopy(shared)
        kept.encode_special_tokens = True
        kept.no_truncation()
        kept.no_padding()
        tokenizer.__dict__[_LITERAL] = kept
    return kept


# GRIT's markers, in any letter case and with any blanks inside, such as "<|User |>".
_MARKERS = re.compile(r"<(?=\s*\|\s*(?:user|assistant|embed|system)\s*\|\s*>)", re.IGNORECASE)


def neutralised(tokenizer: Any, text: str) -> str:
    """``text`` without GRIT's markers and the tokenizer's special tokens.

    A blank is put after the first character of each: ``< |user|>``, ``< /s>``. They stay readable, but can no longer
    begin or end a turn. For texts that come from documents: the markers are plain text, so spelling out special
    tokens (``literal_tokens``) does not stop them.

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
    """Finds the special tokens of a tokenizer, the longest first; None if it has none."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None


@dataclass(frozen=True)
class Rendered:
    """A chat or a text as one string.

    Attributes:
        text: the string, in which marks stand for special tokens that somebody typed.
        answers: spans of characters that the assistant writes, each with the token that ends it.
        typed: what each mark stands for. It is spelled out in plain tokens, so that typing ``</s>`` ends no turn.
    """

    text: str
    answers: Sequence[tuple[int, int]]
    typed: Mapping[str, str]

    @property
    def pieces(self) -> list[str]:
        """The string cut at its marks, which are pieces themselves."""
        if not self.typed:
            return [self.text]
        return [piece for piece in re.split(f"({'|'.join(self.typed)})", self.text) if piece]


def chat_tokens(tokenizer: Any, messages: Sequence[Message] | str) -> list[int]:
    """The prompt of a chat whose last message is the user's, up to where the assistant answers.

    Uses the tokenizer's own chat template if it has one, else GRIT's format, which has no system role: a leading
    system message is put before the first user message. A text is a user's message.

    Marked difference from the official code: special tokens that a message spells, such as ``</s>``, end no turn.

    Raises:
        ArgumentError: names the message and what is wrong with it.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    messages = list(map(_with_joined_parts, messages))
    _check_chat(messages, alternate=not tokenizer.chat_template)
    rendered = render_chat(tokenizer, messages, prompt=True)
    ids: list[int] = []
    for piece in rendered.pieces:
        if piece in rendered.typed:
            ids += literal_tokens(tokenizer, rendered.typed[piece])
        else:
            ids += tokenizer.encode(piece, add_special_tokens=False)
    return ids


def render_chat(
    tokenizer: Any, messages: Sequence[Message], *, prompt: bool = False, tools: Sequence[Any] | None = None
) -> Rendered:
    """A chat in the tokenizer's own template if it has one, else in GRIT's format.

    Args:
        tokenizer: a Hugging Face tokenizer.
        messages: the last one is the user's or the assistant's.
        prompt: up to where the assistant answers; its earlier answers are then not looked for.
        tools: descriptions of functions, for templates that take them.

    Raises:
        ArgumentError: nothing uses a message's field, the template refuses the messages, or the answers cannot be found
            in what it writes.
        TokenizerError: the template itself is wrong.
    """
    special, typed = _special_pattern(tokenizer), dict[str, str]()
    messages = [
        _hidden_in(_with_used_fields(tokenizer, message, i), special, typed) for i, message in enumerate(messages)
    ]
    if tools and not _uses(tokenizer, "tools"):
        raise ArgumentError("The model's chat template does not use tools.")
    if not tokenizer.chat_template:
        text, answers = _grit_chat(tokenizer, messages)
        return Rendered(text, answers, typed)
    if _drops_system(tokenizer, messages):
        messages = without_system(messages)
    if prompt:
        text, answers = _from_template(tokenizer, messages, add_generation_prompt=True), []
    else:
        text, answers = _template_chat(tokenizer, messages, special, tools)
    return Rendered(text, answers, typed)


def render_text(tokenizer: Any, text: str) -> Rendered:
    """A plain text between BOS and EOS; all of it is an answer."""
    typed: dict[str, str] = {}
    bos = tokenizer.bos_token or ""
    whole = bos + _hidden(text, _special_pattern(tokenizer), typed) + (tokenizer.eos_token or "")
    return Rendered(whole, [(len(bos), len(whole))], typed)


def has_grit_format(tokenizer: Any) -> bool:
    """Whether chats are written in GRIT's format, by the tokenizer's own template or because it has none."""
    if not tokenizer.chat_template:
        return True
    chat = [{"role": role, "content": "a"} for role in ("user", "assistant") * 2]
    try:
        written = _from_template(tokenizer, chat)
    except (ArgumentError, TokenizerError):
        return False
    return not written or written == _grit_chat(tokenizer, chat)[0]


def without_system(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages of a chat in GRIT's format, which has no system role: its words precede the first user's."""
    if messages[0]["role"] != "system":
        return messages
    content = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{**messages[1], "content": content}, *messages[2:]]


def _grit_chat(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
    text, answers = tokenizer.bos_token or "", []
    for i, message in enumerate(without_system(messages)):
        if message["role"] == "user":
            text += "\n" * (i > 0) + user_turn(message["content"])
        else:
            start = len(text)
            text += message["content"] + (tokenizer.eos_token or "")
            answers.append((start, len(text)))
    return text, answers


def _drops_system(tokenizer: Any, messages: Sequence[Message]) -> bool:
    """Whether a template refuses or leaves out a leading system message, so that its words must go elsewhere."""
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return False
    words = messages[0]["content"]
    if not isinstance(words, str) or not isinstance(messages[1]["content"], str):  # parts, which templates know
        return False
    try:
        return words.strip() not in _from_template(tokenizer, messages[:2], add_generation_prompt=True)
    except ArgumentError:
        return True


def _from_template(tokenizer: Any, messages: Sequence[Message], **options: Any) -> str:
    """What the tokenizer's own chat template writes; the only place where one is rendered."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping) and "default" not in template:
        if len(template) > 1:
            raise TokenizerError(
                f"The tokenizer has chat templates for {', '.join(map(str, template))}, and no default. "
                "Name one of them 'default', or write the complete prompt (raw)."
            )
        options["chat_template"] = next(iter(template.values()))
    # Templates write these whether or not the tokenizer has them.
    absent = {name: "" for name in ("bos_token", "eos_token") if getattr(tokenizer, name) is None}
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **absent, **options))
    except Exception as error:  # whatever Jinja raises, and whatever Python raises within a template
        if any(kind.__name__ == "TemplateSyntaxError" for kind in type(error).__mro__):
            raise TokenizerError(
                f"The tokenizer's chat template is not valid Jinja, line {getattr(error, 'lineno', '?')}: "
                f"{first_line(error)} Correct it, or write the complete prompt (raw)."
            ) from error
        raise ArgumentError(f"The model's chat template refuses these messages: {first_line(error)}") from error


def _template_chat(
    tokenizer: Any, messages: Sequence[Message], special: re.Pattern[str] | None, tools: Sequence[Any] | None
) -> tuple[str, list[tuple[int, int]]]:
    """Any template, and what the assistant writes in it."""
    given: dict[str, Any] = {"tools": list(tools)} if tools else {}

    def render(some: Sequence[Message], **options: Any) -> str:
        return _from_template(tokenizer, some, **given, **options)

    text = render(messages)
    return text, answer_spans(render, messages, text=text, special=special)


# A turn's thoughts, by the names that data and templates have for them.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# Tokens that mark thoughts: in the assistant's own words they mean what they are.
_THOUGHT_TOKENS = re.compile(r"(?i)[<\[]/?think(?:ing)?[>\]]$")


def _with_used_fields(tokenizer: Any, message: Message, number: int) -> dict[str, Any]:
    """A message with thoughts under the name that the template reads.

    Raises:
        ArgumentError: it has a field that nothing uses, which would be dropped without a word.
    """
    fields = {}
    for name, value in message.items():
        used = name if name in ("role", "content") or _uses(tokenizer, name) else None
        if used is None and name in _THOUGHTS:
            used = next((other for other in _THOUGHTS if _uses(tokenizer, other)), None)
        if used is None:
            what = "the model's chat template" if tokenizer.chat_template else "GRIT's chat format"
            raise ArgumentError(f"Message {number} has a field {name!r}, which {what} does not use: remove it")
        fields[used] = value
    return fields


def _uses(tokenizer: Any, name: str) -> bool:
    """Whether the chat template reads a field of messages, or a variable, of this name."""
    template = tokenizer.chat_template or ""
    sources = template.values() if isinstance(template, Mapping) else [template]
    field = rf"\.{re.escape(name)}\b|['\"]{re.escape(name)}['\"]"
    if name == "tools":
        field = rf"\b{name}\b"
    return any(re.search(field, source) for source in sources)


def _hidden_in(message: dict[str, Any], special: re.Pattern[str] | None, typed: dict[str, str]) -> dict[str, Any]:
    if not isinstance(message["content"], str):
        return message
    kept = message["role"] == "assistant"
    return {**message, "content": _hidden(message["content"], special, typed, keeps_thoughts=kept)}


def _hidden(
    content: str, special: re.Pattern[str] | None, typed: dict[str, str], *, keeps_thoughts: bool = False
) -> str:
    """The content with a mark that no one can guess in place of each special token, which ``typed`` then knows."""

    def hide(match: re.Match[str]) -> str:
        if keeps_thoughts and _THOUGHT_TOKENS.match(match[0]):
            return match[0]
        mark = f"\ue000{uuid.uuid4().hex}\ue001"
        typed[mark] = match[0]
        return mark

    return content if special is None else special.sub(hide, content)


def _with_joined_parts(message: Message) -> Message:
    """A message whose content is parts of text, as OpenAI's clients send them, with their text; others as they are."""
    parts = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(parts, list | tuple) or not parts:
        return message
    texts: list[Any] = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        return message
    return {**message, "content": "".join(texts)}


def _check_chat(messages: Sequence[Message], *, alternate: bool) -> None:
    """Refuse messages that do not make a prompt; ``alternate``: in GRIT's format, whose roles take turns."""
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ArgumentError(f"Message {i} must be a table with 'role' and 'content', not {message!r:.80}.")
        if not isinstance(message["content"], str):
            raise ArgumentError(f"Message {i} must have text as its content, not {message['content']!r:.80}.")
        check_unicode(message["content"], f"Message {i}")
    if not messages or messages[-1]["role"] != "user":
        raise ArgumentError("A chat must end with a user's message for the model to answer.")
    if not alternate:
        return
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    for i, message in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            raise ArgumentError(
                f"Messages must alternate between user and assistant: {message['role']!r} stands where "
                f"{expected!r} belongs."
            )


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
    """An upper bound of the characters that one token stands for.

    A text is cut to ``max_length`` times this before it is tokenised: no more characters can matter, and of a file
    of megabytes only the beginning is tokenised. Doubled, because BPE may choose other merges near a cut.
    """
    return 2 * max(map(len, tokenizer.get_vocab()), default=1)
