"""The model's tokenizer: byte-pair encoding with byte fallback, trained on the training data.

    python recipes/grit-tiny/make_tokenizer.py [--size 16384]

Words keep their case, because the model also generates. A word at the start of a line gets the same leading space as
elsewhere (removed when decoding), so that it is always the same token: in a bag-of-tokens model, the first word of a
query must match the word in the passage.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import sources
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
# Words with their leading space, numbers of up to four digits, runs of punctuation, single line breaks.
PIECES = r"▁?\p{L}+|▁?\p{N}{1,4}|\n|▁?[^\s\p{L}\p{N}▁]+|▁+(?=▁)|▁|\s"


def empty_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"(?<![^\n])(?=[^\s])"), " "),
            normalizers.Replace(" ", "▁"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<![^\n]) (?=[^\s])"), ""),
        ]
    )
    return tokenizer


def texts(rows: int) -> Iterator[str]:
    for name in sources.EMBEDDING:
        for instruction, query, positive, _ in sources.pairs(name, rows):
            yield f"<|user|>\n{instruction}\n<|embed|>\n{query}"
            yield f"<|embed|>\n{positive[:1500]}"
    for name in sources.GENERATIVE:
        for row in sources.rows("generative", name, rows // 2):
            question, answer = row["text"][0], row["text"][-1]
            yield f"<|user|>\n{question[:1500]}\n<|assistant|>\n{answer[:1500]}"


def train(size: int, rows: int) -> Tokenizer:
    learned = empty_tokenizer()
    room = size - len(SPECIAL) - len(BYTES)
    trainer = trainers.BpeTrainer(vocab_size=room, min_frequency=3, limit_alphabet=220, show_progress=False)
    learned.train_from_iterator(texts(rows), trainer)
    model = json.loads(learned.to_str())["model"]
    # Rare characters are spelled as bytes, so the byte tokens come before the learned ones.
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    tokenizer = json.loads(empty_tokenizer().to_str())
    tokenizer["model"] |= {
        "vocab": {piece: number for number, piece in enumerate([*SPECIAL, *BYTES, *pieces])},
        "merges": [" ".join(merge) for merge in model["merges"]],
    }
    whole = Tokenizer.from_str(json.dumps(tokenizer))
    whole.add_special_tokens(SPECIAL)
    start = ("<s>", whole.token_to_id("<s>"))
    whole.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[start])
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=16_384)
    parser.add_argument("--rows", type=int, default=8_000, help="rows per source")
    options = parser.parse_args()
    tokenizer = train(options.size, options.rows)
    folder = sources.WORK / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads(tokenizer.to_str())
    content["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    print(f"{tokenizer.get_vocab_size()} tokens, {(folder / 'tokenizer.json').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
