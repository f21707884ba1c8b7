"""Arguments of the official ``gritlm`` package and of other libraries: taken, mapped, or ignored with one note.

So that programs written for them carry over. docs/python.md lists what differs. Source: gritlm 1.0.2, its README, the
parameters of transformers' ``from_pretrained`` and ``generate``, and of sentence-transformers' ``encode``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import mlx.core as mx
import numpy as np

from grit_mlx.errors import ArgumentError
from grit_mlx.model.caches import layer_cache
from grit_mlx.model.inputs import is_token_array
from grit_mlx.options import nearest

__all__ = [
    "TokenArray",
    "as_tensor",
    "constructor",
    "dtype_name",
    "encode",
    "generate",
    "like",
    "text_cache",
    "token_rows",
    "with_arrays",
]

logger = logging.getLogger("grit_mlx")

# Names that mean one of ours.
_CONSTRUCTOR: Final = {"torch_dtype": "dtype"}
_ENCODE: Final = {
    "show_progress_bar": "progress", "prompt": "instruction", "precision": "output_dtype",
    "normalize_embeddings": "normalized", "normalize": "normalized", "dimensions": "truncate_dim",
}  # fmt: skip
_GENERATE: Final = {
    "max_new_tokens": "max_tokens", "past_key_values": "cache", "stop_strings": "stop", "stop_sequences": "stop",
    "temp": "temperature", "repeat_penalty": "repetition_penalty", "n_predict": "max_tokens",
    "num_predict": "max_tokens",
}  # fmt: skip

# The names that models of sentence-transformers give their prompts, and what they are embedded as here.
_ROLES: Final = {
    "query": "query", "document": "document", "passage": "document", "corpus": "document", "text": "document",
    "similarity": "similarity", "sts": "similarity", "STS": "similarity",
}  # fmt: skip

# Names that have nothing to do here: mlx has one device, one attention, one kind of memory.
_CONSTRUCTOR_IGNORED: Final = frozenset({
    "attn_implementation", "cache_dir", "device", "device_map", "force_download", "is_inference", "load_in_4bit",
    "load_in_8bit", "local_files_only", "low_cpu_mem_usage", "max_memory", "num_gpus", "offload_folder",
    "offload_state_dict", "quantization_config", "token", "use_auth_token", "use_cache", "use_flash_attention_2",
    "use_safetensors",
})  # fmt: skip
_ENCODE_IGNORED: Final = frozenset({
    "corpus_id", "device", "num_workers", "pool", "prompt_type", "qid", "recast",
    "request_qid", "sub_corpus_id", "task_metadata", "task_name", "hf_split", "hf_subset",
})  # fmt: skip
_GENERATE_IGNORED: Final = frozenset({
    "bos_token_id", "cache_implementation", "eos_token_id", "pad_token_id", "position_ids",
    "synced_gpus", "token_type_ids", "use_cache", "verbose",
})  # fmt: skip

# What transformers can do beside sampling, and the value that asks for nothing.
_GENERATE_NEUTRAL: Final[Mapping[str, Any]] = {
    "bad_words_ids": None, "diversity_penalty": 0.0, "early_stopping": False, "generation_config": None,
    "length_penalty": 1.0, "logits_processor": None, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1,
    "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False, "output_logits": False,
    "output_scores": False, "penalty_alpha": None, "return_dict_in_generate": False, "stopping_criteria": None,
    "streamer": None, "typical_p": 1.0,
}  # fmt: skip

_BEAMS: Final = frozenset({"diversity_penalty", "early_stopping", "length_penalty", "num_beam_groups"})

# GRIT's chat for tokenizers without a template, equal to ``prompts.render_chat``. Newlines are written as expressions:
# Jinja drops one that follows a block.
_TEMPLATE: Final = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ '<|user|>\\n' + message['content'] + '\\n<|assistant|>\\n' }}"
    "{% else %}"
    "{{ message['content'] + (eos_token or '') }}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endif %}"
    "{% endfor %}"
)

_noted: set[str] = set()


def constructor(options: Mapping[str, Any]) -> dict[str, Any]:
    """Our names and values for what ``GritLM`` was given beside its own arguments.

    Raises:
        ArgumentError: a name that neither package knows.
    """
    taken = _mapped("GritLM", options, _CONSTRUCTOR, _CONSTRUCTOR_IGNORED, silent={"is_inference": True})
    for name in taken:
        if name not in _CONSTRUCTOR.values():
            raise ArgumentError(f"GritLM has no argument {name!r}: {nearest(name, _OWN_CONSTRUCTOR)}")
    return taken


def encode(options: Mapping[str, Any], *, own: Mapping[str, Any]) -> dict[str, Any]:
    """Our names and values for what ``encode`` was given.

    Args:
        options: all that it was given by name.
        own: the names of its own arguments.

    Raises:
        ArgumentError: a name that is nearly one of ours, or a prompt that no model has.
    """
    taken = _mapped("encode", options, _ENCODE, _ENCODE_IGNORED, silent={"recast": False})
    if (value := taken.pop("output_value", None)) not in (None, "sentence_embedding"):
        raise ArgumentError(f"encode gives one vector a text, not output_value={value!r}: leave it out.")
    if (tensor := taken.pop("convert_to_tensor", None)) is not None:
        taken.setdefault("convert_to_numpy", not tensor)
    name = taken.pop("prompt_name", None)
    if name is not None and taken.get("instruction") is None:
        if name not in _ROLES:
            raise ArgumentError(f"There is no prompt {name!r}: use one of {', '.join(dict.fromkeys(_ROLES.values()))}.")
        if taken.get("role", own.get("role")) is None:
            taken["role"] = _ROLES[name]
    strangers = [name for name in taken if name not in own]
    for name in strangers:
        hint = nearest(name, own)
        if hint.startswith("did you mean"):
            raise ArgumentError(f"encode has no argument {name!r}: {hint}")
        del taken[name]
    _note("encode", strangers)  # the official encode takes anything
    return taken


def generate(options: Mapping[str, Any]) -> dict[str, Any]:
    """Our names and values for what ``generate`` was given.

    Raises:
        ArgumentError: something that transformers can do and mlx-lm cannot.
    """
    taken = _mapped("generate", options, _GENERATE, _GENERATE_IGNORED, silent={"use_cache": True})
    if taken.get("num_beams") in (None, 1):  # only beams have these
        taken = {name: value for name, value in taken.items() if name not in _BEAMS}
    for name, neutral in _GENERATE_NEUTRAL.items():
        if name in taken and (value := taken.pop(name)) != neutral:
            raise ArgumentError(f"generate does not support {name}={value!r:.60}: leave it out.")
    sample = taken.pop("do_sample", None)
    if sample is not None:
        # transformers samples at 1 where nothing is said, and takes the likeliest token where it does not sample.
        taken["temperature"] = (taken.get("temperature") or 1.0) if sample else 0.0
    return taken


def dtype_name(dtype: Any) -> Any:
    """The name of a dtype: of PyTorch's, NumPy's or mlx's as well as text."""
    if dtype is None or isinstance(dtype, str):
        return dtype or "auto"
    return getattr(dtype, "__name__", str(dtype)).rpartition(".")[2]


