"""Complete the trained weights to a folder that loads: python recipes/grit-tiny/write_model.py

The tokenizer is the teacher's. GRIT's markers take the place of three tokens that it does not use, and as with other
GRIT models a text begins with one token, [CLS], and has none at its end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import sources
import yaml
from student import ASSISTANT, CLS, EMBED, USER

MARKERS = {USER: "<|user|>", ASSISTANT: "<|assistant|>", EMBED: "<|embed|>"}


def tokenizer() -> dict[str, object]:
    """The contents of ``tokenizer.json``."""
    found = json.loads((sources.teacher() / "tokenizer.json").read_text(encoding="utf-8"))
    found["truncation"] = found["padding"] = None
    names = {number: name for name, number in found["model"]["vocab"].items()} | MARKERS
    found["model"]["vocab"] = {names[number]: number for number in sorted(names)}
    kind = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    found["added_tokens"] += [{"id": number, "content": name, **kind} for number, name in MARKERS.items()]
    found["added_tokens"].sort(key=lambda token: token["id"])
    first = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    found["post_processor"] |= {
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [CLS], "tokens": ["[CLS]"]}},
    }
    return found


def write(folder: Path, settings: Path) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
    values = {"format": 1, **yaml.safe_load(settings.read_text(encoding="utf-8"))}
    for name, value in (("tokenizer_config", config), ("grit", values)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    text = json.dumps(tokenizer(), ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=sources.WORK / "start")
    write(parser.parse_args().folder, Path(__file__).with_name("settings.yaml"))


if __name__ == "__main__":
    main()
