"""lm-evaluation-harness (extra ``lm-eval``): its tasks as scores of ours, with mlx-lm's own model class.

The model class differs in three ways from mlx-lm's: it takes a model that is loaded already, adapter included; it
writes chats in GRIT's format where the tokenizer has no template; and a continuation keeps its own tokens where the
tokenizer would merge it with the end of its context, where mlx-lm 0.32 fails with an IndexError.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from grit_mlx.errors import ArgumentError, DownloadError, GritError, first_line
from grit_mlx.evaluation.scoring import Score
from grit_mlx.gritlm import GritLM
from grit_mlx.model.prompts import render_chat
from grit_mlx.optional import optional
from grit_mlx.options import nearest

__all__ = ["SUITES", "HarnessTasks", "score_tasks"]

_LANGUAGES: Final = ("ar", "bn", "en", "fi", "id", "ko", "ru", "sw", "te")

# The generative half of the paper's evaluation, except AlpacaEval, which asks another model.
SUITES: Final[Mapping[str, Sequence[str]]] = {
    "grit": ("mmlu", "gsm8k", "bbh", *(f"tydiqa_goldp_{language}" for language in _LANGUAGES), "humaneval"),
}

# Sequences that are computed at once.
_BATCH: Final = 8


class HarnessTasks:
    """Tasks that are known to the harness.

    Args:
        names: names of tasks or groups; ``"grit"`` for ``SUITES``'s; or .yaml files of tasks.

    Raises:
        ArgumentError: there is no such task; names the nearest.
        DependencyError: lm_eval is not installed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        tasks = optional("lm_eval.tasks", extra="lm-eval", purpose="A task of lm-evaluation-harness")
        files = [Path(name) for name in names if name.endswith((".yaml", ".yml"))]
        if missing := [str(file) for file in files if not file.is_file()]:
            raise ArgumentError(f"There is no file {', '.join(missing)}.")
        folders = sorted({str(file.resolve().parent) for file in files})
        self.manager = tasks.TaskManager(include_path=folders or None)
        self.names: list[str] = []
        for name in names:
            self.names += SUITES.get(name, [_task_of(name) if name.endswith((".yaml", ".yml")) else name])
        known = set(self.manager.all_tasks)
        for name in self.names:
            if name not in known:
                raise ArgumentError(f"lm-evaluation-harness has no task {name!r}: {nearest(name, known)}")


def score_tasks(
    model: GritLM,
    tasks: HarnessTasks,
    *,
    name: str | None = None,
    chat: bool = False,
    shots: int | None = None,
    limit: int | None = None,
    run_code: bool = False,
) -> Iterator[Score]:
    """Run tasks, and yield the scores of each.

    Args:
        model: loaded in a mode that writes.
        tasks: what to run.
        name: what to call the model in the scores; None for its folder's name.
        chat: put questions into the model's chat format.
        shots: number of examples before each question; None for the task's.
        limit: number of questions of each task; None for all.
        run_code: allow tasks that run the code that the model writes.

    Raises:
        DownloadError: a task's data cannot be downloaded.
        ArgumentError: a task runs code and ``run_code`` is False.
        ModeError: the model was loaded for embedding only.
    """
    model.check_generates()
    evaluator = optional("lm_eval.evaluator", extra="lm-eval", purpose="A task of lm-evaluation-harness")
    harness = _harness_model(model, chat=chat)
    for task in tasks.names:
        started = perf_counter()
        try:
            results = evaluator.simple_evaluate(
                harness,
                tasks=[task],
                task_manager=tasks.manager,
                num_fewshot=shots,
                limit=limit,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                confirm_run_unsafe_code=run_code,
                bootstrap_iters=0,
                log_samples=False,
            )
        except GritError:
            raise
        except OSError as error:  # all failures of the hub and of the network
            raise DownloadError(f"The data of {task} cannot be downloaded: {first_line(error)}") from error
        except ValueError as error:
            if "unsafe" not in str(error):
                raise
            raise ArgumentError(f"{task} runs the code that the model writes. Allow it with --run-code.") from error
        values = {**results["results"].get(task, {}), **results.get("groups", {}).get(task, {})}
        scores = {
            metric.removesuffix(",none").replace(",", " "): float(value)
            for metric, value in values.items()
            if isinstance(value, int | float) and "_stderr" not in metric and metric not in {"sample_len", "alias"}
        }
        yield Score(task, "lm-eval", name or model.folder.name, scores, 0, perf_counter() - started)


def _harness_model(model: GritLM, *, chat: bool) -> Any:
    """mlx-lm's model class around a model that is in memory."""
    base = optional("mlx_lm.evaluate", extra="lm-eval", purpose="A task of lm-evaluation-harness").MLXLM

    class Harness(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super(base, self).__init__()  # not mlx-lm's, which loads the model
            self._model, self.tokenizer = model.model, model.engine_tokenizer
            self._max_tokens, self._batch_size = None, _BATCH
            self.use_chat_template = chat
            self._sampler = None

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
            by_context: dict[str, list[int]] = {}
            for number, request in enumerate(requests):
                by_context.setdefault(request.args[0], []).append(number)
            for context, numbers in by_context.items():
                (tokens,) = self._tokenize([context or model.tokenizer.bos_token or "\n"])
                log_probabilities, cache = self._process_prompt(tokens)
                for number in numbers:
                    answer = self._continuation(context, tokens, requests[number].args[1])
                    first, *rest = answer
                    score = log_probabilities[0, first].item()
                    greedy = log_probabilities[0].argmax().item() == first
                    if rest:
                        scores, _, is_greedy = self._score_fn([answer], cache=copy.deepcopy(cache))
                        score += scores.sum().item()
                        greedy = greedy and is_greedy.all().item()
                    found[number] = score, greedy
            return found

        def _continuation(self, context: str, tokens: Sequence[int], continuation: str) -> tuple[int, ...]:
            whole: tuple[int, ...] = self._tokenize([context + continuation])[0]
            if whole[: len(tokens)] == tuple(tokens) and len(whole) > len(tokens):
                return whole[len(tokens) :]
            return tuple(model.tokenizer.encode(continuation, add_special_tokens=False))

        def apply_chat_template(
            self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
        ) -> str:
            rendered = render_chat(model.tokenizer, chat_history, prompt=add_generation_prompt)
            text = "".join(rendered.typed.get(piece, piece) for piece in rendered.pieces)
            if add_generation_prompt:
                return text
            _, end = rendered.answers[-1]  # the last answer goes on: without the token that ends it
            return text[:end].removesuffix(model.tokenizer.eos_token or "")

    return Harness()


def _task_of(path: str) -> str:
    """The name of the task or group that a file describes."""
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key in {"task", "group"} and value.strip():
            return value.strip().strip("'\"")
    raise ArgumentError(f"{path} describes no task: it needs a line 'task: NAME'.")
