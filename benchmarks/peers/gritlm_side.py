"""The official gritlm package on PyTorch, for ``benchmarks/peers.py``."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from gritlm import GritLM
from worker import Stopwatch, serve


class Official:
    def load(self, model: str, gguf: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        # Causal: only GritLM's own modelling code embeds bidirectionally.
        self.model = GritLM(model, mode="unified", attn="cccc", torch_dtype=torch.float32)
        self.tokenizer = self.model.tokenizer
        return {"versions": {name: version(name) for name in ("gritlm", "torch", "transformers")}}

    def embed(self, texts: list[str]) -> dict[str, Any]:
        return {"vectors": self.model.encode(texts).tolist()}

    def prompt(self, tokens: list[int], count: int) -> dict[str, Any]:
        return self._answer(torch.tensor([tokens]), count, None)

    def chats(self, prompts: list[list[int]], count: int) -> dict[str, Any]:
        ids = torch.tensor(prompts)
        found = self._generate(ids, count, None)
        return {"texts": self.tokenizer.batch_decode(found[:, ids.shape[1] :])}

    def remember(self, document: str, tokens: list[int]) -> dict[str, Any]:
        with torch.no_grad():
            self.cache = self.model.model(torch.tensor([tokens]), use_cache=True, logits_to_keep=1).past_key_values
        self.tokens = tokens
        return {"tokens": len(tokens)}

    def ask(self, question: list[int], count: int) -> dict[str, Any]:
        import copy

        return self._answer(torch.tensor([[*self.tokens, *question]]), count, copy.deepcopy(self.cache))

    def _answer(self, ids: Any, count: int, cache: Any) -> dict[str, Any]:
        watch = Stopwatch()
        first: dict[str, float] = {}

        class Streamer:
            calls = 0

            def put(self, _value: Any) -> None:  # the prompt, then each token
                self.calls += 1
                if self.calls == 2:
                    first.update(watch.read())

            def end(self) -> None:
                pass

        found = self._generate(ids, count, cache, streamer=Streamer())
        return {"first": first, "text": self.tokenizer.decode(found[0, ids.shape[1] :])}

    def _generate(self, ids: Any, count: int, cache: Any, **options: Any) -> Any:
        with torch.no_grad():
            return self.model.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                min_new_tokens=count,
                max_new_tokens=count,
                do_sample=False,
                **options,
            )


if __name__ == "__main__":
    serve(Official())
