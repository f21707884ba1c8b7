"""mlx-lm, for ``benchmarks/peers.py``: it writes, and does not embed."""

from __future__ import annotations

import copy
from importlib.metadata import version
from typing import Any

import mlx.core as mx
from mlx_lm import batch_generate, load, stream_generate
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from worker import Stopwatch, serve


class MlxLm:
    def load(self, model: str, gguf: str, threads: int) -> dict[str, Any]:
        self.model, self.tokenizer = load(model)
        if mx.default_device() == mx.Device(mx.cpu):
            self.model.set_dtype(mx.float32)  # the fast dtype on a CPU
        mx.eval(self.model.parameters())
        self.tokenizer._eos_token_ids = set()
        return {"versions": {name: version(name) for name in ("mlx", "mlx-lm")}}

    def prompt(self, tokens: list[int], count: int) -> dict[str, Any]:
        return self._answer(tokens, count, None)

    def chats(self, prompts: list[list[int]], count: int) -> dict[str, Any]:
        return {"texts": batch_generate(self.model, self.tokenizer, prompts, max_tokens=count).texts}

    def remember(self, document: str, tokens: list[int]) -> dict[str, Any]:
        self.cache: Any = make_prompt_cache(self.model)
        for _ in generate_step(mx.array(tokens), self.model, max_tokens=0, prompt_cache=self.cache):
            break
        return {"tokens": self.cache[0].offset}

    def ask(self, question: list[int], count: int) -> dict[str, Any]:
        return self._answer(question, count, copy.deepcopy(self.cache))

    def _answer(self, tokens: list[int], count: int, cache: Any) -> dict[str, Any]:
        watch, first, text = Stopwatch(), None, ""
        for response in stream_generate(self.model, self.tokenizer, tokens, max_tokens=count, prompt_cache=cache):
            first = first or watch.read()
            text += response.text
        return {"first": first, "text": text}


if __name__ == "__main__":
    serve(MlxLm())
