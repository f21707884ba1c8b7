"""``grit generate``: an answer to one prompt."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grit_mlx.cli import console, launch, options
from grit_mlx.cli.loader import load_model, model_name
from grit_mlx.cli.options import Use
from grit_mlx.cli.warm import ServerUse
from grit_mlx.cli.wording import size_of
from grit_mlx.errors import ArgumentError, DocumentError, unreadable
from grit_mlx.model.options import GenerationOptions, ModelChoice, Sharding
from grit_mlx.text.options import ReadingOptions
from grit_mlx.text.reading import read_lines, read_texts
from grit_mlx.text.splitting import STDIN, split_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlx_lm.generate import GenerationResponse


__all__ = ["EXAMPLES", "Generated", "generate", "show_piece", "written"]

EXAMPLES = """
Examples:
  grit generate "Write a haiku about rain."
  grit generate "Summarise this." README.md
  git diff | grit generate - --system "Write a commit message for this diff."
  grit generate "Name a colour." --temperature 1 --seed 7 --json
  grit generate "Describe Rome." --schema city.json
"""


@dataclass(frozen=True)
class Generated:
    """What was generated, and how fast."""

    text: str
    finish_reason: str | None  # "stop" or "length"; None if it was stopped
    prompt_tokens: int  # without those that a cache held
    generated_tokens: int
    seconds_to_first_token: float
    prompt_tokens_per_second: float
    generated_tokens_per_second: float
    peak_memory_bytes: int

    def timings(self) -> str:
        """The numbers in words."""
        return (
            f"prompt: {self.prompt_tokens:,} tokens, {self.prompt_tokens_per_second:,.1f} per second; "
            f"answer: {self.generated_tokens:,} tokens, {self.generated_tokens_per_second:,.1f} per second, the first "
            f"after {self.seconds_to_first_token:.2f} s; peak memory: {size_of(self.peak_memory_bytes)}"
        )


@options.command
def generate(
    *,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt; - reads it from stdin.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Files whose text follows the prompt; - reads stdin."),
    ] = None,
    system: options.System = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            rich_help_panel=options.INPUT,
            help="Use the prompt as it is, without the chat format; special tokens in it are obeyed.",
        ),
    ] = False,
    schema: Annotated[
        str | None,
        typer.Option(
            "--schema",
            metavar="FILE",
            rich_help_panel="Sampling",
            help="Answer in JSON of this JSON schema: a file, or the schema itself.",
        ),
    ] = None,
    sampling: GenerationOptions,
    model: Annotated[ModelChoice, Use(without=("pooling", "attn"))],
    server: ServerUse,
    sharding: Annotated[Sharding, Use(helps={"shard": launch.SHARD})],
    json_output: Annotated[
        bool, typer.Option("--json", rich_help_panel=options.OUTPUT, help="Print the answer and its timings as JSON.")
    ] = False,
) -> None:
    """Answer a prompt."""
    if [prompt, *(files or ())].count(STDIN) > 1:
        raise ArgumentError("Standard input (-) can be read only once.")
    if STDIN in [prompt, *(files or ())]:
        launch.refuse_stdin()
    prompt = _from_stdin() if prompt == STDIN else prompt
    if not prompt.strip():
        raise ArgumentError("The prompt is empty.")
    prompt = "\n\n".join([prompt, *map(_text_of, files or ())])
    if raw and system is not None:
        raise typer.BadParameter("A raw prompt has no system message: put it into the prompt.", param_hint="--system")
    if schema is not None:
        sampling = replace(sampling, schema=_schema(schema))
    grit = load_model(model, mode="generative", server=server, split=launch.split(sharding))
    messages = [{"role": "system", "content": system}] if system else []
    given = prompt if raw else [*messages, {"role": "user", "content": prompt}]
    responses = grit.stream_responses(given, raw=raw, **asdict(sampling))
    answer = written(responses, (lambda _: None) if json_output else show_piece)
    if json_output:
        console.write(console.dumps({"model": model_name(model.model), **asdict(answer)}))
        return
    console.write("")
    if console.verbose():
        console.note(answer.timings())
    if console.stdin_holds_text():
        console.note("standard input was not read; to put its text after the prompt: grit generate PROMPT -")
    if answer.finish_reason == "length":
        console.note(f"stopped after {answer.generated_tokens} tokens; --max-tokens allows more")


def _text_of(name: str) -> str:
    """All of a file's text."""
    if name == STDIN:
        return _from_stdin()
    return "\n\n".join(text.text for text in read_texts(name, ReadingOptions(by="file")))


def _schema(given: str) -> str:
    """The text of a schema that is given as a file or as itself."""
    if given.lstrip().startswith("{"):
        return given
    try:
        return Path(given).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(unreadable(given, error), path=given) from error


def _from_stdin() -> str:
    return next((text.text for text in split_file(read_lines(STDIN))), "")


def show_piece(text: str) -> None:
    """Write a piece of an answer and flush it; on a terminal its control characters are escaped."""
    if text:
        console.write(console.visible(text, keep="\n\t") if console.stdout_is_terminal() else text, end="")
        console.flush()


def written(
    responses: Iterator[GenerationResponse], show: Callable[[str], None], *, stopped: Callable[[], bool] = lambda: False
) -> Generated:
    """Take an answer piece by piece.

    Args:
        responses: of ``GritLM.stream_responses``.
        show: called with each piece.
        stopped: asked after each piece whether to stop.
    """
    text, started = "", time.perf_counter()
    seconds_to_first_token = 0.0
    for response in responses:  # at least one
        seconds_to_first_token = seconds_to_first_token or time.perf_counter() - started
        text += response.text
        show(response.text)
        if stopped():
            break
    return Generated(
        text=text,
        finish_reason=response.finish_reason,
        prompt_tokens=response.prompt_tokens,
        generated_tokens=response.generation_tokens,
        seconds_to_first_token=round(seconds_to_first_token, 4),
        prompt_tokens_per_second=round(response.prompt_tps, 2),
        generated_tokens_per_second=round(response.generation_tps, 2),
        peak_memory_bytes=int(response.peak_memory * 1e9),
    )
