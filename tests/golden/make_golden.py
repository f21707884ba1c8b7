"""Make the two tiny checkpoints in this folder, and what they must compute.

    python tests/golden/make_golden.py

The weights are random, the tokenizer is Mistral's kind (byte-fallback BPE) on a vocabulary of 384. The numbers
come from ``tests/reference.py``, which shares no code with mlx; ``golden.json`` holds them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

from tests import reference

HERE = Path(__file__).parent
BASE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", **BASE},
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        **BASE,
    },
}
CORPUS = [
    "A keel keeps a ship upright when the wind leans on its sails.",
    "Bread rises because yeast eats sugar and breathes out gas.",
    "The answer is in the first paragraph of the second page.",
    "<|user|>\n<|assistant|>\n<|embed|>\n",
]
TEXTS = [
    "A keel keeps a ship upright.",
    "Bread rises.",
    "a",
    "The wind leans on the sails of the ship, and the keel leans back; that is all there is to sailing upright.",
    "\n\nleading newlines and ünïcödé 海",
]
INSTRUCTION = "<|user|>\nFind the answer\n<|embed|>\n"
PROMPTS = ["What keeps a ship upright?", "Why does bread rise?\nAnswer in one line."]


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    octets = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=BASE["vocab_size"], special_tokens=[*special, *octets], show_progress=False, max_token_length=12
    )
    made.train_from_iterator(CORPUS, trainer)
    # The byte tokens must be found by fallback only, not in text that spells "<0x0A>".
    content = json.loads(made.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 3]
    made = Tokenizer.from_str(json.dumps(content))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    hidden, width = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]

    def matrix(rows: int, columns: int, scale: float = 0.25) -> np.ndarray[Any, Any]:
        return rng.normal(0, scale, (rows, columns)).astype(np.float32)

    made = {
        "model.embed_tokens.weight": matrix(config["vocab_size"], hidden, 1.0),
        "model.norm.weight": rng.uniform(0.5, 1.5, hidden).astype(np.float32),
        "lm_head.weight": matrix(config["vocab_size"], hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"{prefix}{name}.weight"] = rng.uniform(0.5, 1.5, hidden).astype(np.float32)
        for name, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            made[f"{prefix}self_attn.{name}_proj.weight"] = matrix(rows, hidden)
        if "num_local_experts" not in config:
            for name, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
                made[f"{prefix}mlp.{name}_proj.weight"] = matrix(*shape)
            continue
        made[f"{prefix}block_sparse_moe.gate.weight"] = matrix(config["num_local_experts"], hidden)
        for expert in range(config["num_local_experts"]):
            for name, shape in (("w1", (width, hidden)), ("w2", (hidden, width)), ("w3", (width, hidden))):
                made[f"{prefix}block_sparse_moe.experts.{expert}.{name}.weight"] = matrix(*shape)
    return made


def save_weights(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """A safetensors file, written by hand: no library of the project's has a part in it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in sorted(tensors.items()):
        raw = tensor.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def golden(folder: Path, config: dict[str, Any], made: Tokenizer) -> dict[str, Any]:
    read = reference.load_weights(folder)
    encode = []
    cases: dict[str, dict[str, Any]] = {
        "instructed": {"instruction": INSTRUCTION},
        "plain": {},
        "embed_instruction": {"instruction": INSTRUCTION, "embed_instruction": True},
        "truncated": {"instruction": INSTRUCTION, "max_length": 24},
        "no_bos": {"instruction": INSTRUCTION, "add_special_tokens": False},
        "weightedmean": {"instruction": INSTRUCTION, "pooling": "weightedmean"},
        "lasttoken": {"instruction": INSTRUCTION, "pooling": "lasttoken"},
        "cls": {"instruction": INSTRUCTION, "pooling": "cls"},
        "causal": {"instruction": INSTRUCTION, "attn": "cccc"},
        "unnormalized": {"instruction": INSTRUCTION, "normalized": False},
    }
    for name, options in cases.items():
        instruction = options.get("instruction", "")
        special = options.get("add_special_tokens", True)
        pooling = options.get("pooling", "mean")
        begin = len(made.encode(instruction, add_special_tokens=special).ids) if instruction else 0
        masked = "mean" in pooling and not options.get("embed_instruction")
        vectors = [
            reference.embed(
                read,
                config,
                made.encode(instruction + text, add_special_tokens=special).ids[: options.get("max_length", 512)],
                skipped=begin if masked else 0,
                causal=options.get("attn") == "cccc",
                pooling=pooling,
                normalized=options.get("normalized", True),
            )
            for text in TEXTS
        ]
        encode.append({"name": name, "options": options, "vectors": np.round(vectors, 8).tolist()})
    generate = []
    for prompt in PROMPTS:
        ids = made.encode(f"<|user|>\n{prompt}\n<|assistant|>\n").ids
        last = reference.logits(read, config, ids)[-1]
        tokens = reference.greedy(read, config, ids, 12)
        generate.append({"prompt": prompt, "ids": ids, "logits": np.round(last, 7).tolist(), "greedy": tokens})
    return {"texts": TEXTS, "encode": encode, "generate": generate}


def main() -> None:
    made = tokenizer()
    for seed, (name, config) in enumerate(CONFIGS.items()):
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        made.save(str(folder / "tokenizer.json"))
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, **special}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1) + "\n", encoding="utf-8")
        save_weights(folder / "model.safetensors", weights(config, seed))
        text = json.dumps(golden(folder, config, made), ensure_ascii=False)
        (folder / "golden.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
