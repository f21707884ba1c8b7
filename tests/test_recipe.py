"""recipes/grit-tiny: the student in PyTorch is the Mistral that is shipped, and learns from its teacher."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.model import hub

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "grit-tiny"
TEXTS = ["A keel keeps a ship upright.", "why?", "The yeast in dough eats sugar and breathes out carbon dioxide."]


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """Imports a module of the recipe, which stands in no package."""
    pytest.importorskip("torch", reason="needs PyTorch: make peft")
    before = set(sys.modules)
    sys.path.insert(0, str(RECIPE))
    yield importlib.import_module
    sys.path.remove(str(RECIPE))
    for name in set(sys.modules) - before:
        if (RECIPE / f"{name}.py").exists():
            del sys.modules[name]


def _folder() -> Path:
    found = hub.embedded_model()
    assert found is not None
    return found


def test_the_student_is_the_mistral_that_is_shipped(recipe: Any, tmp_path: Path) -> None:
    """With random weights, one vector in both; with an instruction, whose tokens are not pooled."""
    import torch
    from safetensors.torch import save_file

    student = recipe("student")
    torch.manual_seed(0)
    shape = student.Shape(layers=(0, 1), teacher=32, width=48, heads=3, head=16, neurons=64)
    model = student.Student(shape)
    for value in model.parameters():
        torch.nn.init.normal_(value, mean=float(value.ndim == 1), std=0.2)
    save_file({name: value.contiguous() for name, value in model.weights().items()}, tmp_path / "model.safetensors")
    projection = model.projection.weight.detach().contiguous()
    save_file({"weight": projection}, tmp_path / "projection.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(shape.config()))
    for name in ("tokenizer.json", "tokenizer_config.json", "grit.json"):
        shutil.copyfile(_folder() / name, tmp_path / name)
    grit = GritLM(tmp_path, dtype="float32")
    for role, before in (("document", "<|embed|>"), ("query", f"<|user|>{grit.settings.query_instruction}<|embed|>")):
        prefix = grit.tokenizer.encode(before)
        rows = [np.array(grit.tokenizer.encode(text, add_special_tokens=False)) for text in TEXTS]
        tokens = recipe("distil").padded(rows, prefix, [], "cpu")
        with torch.no_grad():
            expected = model(*tokens).numpy()
        assert np.abs(grit.encode(TEXTS, role=role) - expected).max() < 1e-5


def test_the_student_begins_as_its_teacher(recipe: Any) -> None:
    import torch
    from transformers import BertConfig, BertModel

    student = recipe("student")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 3, "intermediate_size": 96}
    teacher = BertModel(BertConfig(vocab_size=200, initializer_range=0.1, **sizes), add_pooling_layer=False).eval()
    shape = student.Shape(layers=(0, 1), teacher=48, width=64, heads=3, head=24, neurons=96, vocabulary=200)
    rows = [np.random.default_rng(i).integers(104, 200, 12 + i) for i in range(20)]
    tokens, own, read = recipe("distil").padded(rows, [student.CLS, student.EMBED], [], "cpu")
    begun = student.Beginning(teacher, shape, tokens, read).student()
    with torch.no_grad():
        ours = begun(tokens, own, read)
        random = student.Student(shape)(tokens, own, read)
        theirs = teacher(input_ids=tokens, attention_mask=read.long()).last_hidden_state
        theirs = torch.nn.functional.normalize((theirs * own[..., None]).sum(1), dim=-1)
    near = (ours * theirs).sum(1).mean()
    assert near > 0.6 and near > (random * theirs).sum(1).mean() + 0.5, near


def test_what_the_student_learns(recipe: Any) -> None:
    """Nothing, where it is its teacher; a pair's other passages count as wrong unless they are the same."""
    import torch

    distil = recipe("distil")
    vectors = torch.nn.functional.normalize(torch.eye(4, 16), dim=-1)
    rows = [np.arange(4)] * 4
    batch = distil.Batch(rows, rows, True, None, np.arange(4))
    found = distil.losses((vectors, vectors), (vectors, vectors), batch)
    assert abs(float(found["cosine"])) < 1e-6 and abs(float(found["similarities"])) < 1e-4
    assert float(found["pairs"]) < 1e-4
    swapped = vectors[[1, 0, 2, 3]]
    assert float(distil.losses((vectors, swapped), (vectors, vectors), batch)["pairs"]) > 5
    same = distil.Batch(rows, rows, True, None, np.array([7, 7, 2, 3]))
    apart = torch.nn.functional.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    one, other = (distil.losses((vectors, vectors), (vectors, apart), each)["pairs"] for each in (batch, same))
    assert float(other) <= float(one)


def test_batches_hold_pairs_and_spans(recipe: Any) -> None:
    distil = recipe("distil")
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 300, 400)
    starts = np.cumsum([0, *lengths])
    ids = np.arange(starts[-1]) % 30_000
    pairs = np.array([(source, 2 * i, 2 * i + 1) for i in range(200) for source in [i // 40]])
    texts = distil.Texts(ids, starts, pairs, np.arange(5), np.ones(5, dtype=np.float32))
    kinds = set()
    for _ in range(40):
        batch = distil.Batches(texts, [5, 6], 4096, seed=int(rng.integers(1000))).draw()
        kinds.add((batch.pairs, batch.instruction is None))
        assert len(batch.left) == len(batch.right) == len(batch.keys)
        for left, right in zip(batch.left, batch.right, strict=True):
            assert 0 < len(left) <= distil.QUERY and 0 < len(right) <= max(distil.WINDOWS)
            if not batch.pairs:
                assert " ".join(map(str, left)) in " ".join(map(str, right))
    assert kinds == {(True, True), (True, False), (False, True), (False, False)}


def test_its_tokenizer_reads_markers_as_one_token() -> None:
    tokenizer = GritLM().tokenizer
    read = [tokenizer.encode(text) for text in ("a keel", "<|embed|>\na keel", "<|user|>\nwhy\n<|embed|>\na keel")]
    assert all(one[0] == tokenizer.bos_token_id and one[-2:] == read[0][-2:] for one in read)
    assert [len(one) for one in read] == [3, 4, 6]
    assert tokenizer.encode("A  KEEL") == read[0], "neither case nor blanks matter"
