"""Label masks token by token, with tokenizers of three kinds; embedding texts as encode() makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from grit_mlx.datasets.examples import ChatRow, EmbeddingRow, TextRow
from grit_mlx.datasets.tokens import RowError, TokenizedChat, tokenize_chats, tokenize_embedding_rows
from grit_mlx.errors import ArgumentError
from grit_mlx.model.prompts import embedding_prompt, tokenize_texts
from tests.conftest import GOLDEN, SHARED

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# The official chat as Jinja writes it. Newlines are expressions: Jinja drops one that follows a block.
GRIT = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ '<|user|>\\n' + message['content'] + '\\n<|assistant|>\\n' }}"
    "{% else %}"
    "{{ message['content'] + eos_token }}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endif %}"
    "{% endfor %}"
)
TURNS = ["What is a keel?", "It keeps a ship upright.", "And bread?", "Bread rises: é, 海!", "Why\n\nthough?", "Yeast."]


# Qwen 3 writes empty thoughts into the last answer only; QwQ prompts with an open <think> that it does not keep.
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWQ = CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
LLAMA3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n\\n' + m.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)


def byte_level() -> Any:
    """A byte-level BPE with a ChatML template, as Qwen's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*TURNS, "user\nassistant\nsystem\n"] * 20, trainer)
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", chat_template=CHATML)


def tokenizers() -> list[Any]:
    folders = {"own": GOLDEN / "mistral", "stories": SHARED / "models" / "stories260k"}
    folders["mistral"] = SHARED / "golden" / "mistral" / "checkpoint"
    missing = pytest.mark.skip(reason="needs ../shared")
    return [
        pytest.param(
            lambda path=path: AutoTokenizer.from_pretrained(path), id=name, marks=[] if path.exists() else missing
        )
        for name, path in folders.items()
    ] + [pytest.param(byte_level, id="byte-level")]


def chat(turns: list[str]) -> ChatRow:
    return ChatRow([{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)])


def tokenize(tokenizer: Any, row: ChatRow | TextRow, **options: Any) -> TokenizedChat:
    [found] = tokenize_chats(tokenizer, [row], **{"max_length": 500, **options})
    assert found is not None
    return found


@pytest.mark.parametrize("make", tokenizers())
def test_exact_masks_of_three_turns(make: Any) -> None:
    """Each run of learned tokens is one answer with its end, and the prompt before it is what generation sees."""
    tokenizer = make()
    found = tokenize(tokenizer, chat(TURNS))
    template = tokenizer.chat_template or GRIT
    messages = chat(TURNS).messages

    def render(count: int, prompt: bool) -> list[int]:
        text = tokenizer.apply_chat_template(
            messages[:count], chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
        return list(tokenizer.encode(text, add_special_tokens=False))

    whole = render(len(messages), False)
    assert found.ids.tolist() == whole
    expected = np.zeros(len(whole), dtype=bool)
    for i in (1, 3, 5):
        start = len(render(i, True))
        end = start + whole[start:].index(tokenizer.eos_token_id) + 1
        assert whole[:start] == render(i, True), "generation starts from exactly these tokens"
        expected[start:end] = True
        answer = tokenizer.decode(whole[start : end - 1])
        assert answer.strip() == TURNS[i]
    assert found.learned.tolist() == expected.tolist()


@pytest.mark.parametrize("make", tokenizers())
def test_prefix_masks_learn_the_last_answer_alone(make: Any) -> None:
    tokenizer = make()
    exact, prefix = (tokenize(tokenizer, chat(TURNS), label_mask=kind) for kind in ("exact", "prefix"))
    starts = np.flatnonzero(np.diff(np.concatenate([[0], exact.learned.astype(int)])) == 1)
    assert len(starts) == 3
    expected = exact.learned.copy()
    expected[: starts[-1]] = False
    assert prefix.learned.tolist() == expected.tolist()


@pytest.mark.parametrize("turns", [TURNS, ["Say yes", "yes", "Say yes again", "yes", "yes", "yes"]])
@pytest.mark.parametrize("template", ["CHATML", "QWEN3", "QWQ", "LLAMA3", "MISTRAL"])
def test_exact_masks_with_other_templates(template: str, turns: list[str]) -> None:
    """Templates that write a turn otherwise once others follow, that prompt with more than they keep, that trim."""
    tokenizer = byte_level()
    tokenizer.chat_template = globals()[template]
    found = tokenize(tokenizer, chat(turns))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], found.learned.astype(int), [0]])))
    answers = [tokenizer.decode(found.ids[start:end].tolist()) for start, end in zip(*[iter(edges)] * 2, strict=True)]
    expected = [f"{' ' * (template == 'MISTRAL')}{turn}<|im_end|>" for turn in turns[1::2]]
    if template == "QWEN3":
        expected[-1] = "<think>\n\n</think>\n\n" + expected[-1]
    assert answers == expected


