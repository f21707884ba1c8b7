"""How fast this device runs a model, roughly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mlx.utils import tree_flatten

from grit_mlx.model import device
from grit_mlx.model.checkpoint import decoder_config
from grit_mlx.model.options import GenerationOptions
from grit_mlx.rag.modes import Rates

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM

__all__ = ["default_rates"]

# Operations per second, and what attention costs beyond its operations (mlx's softmax on a CPU runs on one core).
# Rough: modes of the same model on the same machine are compared, and only reading a file is measured against these.
_OPERATIONS: Final = {"cpu": 5e10, "metal": 5e12, "cuda": 5e13}
_ATTENTION_FACTOR: Final = {"cpu": 6.0, "metal": 2.0, "cuda": 2.0}
_BYTES_PER_SECOND: Final = 1.5e9


def default_rates(model: GritLM) -> Rates:
    """Rates of this device, from the model's size and shape."""
    here = device.current_device().kind
    config = decoder_config(model.config)
    named: Any = tree_flatten(model.model.parameters())
    parameters = sum(array.size for name, array in named if _computes(name))
    experts, used = config.get("num_local_experts"), config.get("num_experts_per_tok")
    share = used / experts if experts and used else 1.0  # nearly all of a mixture's weights are its experts'
    heads = int(config.get("num_attention_heads") or 1)
    size = int(config.get("head_dim") or int(config.get("hidden_size") or 1) // heads)
    layers = int(config.get("num_hidden_layers") or 1)
    operations = _OPERATIONS[here]
    return Rates(
        token=2 * parameters * share / operations,
        pair=4 * heads * size * layers * _ATTENTION_FACTOR[here] / operations,
        byte=1 / _BYTES_PER_SECOND,
        step=GenerationOptions.prefill_step_size if here == "cpu" else 1,  # on a CPU mlx computes masked pairs too
    )


def _computes(name: str) -> bool:
    """Whether a weight is multiplied with every token of a prompt: the embeddings and the head are not."""
    return "embed" not in name and "lm_head" not in name
