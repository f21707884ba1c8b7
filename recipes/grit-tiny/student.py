"""The student in PyTorch: a Mistral that attends in both directions, and how it begins, as the teacher's layers.

BERT and Mistral differ in what can be undone by arithmetic: norms after the sum instead of before it (their gains go
into the weights that read a state; their means, too), biases (a dimension that is the same for all tokens), GELU
(silu(1.702 x) / 1.702). Two differences are left to training: positions, for which each head has four rotary pairs that
rotate fast, while those that hold the teacher's dimensions hardly rotate within a text; and the length of states, which
a norm after the sum evens out. [CLS] would grow to fifteen times the others' length: a flag and a neuron of each layer
give it what it has in the teacher on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLS, SEP = 101, 102
# Tokens of the vocabulary that the teacher does not use.
USER, ASSISTANT, EMBED = 1, 2, 3


@dataclass(frozen=True)
class Shape:
    """The student's; ``layers`` are the teacher's that it begins with, ``teacher`` the teacher's width."""

    layers: tuple[int, ...] = (0, 2, 4, 5)
    teacher: int = 384
    width: int = 416
    heads: int = 12
    head: int = 40
    neurons: int = 1024
    theta: float = 1.5e10
    fast: int = 4  # rotary pairs for positions
    vocabulary: int = 30_522
    epsilon: float = 1e-5

    def config(self) -> dict[str, Any]:
        """As ``config.json`` of a Mistral."""
        return {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.neurons,
            "num_hidden_layers": len(self.layers),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.head,
            "hidden_act": "silu",
            "max_position_embeddings": 1024,
            "rms_norm_eps": self.epsilon,
            "rope_theta": self.theta,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "bos_token_id": CLS,
            "eos_token_id": SEP,
            "torch_dtype": "float32",
        }


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        inner = shape.heads * shape.head
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(self, name, nn.Linear(shape.width, inner, bias=False))
        self.o_proj = nn.Linear(inner, shape.width, bias=False)
        self.gate_proj = nn.Linear(shape.width, shape.neurons, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.neurons, bias=False)
        self.down_proj = nn.Linear(shape.neurons, shape.width, bias=False)

    def attended(self, states: Tensor, mask: Tensor | None, angles: tuple[Tensor, Tensor]) -> Tensor:
        """What attention adds to states ``(B, T, W)``."""
        rows, length, _ = states.shape
        normed = self.input_layernorm(states)
        query, key, value = (
            project(normed).view(rows, length, self.shape.heads, self.shape.head).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        found = functional.scaled_dot_product_attention(
            rotated(query, angles), rotated(key, angles), value, attn_mask=mask
        )
        return self.o_proj(found.transpose(1, 2).reshape(rows, length, -1))

    def transformed(self, states: Tensor) -> Tensor:
        """What the neurons add to states ``(B, T, W)``."""
        normed = self.post_attention_layernorm(states)
        return self.down_proj(functional.silu(self.gate_proj(normed)) * self.up_proj(normed))


class Student(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in shape.layers)
        self.norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.projection = nn.Linear(shape.width, shape.teacher, bias=False)

    def forward(self, tokens: Tensor, pooled: Tensor, read: Tensor) -> Tensor:
        """Vectors ``(B, E)`` of tokens ``(B, T)``, given which are pooled and which are read at all, ``(B, T)``."""
        states = self.embed_tokens(tokens)
        angles = self.angles(tokens.shape[1], states)
        mask = read[:, None, None, :].expand(-1, 1, tokens.shape[1], -1)
        for layer in self.layers:
            states = states + layer.attended(states, mask, angles)
            states = states + layer.transformed(states)
        share = (pooled / pooled.sum(1, keepdim=True)).to(states.dtype)
        return functional.normalize(self.projection((self.norm(states) * share[..., None]).sum(1)).float(), dim=-1)

    def angles(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(0, self.shape.head, 2, device=like.device) / self.shape.head
        angles = torch.arange(length, device=like.device)[:, None] * self.shape.theta**-steps
        return angles.cos(), angles.sin()

    def weights(self) -> dict[str, Tensor]:
        """Under the names of a Mistral checkpoint, without the projection."""
        names = {"q_proj": "self_attn.", "k_proj": "self_attn.", "v_proj": "self_attn.", "o_proj": "self_attn."}
        names |= {"gate_proj": "mlp.", "up_proj": "mlp.", "down_proj": "mlp."}
        found = {}
        for name, value in self.state_dict().items():
            if not name.startswith("projection"):
                part = name.split(".")[-2]
                found["model." + name.replace(part, names.get(part, "") + part)] = value
        return found


def rotated(values: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions as in Hugging Face's Mistral: the halves of a head are the coordinates."""
    cos, sin = (angle.to(values.dtype) for angle in angles)
    first, second = values.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Beginning:
    """Writes a teacher's layers into a student.

    The state of the student is compared with the teacher's on a few texts, because a norm before the sum cannot even
    out what differs from token to token: wherever a scale is needed, it is the median over their tokens.

    Args:
        teacher: a ``BertModel``.
        shape: the student's.
        tokens: of some texts as the student reads them, ``(B, T)``, beginning with [CLS].
        read: which of them are not padding.
    """

    def __init__(self, teacher: Any, shape: Shape, tokens: Tensor, read: Tensor) -> None:
        self.teacher = {name: value.float() for name, value in teacher.state_dict().items()}
        self.shape, self.tokens, self.read = shape, tokens, read.bool()
        self.size = shape.teacher
        self.constant, self.flag = self.size, self.size + 1  # dimensions: of all tokens, of [CLS]
        # A head's dimensions that hold the teacher's: not those of the pairs that rotate fast.
        half = shape.head // 2
        self.held = [*range(shape.fast, half), *range(half + shape.fast, shape.head)]
        self.centred = torch.eye(self.size) - 1 / self.size
        with torch.no_grad():
            ends = torch.where(tokens == EMBED, SEP, tokens)
            found = teacher(input_ids=ends, attention_mask=read.long(), output_hidden_states=True)
        self.states = found.hidden_states

    @torch.no_grad()
    def student(self) -> Student:
        student = Student(self.shape)
        nn.init.normal_(student.embed_tokens.weight, std=0.02)
        student.embed_tokens.weight[:, : self.size + 2] = 0
        table = student.embed_tokens.weight
        table[:, : self.size] = self._token_states()
        table[[USER, ASSISTANT, EMBED]] = table[SEP].clone()
        table[:, self.constant] = 1
        table[CLS, self.flag] = 1
        # A bias of attention's output moves into what precedes it: it is the same for all tokens.
        self.offset = self._of(self.shape.layers[0], "attention.output.dense.bias")
        table[:, : self.size] += self.offset
        self.scale, self.gain, self.bias = torch.ones(self.size), None, None
        state = table[self.tokens]
        angles = student.angles(self.tokens.shape[1], state)
        mask = self.read[:, None, None, :]
        for number, layer in enumerate(student.layers):
            self._write_attention(layer, number, state)
            state = state + layer.attended(state, mask, angles)
            state = self._write_neurons(layer, number, state)
        student.projection.weight.copy_(self._reading(state))
        return student

    def _of(self, layer: int, name: str) -> Tensor:
        return self.teacher[f"encoder.layer.{layer}.{name}"]

    def _median(self, values: Tensor) -> Tensor:
        return values[self.read].median()

    def _length(self, state: Tensor) -> Tensor:
        return (state.pow(2).mean(-1) + self.shape.epsilon).sqrt()

    def _token_states(self) -> Tensor:
        """The teacher's state of each token before its layers, at a mean position; [CLS] at its own."""
        tokens = (
            self.teacher["embeddings.word_embeddings.weight"]
            + self.teacher["embeddings.token_type_embeddings.weight"][0]
        )
        positions = self.teacher["embeddings.position_embeddings.weight"]
        placed = tokens + positions[1:64].mean(0)
        placed[CLS] = tokens[CLS] + positions[0]
        norm = "embeddings.LayerNorm."
        return functional.layer_norm(
            placed, (self.size,), self.teacher[norm + "weight"], self.teacher[norm + "bias"], 1e-12
        )

    def _spread(self, state: Tensor) -> Tensor:
        """The teacher's sum before its norm, as far as it varies: its standard deviation, ``(B, T)``."""
        return ((state[..., : self.size] * self.scale - self.offset) @ self.centred).pow(2).mean(-1).sqrt()

    def _reading(self, state: Tensor) -> Tensor:
        """``(E, W)``, from the normed state to the teacher's state."""
        length = self._length(state)
        found = torch.zeros(self.size, self.shape.width)
        if self.gain is None:
            scale = self._median(length)
            found[:, : self.size] = torch.eye(self.size) * scale
            found[:, self.constant] = -self.offset * scale
            return found
        ratio = self._median(length / self._spread(state))
        found[:, : self.size] = self.gain[:, None] * self.centred * self.scale[None] * ratio
        found[:, self.constant] = self.bias * self._median(length) - self.gain * (self.centred @ self.offset) * ratio
        return found

    def _next_scale(self, state: Tensor) -> Tensor:
        """What each dimension of the state is multiplied by to be the teacher's, once its norm has been passed."""
        if self.gain is None:
            return torch.ones(self.size)
        found = self.gain * self.scale / self._median(self._spread(state))
        return torch.where(found.abs() < 0.05, torch.sign(found + 1e-9) * 0.05, found)

    def _write_attention(self, layer: Layer, number: int, state: Tensor) -> None:
        source, reading, length = self.shape.layers[number], self._reading(state), self._median(self._length(state))
        for name, projection in (("query", layer.q_proj), ("key", layer.k_proj), ("value", layer.v_proj)):
            found = self._of(source, f"attention.self.{name}.weight") @ reading
            found[:, self.constant] += self._of(source, f"attention.self.{name}.bias") * length
            if name == "query":
                found *= math.sqrt(self.shape.head / (self.size // self.shape.heads))
            weight = projection.weight.view(self.shape.heads, self.shape.head, -1)
            weight.normal_(std=0.02)
            if name == "value":
                weight.zero_()
            weight[:, self.held] = found.view(self.shape.heads, len(self.held), -1)
        scale = self.scale if number == 0 else self.following
        output = layer.o_proj.weight.view(self.shape.width, self.shape.heads, self.shape.head).zero_()
        wanted = self._of(source, "attention.output.dense.weight") / scale[:, None]
        output[: self.size, :, self.held] = wanted.view(self.size, self.shape.heads, len(self.held))
        self.scale, self.offset = scale, torch.zeros(self.size)
        self._pass_norm(source, "attention.output.LayerNorm.")

    def _pass_norm(self, source: int, name: str) -> None:
        self.gain, self.bias = self._of(source, name + "weight"), self._of(source, name + "bias")

    def _write_neurons(self, layer: Layer, number: int, state: Tensor) -> Tensor:
        source, reading = self.shape.layers[number], self._reading(state)
        lengths = self._length(state)
        length, of_cls = self._median(lengths), lengths[:, 0].mean()
        first, second = self._of(source, "intermediate.dense.weight"), self._of(source, "output.dense.weight")
        # The neurons that matter most, and two of them for biases: of all tokens, and of [CLS].
        strength = self._strength(source)
        kept = strength.argsort(descending=True)[: self.shape.neurons]
        gate = first @ reading
        gate[:, self.constant] += self._of(source, "intermediate.dense.bias") * length
        gate[:, self.flag] = -40 * of_cls  # [CLS] has a neuron of its own
        layer.gate_proj.weight.copy_(gate[kept] * 1.702)
        layer.gate_proj.weight[:, self.flag] = -40 * of_cls
        layer.up_proj.weight.zero_()[:, self.constant] = length / 1.702
        following = self._next_scale(state)
        layer.down_proj.weight.zero_()[: self.size] = second[:, kept] / following[:, None]
        loud = functional.silu(torch.tensor(8.0))
        for neuron, dimension, size in ((-1, self.constant, length), (-2, self.flag, of_cls)):
            layer.gate_proj.weight[neuron] = 0
            layer.gate_proj.weight[neuron, dimension] = 8 * size
            layer.up_proj.weight[neuron] = 0
            layer.up_proj.weight[neuron, dimension] = size / loud
            layer.down_proj.weight[:, neuron] = 0
        added = self._of(source, "output.dense.bias") + self.bias
        layer.down_proj.weight[: self.size, -1] = added / following
        after = state + layer.transformed(state)
        self.scale = following
        self._correct_cls(layer, source, after)
        self._pass_norm(source, "output.LayerNorm.")
        if number + 1 < len(self.shape.layers):
            after = state + layer.transformed(state)
            self.following = self._next_scale(after)
            bias = self._of(self.shape.layers[number + 1], "attention.output.dense.bias")
            extra = (self.bias + bias) / self.following
            self.offset = extra * self.scale
            layer.down_proj.weight[: self.size, -1] += extra
        return state + layer.transformed(state)

    def _strength(self, source: int) -> Tensor:
        """How much each neuron adds, on average over the texts, ``(neurons,)``."""
        hidden = self.states[source]  # before attention, which is near enough
        inner = functional.gelu(
            functional.linear(
                hidden, self._of(source, "intermediate.dense.weight"), self._of(source, "intermediate.dense.bias")
            )
        )
        return inner[self.read].pow(2).mean(0).sqrt() * self._of(source, "output.dense.weight").norm(dim=0)

    def _correct_cls(self, layer: Layer, source: int, after: Tensor) -> None:
        """Let the neuron of [CLS] make its state the teacher's on average, at the usual length."""
        norm = "output.LayerNorm."
        gain, bias = self._of(source, norm + "weight"), self._of(source, norm + "bias")
        usual = self._median((after[..., : self.size] * self.scale @ self.centred).pow(2).mean(-1).sqrt())
        wanted = (self.states[source + 1][:, 0] - bias) / torch.where(gain.abs() < 0.02, torch.ones(()), gain)
        layer.down_proj.weight[: self.size, -2] = usual * wanted.mean(0) / self.scale - after[:, 0, : self.size].mean(0)