def official_collator(tokenizer: Any, turns: list[str]) -> list[int]:
    """Labels as ``CustomCollator`` of gritlm/training/data.py makes them, step by step."""
    bos, eos, user, assistant = "<s>", "</s>", "<|user|>\n", "\n<|assistant|>\n"
    pairs = zip(turns[::2], turns[1::2], strict=True)
    text = bos + "\n".join(user + ask + assistant + answer.strip() + eos for ask, answer in pairs)
    labels = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    at = 0
    for i, turn in enumerate(turns[:-1]):
        piece = (bos if i == 0 else "") + user + turn + assistant if i % 2 == 0 else turn.strip() + eos
        length = len(tokenizer.tokenize(piece))
        if i % 2 == 0:
            labels[at : at + length] = [-100] * len(labels[at : at + length])
        at += length
    return labels


@pytest.mark.parametrize("make", tokenizers()[:-1])
def test_official_masks_have_the_official_faults(make: Any) -> None:
    """Turn 1's end is not learned and pieces of later markers are; in a single turn both masks agree."""
    tokenizer = make()
    tokenizer.chat_template = None
    for turns in (TURNS[:2], TURNS[:4], TURNS):
        exact, official = (tokenize(tokenizer, chat(turns), label_mask=kind) for kind in ("exact", "official"))
        labels = official_collator(tokenizer, turns)
        assert np.where(official.learned, official.ids, -100).tolist() == labels
        assert (exact.learned.tolist() == official.learned.tolist()) == (len(turns) == 2)
    system = ChatRow([{"role": "system", "content": "Be brief."}, *chat(TURNS).messages])
    joined = chat(["Be brief.\n\n" + TURNS[0], *TURNS[1:]])
    both = [tokenize(tokenizer, row, label_mask="official").learned.tolist() for row in (system, joined)]
    assert both[0] == both[1]
    tokenizer.chat_template = GRIT
    assert tokenize(tokenizer, joined, label_mask="official").learned.tolist() == both[1]
    tokenizer.chat_template = CHATML
    with pytest.raises(ArgumentError, match="label_mask='official' is for GRIT's chat format"):
        tokenize(tokenizer, joined, label_mask="official")


def test_special_tokens_that_somebody_typed_end_nothing() -> None:
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "mistral")
    found = tokenize(tokenizer, chat(["Say </s> and <s>.", "</s> it is."]))
    ids, learned = found.ids.tolist(), found.learned.tolist()
    assert ids.count(tokenizer.eos_token_id) == 1 and ids.count(tokenizer.bos_token_id) == 1
    answer = [token for token, counts in zip(ids, learned, strict=True) if counts]
    assert str(tokenizer.decode(answer[:-1])).split() == ["</s>", "it", "is."] and answer[-1] == tokenizer.eos_token_id


def test_a_system_message_and_plain_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "mistral")
    row = ChatRow([{"role": "system", "content": "Be brief."}, *chat(TURNS[:2]).messages])
    joined = chat(["Be brief.\n\n" + TURNS[0], TURNS[1]])
    assert tokenize(tokenizer, row).ids.tolist() == tokenize(tokenizer, joined).ids.tolist()
    text = tokenize(tokenizer, TextRow("A keel."))
    assert text.ids.tolist() == [1, *tokenizer.encode("A keel.", add_special_tokens=False), 2]
    assert text.learned.tolist() == [False] + [True] * (len(text.ids) - 1)


def test_truncation_and_rows_with_nothing_left() -> None:
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "mistral")
    whole = tokenize(tokenizer, chat(TURNS))
    cut = tokenize(tokenizer, chat(TURNS), max_length=60)
    assert cut.ids.tolist() == whole.ids[:60].tolist() and cut.learned.tolist() == whole.learned[:60].tolist()
    assert tokenize_chats(tokenizer, [chat(TURNS)], max_length=10) == [None]


def test_templates_that_refuse() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(RowError, match="the chat template refuses it: no system role"):
        tokenize_chats(tokenizer, [chat(TURNS)], max_length=100)


def test_embedding_texts_are_those_of_encode() -> None:
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "mistral")
    row = EmbeddingRow([("Find", "a keel"), ("", "It keeps."), ("Other", "Bread.")], 1)
    [found] = tokenize_embedding_rows(tokenizer, [row], query_max_length=50, passage_max_length=30)
    for (instruction, text), tokens, limit in zip(row.texts, found, (50, 30, 30), strict=True):
        [expected] = tokenize_texts(tokenizer, [text], instruction=embedding_prompt(instruction), max_length=limit)
        assert tokens.ids.tolist() == expected.ids and tokens.skipped == expected.instruction_tokens
    with pytest.raises(RowError, match="its instruction takes all 12 tokens") as caught:
        tokenize_embedding_rows(tokenizer, [row], query_max_length=50, passage_max_length=12)
    assert caught.value.row == 0


def test_the_official_prompt_tokens(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "golden" / "mistral" / "checkpoint")
    row = EmbeddingRow([("", "A jib.")], 0)
    [[found]] = tokenize_embedding_rows(tokenizer, [row], query_max_length=50, passage_max_length=50)
    assert found.ids[:7].tolist() == [1, 523, 28766, 18320, 28766, 28767, 13] and found.skipped == 7