def text_cache(given: Any) -> Any:
    """Pairs of keys and values ``(1, H, L, D)``, one a layer, as mlx-lm's caches; anything else as it is given."""
    if not isinstance(given, list | tuple) or not given or not isinstance(given[0], list | tuple):
        return given
    layers = [[mx.array(np.asarray(array)) for array in layer] for layer in given]
    if any(len(layer) != 2 or layer[0].ndim != 4 or layer[0].shape[0] != 1 for layer in layers):
        raise ArgumentError("A cache has keys and values of shape (1, heads, tokens, size) for each layer.")
    return [layer_cache(keys, values) for keys, values in layers]


def with_arrays(tokenizer: Any) -> Any:
    """Make a tokenizer give arrays where programs ask for PyTorch's tensors and there is no PyTorch.

    Also as the official package does: padding on the right, with EOS where there is no padding token.

    Args:
        tokenizer: a Hugging Face tokenizer; it stays the same object.
    """
    kind = type(tokenizer)
    if hasattr(kind, "_grit_template"):
        return tokenizer

    def call(self: Any, *arguments: Any, return_tensors: Any = None, **options: Any) -> Any:
        if not _asks_for_torch(return_tensors):
            return kind.__call__(self, *arguments, return_tensors=return_tensors, **options)
        encoded = kind.__call__(self, *arguments, return_tensors="np", **options)
        encoded.__class__ = _encoding(type(encoded))
        for name, value in encoded.items():
            encoded[name] = value.view(TokenArray)
        return encoded

    def encode_one(self: Any, *arguments: Any, return_tensors: Any = None, **options: Any) -> Any:
        if not _asks_for_torch(return_tensors):
            return kind.encode(self, *arguments, return_tensors=return_tensors, **options)
        return kind.encode(self, *arguments, return_tensors="np", **options).view(TokenArray)

    def get_chat_template(self: Any, chat_template: str | None = None, tools: Any = None) -> Any:
        if chat_template is None and not self.chat_template:
            chat_template = _TEMPLATE
        return kind.get_chat_template(self, chat_template, tools)

    # Under the same name, which is written to tokenizer_config.json.
    names = {"__call__": call, "encode": encode_one, "get_chat_template": get_chat_template}
    tokenizer.__class__ = type(kind.__name__, (kind,), {**names, "__module__": kind.__module__, "_grit_template": True})
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def as_tensor(vectors: Any) -> Any:
    """An mlx array, alone or before others in a tuple, as PyTorch's tensor if the program has PyTorch."""
    if isinstance(vectors, tuple):
        return as_tensor(vectors[0]), *vectors[1:]
    torch = sys.modules.get("torch")
    return vectors if torch is None else torch.from_numpy(np.array(vectors))


