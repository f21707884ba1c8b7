"""What the server has done, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from grit_mlx.server.hosting import Host

__all__ = ["CONTENT_TYPE", "metrics"]

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_COUNTED: Final = {
    "texts": "Texts embedded.",
    "embedding_requests": "Requests for embeddings.",
    "embedding_batches": "Batches of embeddings computed.",
    "embedding_tokens": "Tokens embedded.",
    "answers": "Answers begun.",
    "prompt_tokens": "Tokens of prompts.",
    "reused_tokens": "Tokens of prompts that were not read again.",
    "written_tokens": "Tokens generated.",
}


class _Counts(Collector):
    """Read when they are asked for."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Everything, as it is now."""
        engine = self._host.engine
        for name, said in _COUNTED.items():
            yield CounterMetricFamily(f"grit_{name}", said, value=getattr(engine.counts, name))
        yield CounterMetricFamily("grit_refused_requests", "Requests that found no place.", value=self._host.refused)
        yield GaugeMetricFamily("grit_requests", "Requests that have a place now.", value=self._host.requests)
        yield GaugeMetricFamily("grit_engine_jobs", "What the engine computes now.", value=engine.active)
        bytes_held = engine.prefixes.nbytes
        yield GaugeMetricFamily("grit_prompt_memory_bytes", "Memory of earlier prompts.", value=bytes_held)
        loaded = GaugeMetricFamily("grit_model_loaded", "Whether a model is in memory.", labels=["model"])
        for name, model in self._host.models.items():
            loaded.add_metric([name], float(model.is_loaded))
        yield loaded


def metrics(host: Host) -> bytes:
    """Everything in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Counts(host))
    return generate_latest(registry)
