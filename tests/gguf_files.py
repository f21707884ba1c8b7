"""GGUF files made of tiny checkpoints, by the names and in the order in which llama.cpp's converter writes them.

Names come from the ``gguf`` package's own table, blocks from its quantisation: nothing here is the project's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from tokenizers import Tokenizer

ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "gemma3_text": "gemma3",
    "qwen3_moe": "qwen3moe",
}
PERMUTED = ("llama", "mistral", "mixtral")

Array = NDArray[np.float32]


def load(folder: Path) -> dict[str, Array]:
    """A checkpoint's weights as float32."""
    tensors: dict[str, Array] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        loaded: Any = mx.load(str(path))
        tensors |= {name: np.array(array.astype(mx.float32)) for name, array in loaded.items()}
    return tensors


def stored(folder: Path, *, split_experts: bool = False) -> Iterator[tuple[str, Array]]:
    """llama.cpp's tensors of a Hugging Face checkpoint."""
    config = json.loads((folder / "config.json").read_text())
    kind = config["model_type"]
    name = ARCHITECTURES.get(kind, kind)
    names = gguf.get_tensor_name_map(
        {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[name], config["num_hidden_layers"]
    )
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    experts: dict[str, dict[int, Array]] = {}
    for hf, array in load(folder).items():
        module, leaf = hf.rsplit(".", 1)
        last = module.rsplit(".", 1)[-1]
        if kind in PERMUTED and last in heads:
            count = heads[last]
            array = (
                array.reshape(count, 2, array.shape[0] // count // 2, *array.shape[1:])
                .swapaxes(1, 2)
                .reshape(array.shape)
            )
        if kind.startswith("gemma") and last.endswith("norm"):
            array = array + 1
        if ".experts." in module:
            block, expert = module.split(".experts.")
            number, part = expert.split(".")
            target = names.get_name(f"{block}.experts.{part}")
            assert target is not None
            if split_experts:
                yield f"{target.removesuffix('_exps')}.{number}.{leaf}", array
            else:
                experts.setdefault(f"{target}.{leaf}", {})[int(number)] = array
            continue
        target = names.get_name(module)
        assert target is not None, hf
        yield f"{target}.{leaf}", array
    for target, arrays in experts.items():
        yield target, np.stack([array for _, array in sorted(arrays.items())])


def settings_of(folder: Path) -> dict[str, Any]:
    """The metadata of an architecture."""
    config = json.loads((folder / "config.json").read_text())
    name = ARCHITECTURES.get(config["model_type"], config["model_type"])
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    settings = {
        "context_length": config.get("max_position_embeddings", 1024),
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": size,
        "attention.value_length": size,
        "rope.freq_base": float(config.get("rope_theta", 10000.0)),
        "rope.dimension_count": int(size * config.get("partial_rotary_factor", 1)),
    }
    optional = {
        "expert_count": config.get("num_local_experts") or config.get("num_experts"),
        "expert_used_count": config.get("num_experts_per_tok"),
        "expert_feed_forward_length": config.get("moe_intermediate_size"),
        "attention.sliding_window": config.get("sliding_window"),
        "attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
    }
    settings |= {key: value for key, value in optional.items() if value is not None}
    return {f"{name}.{key}": value for key, value in settings.items()}


def tokenizer_settings(tokenizer: Tokenizer, **given: Any) -> dict[str, Any]:
    """The metadata of a tokenizer: SentencePiece's kind with scores if it falls back to bytes, else byte-level BPE."""
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    table = {**model["vocab"], **{token["content"]: token["id"] for token in content["added_tokens"]}}
    tokens = [token for token, _ in sorted(table.items(), key=lambda item: item[1])]
    special = {token["content"]: token["special"] for token in content["added_tokens"]}
    kinds = [3 if special.get(token) else 4 if token in special else 1 for token in tokens]
    settings: dict[str, Any] = {"tokens": tokens}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model["byte_fallback"]:
        ranks = {merge.replace(" ", ""): number for number, merge in reversed(list(enumerate(merges)))}
        settings["model"] = "llama"
        settings["scores"] = [float(-ranks.get(token, -1) - 1) for token in tokens]
        byte = [token.startswith("<0x") and len(token) == 6 for token in tokens]
        kinds = [
            6 if one else 2 if token == "<unk>" else kind for one, token, kind in zip(byte, tokens, kinds, strict=True)
        ]
    else:
        settings |= {"model": "gpt2", "merges": merges}
    settings["token_type"] = kinds
    return {f"tokenizer.ggml.{key}": value for key, value in {**settings, **given}.items() if value is not None}


def write(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Array],
    *,
    kind: Kind = Kind.F32,
    kinds: Mapping[str, Kind] | None = None,
) -> Path:
    """Write a file; matrices whose rows divide into blocks are quantised, in a type of their own by name if given."""
    writer = gguf.GGUFWriter(path, architecture)
    add(writer, metadata)
    for name, array in tensors.items():
        chosen = (kinds or {}).get(name, kind)
        if array.ndim == 1 or array.shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0]:
            chosen = Kind.F32
        data = gguf.quantize(array, chosen)
        writer.add_tensor(name, data, raw_dtype=chosen)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    """Write what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer: gguf.GGUFWriter, metadata: Mapping[str, Any]) -> None:
    """Metadata, each value in the type that llama.cpp's converter gives it."""
    for key, value in metadata.items():
        if key == "general.architecture":  # the writer's own
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def gguf_of(
    folder: Path,
    path: Path,
    *,
    kind: Kind = Kind.F32,
    split_experts: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """A checkpoint's GGUF file. Metadata of None is left out."""
    config = json.loads((folder / "config.json").read_text())
    name = ARCHITECTURES.get(config["model_type"], config["model_type"])
    ids = {"bos_token_id": config.get("bos_token_id"), "eos_token_id": config.get("eos_token_id")}
    own = tokenizer_settings(Tokenizer.from_file(str(folder / "tokenizer.json")), **ids)
    template = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
    found = {**settings_of(folder), **own, "tokenizer.chat_template": template, **(metadata or {})}
    found = {key: value for key, value in found.items() if value is not None}
    return write(path, name, found, dict(stored(folder, split_experts=split_experts)), kind=kind)
