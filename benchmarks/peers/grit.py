"""grit-mlx, for ``benchmarks/peers.py``."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from worker import Stopwatch, serve

from grit_mlx import GritLM


class Grit:
    def load(self, model: str, gguf: str, threads: int) -> dict[str, Any]:
        # Causal, as the peers are: with these weights the vectors are then the same.
        self.model = GritLM(model, attn="cccc", pooling_method="mean", normalized=True)
        self.model.engine_tokenizer._eos_token_ids = set()  # answers of one length
        return {"versions": {name: version(name) for name in ("grit-mlx", "mlx", "mlx-lm", "numpy")}}

    def embed(self, texts: list[str]) -> dict[str, Any]:
        return {"vectors": self.model.encode(texts).tolist()}

    def prompt(self, tokens: list[int], count: int) -> dict[str, Any]:
        return self._answer(tokens, count, None)

    def chats(self, prompts: list[list[int]], count: int) -> dict[str, Any]:
        return {"texts": self.model.generate_batch(prompts, max_tokens=count)}

    def remember(self, document: str, tokens: list[int]) -> dict[str, Any]:
        self.cache = self.model.encode(document, get_cache=True, max_length=len(tokens) + 8)[1]
        return {"tokens": self.cache[0].offset}

    def ask(self, question: list[int], count: int) -> dict[str, Any]:
        return self._answer(question, count, self.cache)

    def _answer(self, tokens: list[int], count: int, cache: Any) -> dict[str, Any]:
        watch, first, text = Stopwatch(), None, ""
        for response in self.model.stream_responses(tokens, max_tokens=count, cache=cache):
            first = first or watch.read()
            text += response.text
        return {"first": first, "text": text}


if __name__ == "__main__":
    serve(Grit())
