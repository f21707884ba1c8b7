"""sentence-transformers on PyTorch, for ``benchmarks/peers.py``: it embeds, and does not write."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from worker import serve


class SentenceTransformers:
    def load(self, model: str, gguf: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        body = Transformer(model, max_seq_length=512, model_args={"torch_dtype": torch.float32})
        if body.tokenizer.pad_token is None:
            body.tokenizer.pad_token = body.tokenizer.eos_token
        size = body.auto_model.config.hidden_size
        self.model = SentenceTransformer(modules=[body, Pooling(size, pooling_mode="mean"), Normalize()], device="cpu")
        return {"versions": {name: version(name) for name in ("sentence-transformers", "torch", "transformers")}}

    def embed(self, texts: list[str]) -> dict[str, Any]:
        return {"vectors": self.model.encode(texts, show_progress_bar=False).tolist()}


if __name__ == "__main__":
    serve(SentenceTransformers())