class TokenArray(np.ndarray[Any, Any]):
    """An array of token ids, with the methods that programs call on PyTorch's tensors."""

    def to(self, *_: Any, **__: Any) -> TokenArray:
        """Itself: there is one memory."""
        return self

    cpu = cuda = detach = contiguous = to

    def numpy(self) -> np.ndarray[Any, Any]:
        """NumPy's own array."""
        return self.view(np.ndarray)


def token_rows(prompt: Any, mask: Any = None) -> list[list[int]] | None:
    """The rows of a two-dimensional array of token ids, without padding; None for any other prompt.

    Args:
        prompt: ``(B, L)``, or what a tokenizer returns.
        mask: ``(B, L)``, 0 on padding; None for no padding.
    """
    if isinstance(prompt, Mapping) and "input_ids" in prompt:
        prompt, mask = prompt["input_ids"], prompt.get("attention_mask")
    if not is_token_array(prompt) or len(prompt.shape) != 2:
        return None
    ids = np.asarray(prompt)
    if mask is None or np.shape(mask)[1] < ids.shape[1]:
        return ids.tolist()  # type: ignore[no-any-return]
    # With a cache before the prompt its mask covers the cache as well.
    kept = np.asarray(mask)[:, -ids.shape[1] :].astype(bool)
    return [row[keep].tolist() for row, keep in zip(ids, kept, strict=True)]


def like(prompt: Any, rows: list[list[int]], padding: int) -> Any:
    """Rows of token ids as an array ``(B, L)`` of the kind that ``prompt`` is."""
    ids = np.full((len(rows), max(map(len, rows), default=0)), padding, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    given = prompt["input_ids"] if isinstance(prompt, Mapping) else prompt
    home = type(given).__module__.partition(".")[0]
    if home == "torch":
        return sys.modules["torch"].from_numpy(ids)
    if home == "mlx":
        return mx.array(ids)
    return ids.view(TokenArray)


_OWN_CONSTRUCTOR: Final = (
    "model_name_or_path", "mode", "pooling_method", "normalized", "attn", "dtype", "adapter_path", "revision",
    "trust_remote_code", "projection", "embed_eos",
)  # fmt: skip


def _mapped(
    function: str,
    options: Mapping[str, Any],
    names: Mapping[str, str],
    ignored: frozenset[str],
    silent: Mapping[str, Any],
) -> dict[str, Any]:
    """The options under our names, and a note of those that are ignored."""
    taken: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in options.items():
        if name in ignored:
            if value is not None and value is not silent.get(name):
                left_out.append(name)
        elif name in names:
            if value is not None:
                if names[name] in options:
                    raise ArgumentError(f"{name} and {names[name]} mean the same: pass one of them.")
                taken[names[name]] = value
        else:
            taken[name] = value
    _note(function, left_out)
    return taken


def _note(function: str, names: list[str]) -> None:
    new = [name for name in names if f"{function} {name}" not in _noted]
    _noted.update(f"{function} {name}" for name in new)
    if new:
        logger.warning("%s ignores %s, which means nothing here.", function, " and ".join(new))


def _asks_for_torch(kind: Any) -> bool:
    from transformers.utils.import_utils import is_torch_available

    return getattr(kind, "value", kind) == "pt" and not is_torch_available()


def _encoding(kind: type) -> type:
    def to(self: Any, *_: Any, **__: Any) -> Any:
        return self

    methods: dict[str, Callable[..., Any]] = {"to": to}
    return type(kind.__name__, (kind,), {**methods, "__module__": kind.__module__})
