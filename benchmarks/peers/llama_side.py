"""llama.cpp by its wheel xllamacpp, for ``benchmarks/peers.py``, on a GGUF file with the same weights in float16."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import xllamacpp
from worker import Stopwatch, serve

CONTEXT = 8192


class Llama:
    def load(self, model: str, gguf: str, threads: int) -> dict[str, Any]:
        self.gguf, self.threads = gguf, threads
        self.servers: dict[str, Any] = {}
        return {"versions": {"xllamacpp": version("xllamacpp")}}

    def embed(self, texts: list[str]) -> dict[str, Any]:
        server = self._server("embed", embedding=True)
        found = server.handle_embeddings({"input": texts})
        return {"vectors": [row["embedding"] for row in found["data"]]}

    def prompt(self, tokens: list[int], count: int) -> dict[str, Any]:
        return self._answer(tokens, count, cached=False)

    def chats(self, prompts: list[list[int]], count: int) -> dict[str, Any]:
        server = self._server("chats", parallel=len(prompts))
        with ThreadPoolExecutor(len(prompts)) as pool:
            found = pool.map(lambda tokens: server.handle_completions(self._request(tokens, count)), prompts)
        return {"texts": [one["choices"][0]["text"] for one in found]}

    def remember(self, document: str, tokens: list[int]) -> dict[str, Any]:
        self.tokens = tokens
        self._answer(tokens, 1, cached=True)
        return {"tokens": len(tokens)}

    def ask(self, question: list[int], count: int) -> dict[str, Any]:
        return self._answer([*self.tokens, *question], count, cached=True)

    def ready(self, task: str, chats: int) -> None:
        """Load the model for a task, which is not part of it."""
        kinds = {"embed": {"embedding": True}, "chats": {"parallel": chats}}
        self._server(task if task in kinds else "prompt", **kinds.get(task, {}))

    def _answer(self, tokens: list[int], count: int, *, cached: bool) -> dict[str, Any]:
        server, first, text = self._server("prompt"), {}, ""
        watch = Stopwatch()

        def hear(piece: Any) -> bool:
            nonlocal text
            for one in piece if isinstance(piece, list) else [piece]:
                for choice in one.get("choices", ()):
                    if choice.get("text"):
                        first.update(first or watch.read())
                        text += choice["text"]
            return False

        server.handle_completions({**self._request(tokens, count), "cache_prompt": cached, "stream": True}, hear)
        return {"first": first or watch.read(), "text": text}

    def _request(self, tokens: list[int], count: int) -> dict[str, Any]:
        return {"prompt": tokens, "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}

    def _server(self, name: str, *, embedding: bool = False, parallel: int = 1) -> Any:
        if name in self.servers:
            return self.servers[name]
        self.servers.clear()  # one in memory at a time
        options = xllamacpp.CommonParams()
        options.model.path = self.gguf
        options.n_ctx = CONTEXT
        options.n_parallel = parallel
        options.verbosity = 0
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = self.threads
        if embedding:
            options.embedding = True
            options.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
            options.n_batch = options.n_ubatch = 2048
        self.servers[name] = xllamacpp.Server(options)
        return self.servers[name]


if __name__ == "__main__":
    serve(Llama())
