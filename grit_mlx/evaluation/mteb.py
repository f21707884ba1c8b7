"""MTEB (extra ``mteb``): a GRIT model as an encoder of its version 2, and its tasks as scores of ours.

::

    import mteb
    from grit_mlx import GritLM
    from grit_mlx.evaluation.mteb import GritEncoder

    mteb.evaluate(GritEncoder(GritLM("gritlm-7b")), mteb.get_tasks(tasks=["NFCorpus"]))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from grit_mlx.errors import ArgumentError, DownloadError, GritError, OutputError, first_line, unwritable
from grit_mlx.evaluation.instructions import instruction_for
from grit_mlx.evaluation.scoring import Score
from grit_mlx.gritlm import GritLM
from grit_mlx.optional import optional
from grit_mlx.options import nearest
from grit_mlx.rag.fingerprint import fingerprint
from grit_mlx.vectors.compression import FloatVectors, cosine, unit

__all__ = ["GritEncoder", "find_tasks", "score_tasks"]


class GritEncoder:
    """A model behind MTEB's ``EncoderProtocol``.

    Each task gets its instruction from E5's table, else from MTEB, else from the model. An empty text has a vector of
    zeros.

    Args:
        model: loaded in mode ``"embedding"`` or ``"unified"``.
        name: what MTEB calls it, as ``OWNER/NAME``; None for ``local/`` and the folder's name.
        instructions: for single tasks by name; they override the table.
        options: of ``GritLM.encode``, such as ``max_length``.
    """

    def __init__(
        self,
        model: GritLM,
        *,
        name: str | None = None,
        instructions: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self._name = name or f"local/{model.folder.name}"
        self._instructions = instructions or {}
        self._options = options or {}

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> FloatVectors:
        """Vectors ``(N, E)`` of all texts of MTEB's batches, whose size does not matter."""
        texts = [str(text) for batch in inputs for text in batch["text"]]
        full = [i for i, text in enumerate(texts) if text.strip()]
        vectors = np.zeros((len(texts), self.model.embedding_size), dtype=np.float32)
        if full:
            options = {"progress": bool(kwargs.get("show_progress_bar")), **self._options}
            instruction = self.instruction(task_metadata, prompt_type)
            vectors[full] = self.model.encode(
                [texts[i] for i in full], role="query", instruction=instruction, **options
            )
        return vectors

    def instruction(self, task: Any, prompt_type: Any = None) -> str:
        """The instruction of a task, without GRIT's markers.

        Args:
            task: MTEB's ``TaskMetadata``.
            prompt_type: its ``PromptType``, or None if all texts are of one kind.
        """
        side = getattr(prompt_type, "value", prompt_type)
        if task.name in self._instructions and side != "document":
            return self._instructions[task.name]
        prompt = getattr(task, "prompt", None)
        proposed = prompt.get("query") if isinstance(prompt, Mapping) else prompt
        used = {"document": side == "document", "settings": self.model.settings, "prompt": proposed}
        return instruction_for(task.name, str(task.type), **used)

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> FloatVectors:
        """Cosines of all pairs, ``(N, M)``."""
        return cosine(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> FloatVectors:
        """Cosines of the first with the first, and so on, ``(N,)``."""
        first, second = (unit(np.asarray(side, dtype=np.float32)) for side in (embeddings1, embeddings2))
        return np.asarray(np.sum(first * second, axis=-1))

    @cached_property
    def revision(self) -> str:
        """What the vectors depend on, as 12 hexadecimal digits: weights, settings, instructions and options."""
        known = fingerprint(self.model)
        used = {key: known[key] for key in known if key not in {"model", "folder", "adapter_folder"}}
        # Not the size of a batch, which changes nothing.
        options = {name: value for name, value in self._options.items() if name not in {"batch_size", "progress"}}
        chosen = asdict(self.model.embedding_options(**options))
        parts = [used, asdict(replace(self.model.settings, about={})), dict(self._instructions), chosen]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]

    @property
    def mteb_model_meta(self) -> Any:
        """What is known of the model, as MTEB's ``ModelMeta``."""
        meta = optional("mteb.models.model_meta", extra="mteb", purpose="The MTEB adapter")
        unknown = (
            "loader release_date languages n_parameters memory_usage_mb license open_weights public_training_code "
            "public_training_data training_datasets"
        )
        return meta.ModelMeta(
            **dict.fromkeys(unknown.split()),
            name=self._name,
            revision=self.revision,
            max_tokens=self.model.settings.max_length,
            embed_dim=self.model.embedding_size,
            framework=["GritLM"],
            similarity_fn_name=meta.ScoringFunction.COSINE,
            use_instructions=True,
        )


def find_tasks(names: Sequence[str]) -> list[Any]:
    """MTEB's tasks of these names.

    Raises:
        ArgumentError: there is no such task; names the nearest.
        DependencyError: mteb is not installed.
    """
    mteb = optional("mteb", extra="mteb", purpose="A task of MTEB")
    found = []
    for name in names:
        try:
            found.append(mteb.get_task(name))
        except (KeyError, ValueError) as error:
            known = {task.metadata.name for task in mteb.get_tasks()}
            raise ArgumentError(f"MTEB has no task {name!r}: {nearest(name, known)}") from error
    return found


def score_tasks(
    encoder: GritEncoder, tasks: Sequence[Any], *, name: str | None = None, results: Path | None = None
) -> Iterator[Score]:
    """Run tasks of MTEB, and yield the main score of each.

    Args:
        encoder: the model.
        tasks: from ``find_tasks``, or tasks of your own.
        name: what to call the model in the scores; None for its folder's name.
        results: a folder for MTEB's own results, ``results/OWNER__NAME/REVISION/TASK.json``, which ``mteb.ResultCache``
            reads; splits that are there, of the same vectors, are not computed again. None to keep nothing.

    Raises:
        DownloadError: a task's data cannot be downloaded.
        DependencyError: mteb is not installed.
        OutputError: the folder cannot be written.
    """
    mteb = optional("mteb", extra="mteb", purpose="A task of MTEB")
    # Not MTEB's usual cache: a score must be that of these weights.
    cache = None if results is None else _cache(mteb, results)
    for task in tasks:
        started = perf_counter()
        try:
            (result,) = mteb.evaluate(encoder, task, cache=cache, show_progress_bar=False).task_results
        except GritError:
            raise
        except OSError as error:  # all failures of the hub and of the network
            reason = first_line(error)
            raise DownloadError(f"The data of {task.metadata.name} cannot be downloaded: {reason}") from error
        metric = str(task.metadata.main_score)
        values = {metric: float(result.get_score())}
        system = encoder.model.folder.name if name is None else name
        yield Score(task.metadata.name, "mteb", system, values, 0, perf_counter() - started)


def _cache(mteb: Any, folder: Path) -> Any:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(unwritable(folder, error)) from error
    return mteb.ResultCache(folder)
