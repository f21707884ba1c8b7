"""Make the numbers that SmolLM2-135M-Instruct must compute: ``smollm2/golden.npz`` and ``golden.json``.

    python tests/golden/make_smollm2.py

Needs torch and transformers, and the file that ``tests/real_model.py`` fetches. Nothing of this project is used: the
``gguf`` package reads and dequantises the file, transformers computes in float32. Bidirectional states are those of
its LlamaModel with a mask that hides nothing, and are themselves compared with ``tests/reference.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests import reference
from tests.real_model import gguf_file

HERE = Path(__file__).parent / "smollm2"
CONFIG: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
# Without digits: transformers reads the tokenizer from the file, and does not know that this one splits them.
PROMPTS = [
    "The capital of France is",
    "The opposite of hot is cold, and the opposite of day is",
    "def fibonacci(n):\n    if n < two:\n        return n\n",
    "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n<|im_start|>user\nWhat is gravity?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a haiku about autumn leaves.<|im_end|>\n<|im_start|>assistant\n",
    "Water boils when it is heated because",
    "The largest planet in our solar system is",
    "Dear Sir or Madam,\n\nI am writing to",
    "Die Hauptstadt von Deutschland ist",
    "Q: Who wrote the play Romeo and Juliet?\nA:",
]
TEXTS = [
    "The keel keeps a ship upright when the wind leans on its sails.",
    "Bread rises because yeast eats sugar and breathes out gas.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "cats",
    "The treaty was signed in the spring, after years of negotiations that nobody had expected to succeed; by the "
    "autumn, three of the five parties had withdrawn, and the borders were drawn again.",
    "SELECT name FROM users WHERE age > limit ORDER BY name;",
    "Das Meer ist heute ruhig, und die Boote liegen am Strand.",
    "海はとても静かです。",
    "Error: cannot open the file 'config.json': permission denied.",
    "A mean is the sum of all values divided by how many there are.",
]
TOKENS = 20
# Logits that are kept of each prompt: the highest, and some from all over the vocabulary.
HIGHEST, SPREAD = 20, 40


def weights_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Hugging Face's tensors of the file, float32."""
    named = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, CONFIG["num_hidden_layers"])
    names = {named.get_name(name, (".weight",)): name for name in LlamaForCausalLM(_config()).state_dict()}
    tensors = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = names[tensor.name]
        heads = {"q_proj": 9, "k_proj": 3}.get(name.split(".")[-2], 0)
        if heads:  # llama.cpp's converter: reshape(heads, 2, size / 2, width).swapaxes(1, 2)
            values = values.reshape(heads, 32, 2, -1).swapaxes(1, 2).reshape(values.shape)
        tensors[name] = np.ascontiguousarray(values)
    return tensors


def _config() -> Any:
    options: dict[str, Any] = {**CONFIG, "attn_implementation": "eager"}
    return LlamaConfig(**options)


def bidirectional(model: LlamaForCausalLM, ids: list[int]) -> np.ndarray[Any, Any]:
    """Hidden states ``(L, E)`` where every token sees every token: a mask of four axes is used as it is."""
    with torch.no_grad():
        mask = torch.zeros(1, 1, len(ids), len(ids))
        return np.asarray(model.model(torch.tensor([ids]), attention_mask=mask).last_hidden_state[0].numpy())


def main() -> None:
    torch.set_num_threads(1)
    path = gguf_file()
    weights = weights_of(path)
    model = LlamaForCausalLM(_config()).eval()
    tied = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}
    model.load_state_dict({name: torch.from_numpy(array) for name, array in tied.items()})
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    golden: dict[str, Any] = {"texts": [], "prompts": []}
    arrays: dict[str, Any] = {}
    wide = {name: array.astype(np.float64) for name, array in tied.items()}
    means = []
    for number, text in enumerate(TEXTS):
        ids = tokenizer.encode(text)
        states = bidirectional(model, ids)
        if number < 2:
            own = reference.states(wide, CONFIG, ids, causal=False)
            assert np.abs(own - states).max() < 1e-3 * np.abs(own).max(), "transformers did not see both ways"
        means.append(states.mean(axis=0))
        golden["texts"].append({"text": text, "ids": ids})
    arrays["means"] = np.stack(means).astype(np.float32)
    spread = np.linspace(0, CONFIG["vocab_size"] - 1, SPREAD).astype(np.int64)
    for number, prompt in enumerate(PROMPTS):
        ids = tokenizer.encode(prompt)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].numpy()
        if number == 0:
            own = reference.logits(wide, CONFIG, ids)[-1]
            assert np.abs(own - logits).max() < 1e-3 * np.abs(own).max()
        chosen = np.concatenate([np.argsort(-logits)[:HIGHEST], spread])
        arrays[f"ids_{number}"], arrays[f"logits_{number}"] = chosen, logits[chosen]
        continued, margin = greedy(model, ids)
        assert margin > 0.02, f"a decision after {prompt!r} is too close to be compared"
        golden["prompts"].append({"text": prompt, "ids": ids, "continued": continued, "margin": round(margin, 4)})
    HERE.mkdir(exist_ok=True)
    np.savez_compressed(HERE / "golden.npz", **arrays)
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def greedy(model: LlamaForCausalLM, ids: list[int]) -> tuple[list[int], float]:
    """The likeliest tokens one after another, and by how much the closest decision was made."""
    ids, margin, start = list(ids), np.inf, len(ids)
    for _ in range(TOKENS):
        with torch.no_grad():
            top = torch.topk(model(torch.tensor([ids])).logits[0, -1], 2)
        (first, second), best = top.values.tolist(), int(top.indices[0])
        margin = min(margin, first - second)
        ids.append(best)
        if best in (0, 2):  # the ends of a text and of a turn
            break
    return ids[start:], float(margin)


if __name__ == "__main__":
    main()
