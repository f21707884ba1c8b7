"""Words that people bring from other tools: mlx-lm, llm, ollama, llama.cpp, sentence-transformers, ripgrep.

A word that can mean one thing only is understood; one that could mean several gets a sentence that names the command to
type. A command's own words always come first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["COMMANDS", "FLAGS", "HINTS", "FlagError", "flags", "hint", "translated"]

# By group ("" is grit itself): another tool's command -> ours.
COMMANDS: Final[Mapping[str, Mapping[str, str]]] = {
    "": {
        "add": "rag index",
        "ask": "rag ask",
        "complete": "generate",
        "default": "models use",
        "delete": "models remove",
        "download": "models pull",
        "embed-multi": "embed",
        "embeddings": "embed",
        "encode": "embed",
        "evaluate": "eval",
        "fine-tune": "train",
        "finetune": "train",
        "get": "models pull",
        "index": "rag index",
        "info": "models info",
        "ingest": "rag index",
        "install": "models pull",
        "list": "models list",
        "lora": "train",
        "ls": "models list",
        "merge": "fuse",
        "perplexity": "eval",
        "prompt": "generate",
        "pull": "models pull",
        "quantise": "convert -q",
        "quantize": "convert -q",
        "remove": "models remove",
        "rm": "models remove",
        "server": "serve",
        "show": "models info",
        "similar": "search",
        "stats": "rag stats",
        "tune": "train",
        "use": "models use",
        "version": "--version",
        "watch": "rag watch",
    },
    "models": {
        "add": "pull",
        "default": "use",
        "delete": "remove",
        "describe": "info",
        "download": "pull",
        "fetch": "pull",
        "get": "pull",
        "install": "pull",
        "ls": "list",
        "rm": "remove",
        "select": "use",
        "set": "use",
        "set-default": "use",
        "show": "info",
        "uninstall": "remove",
    },
    "rag": {
        "add": "index",
        "answer": "ask",
        "build": "index",
        "check": "verify",
        "create": "index",
        "delete": "remove",
        "find": "ask --sources-only",
        "info": "stats",
        "ingest": "index",
        "list": "stats",
        "ls": "stats",
        "query": "ask",
        "refresh": "index",
        "rm": "remove",
        "search": "ask --sources-only",
        "show": "stats",
        "status": "stats",
        "sync": "index",
        "update": "index",
    },
}

# Commands of other tools that could mean several of ours, or none.
HINTS: Final[Mapping[str, Mapping[str, str]]] = {
    "": {
        "collections": "A store of passages is a folder: grit rag stats --store FOLDER",
        "cp": "A model is a folder: copy it with cp -r; grit models list shows where it is.",
        "create": "To make a model folder: grit convert MODEL. To tune one: grit train --init",
        "keys": "No keys are needed: models run on this machine. For gated ones: hf auth login",
        "logs": "Nothing is logged. To keep a conversation: /save FILE in grit chat",
        "ps": "Models are in memory while grit serve or a command runs; grit models list shows those on disk.",
        "push": "To upload a model: grit convert MODEL --upload-repo OWNER/NAME",
        "query": "To search files: grit search QUERY FOLDER. To ask a store: grit rag ask QUESTION",
        "stop": "Models are in memory while grit serve or a command runs; Ctrl-C stops either.",
        "templates": "To put words before a prompt: grit generate PROMPT --system TEXT",
        "upload": "To upload a model: grit convert MODEL --upload-repo OWNER/NAME",
    },
    "models": {
        "convert": "That is a command of its own: grit convert MODEL",
        "search": "Models are found on huggingface.co; grit models list --available shows those with short names.",
    },
    "rag": {
        "serve": "To ask a store again and again: grit rag chat",
    },
}

_MODEL: Final = ("--model", "MODEL", "NAME")
_TEXT: Final = ("PROMPT", "QUESTION", "QUERY")
_FILES: Final = ("FILE...", "PATH...", "[FILE]...")
_TOKENS: Final = ("--max-tokens",)

# Another tool's flag -> ours, the first that the command has. In capitals: its argument of that name.
FLAGS: Final[Mapping[str, Sequence[str]]] = {
    "--adapter": ("--adapter-path", "ADAPTER"),
    "--adapter-file": ("--adapter", "ADAPTER"),
    "--adapter-path": ("--adapter", "ADAPTER"),
    "--bits": ("--q-bits",),
    "--collection": ("--store",),
    "--content": ("TEXT TEXT...", "FILE..."),
    "--database": ("--store",),
    "--db": ("--store",),
    "--file": _FILES,
    "--glob": ("--include",),
    "--group-size": ("--q-group-size",),
    "--hf-path": _MODEL,
    "--hf-repo": _MODEL,
    "--ignore-chat-template": ("--raw",),
    "--input": _FILES,
    "--iterations": ("--iters",),
    "--k": ("--top", "--top-k"),
    "--limit": ("--top",),
    "--lora": ("--adapter", "ADAPTER"),
    "--lora-dropout": ("--lora-parameters=dropout",),
    "--lora-layers": ("--num-layers",),
    "--lora-rank": ("--lora-parameters=rank",),
    "--lora-scale": ("--lora-parameters=scale",),
    "--lr": ("--learning-rate",),
    "--max-new-tokens": _TOKENS,
    "--max-results": ("--top",),
    "--max-seq-length": ("--max-length",),
    "--max-steps": ("--iters",),
    "--min-similarity": ("--min-score",),
    "--mlx-path": ("--output",),
    "--model": ("MODEL", "NAME"),
    "--model-id": _MODEL,
    "--model-name": _MODEL,
    "--model-name-or-path": _MODEL,
    "--model-path": _MODEL,
    "--n-predict": _TOKENS,
    "--n-results": ("--top",),
    "--num-iters": ("--iters",),
    "--num-predict": _TOKENS,
    "--num-results": ("--top",),
    "--out": ("--output",),
    "--outfile": ("--output",),
    "--output-dir": ("--output", "--adapter-path"),
    "--output-path": ("--output",),
    "--per-device-train-batch-size": ("--batch-size",),
    "--predict": _TOKENS,
    "--prompt": _TEXT,
    "--q-bits": ("--bits",),
    "--query": ("QUERY", "QUESTION"),
    "--question": ("QUESTION", "PROMPT", "QUERY"),
    "--rank": ("--lora-parameters=rank",),
    "--repeat-penalty": ("--repetition-penalty",),
    "--save-path": ("--output",),
    "--score-threshold": ("--min-score",),
    "--steps": ("--iters",),
    "--stop-sequence": ("--stop",),
    "--stop-sequences": ("--stop",),
    "--system-prompt": ("--system",),
    "--temp": ("--temperature",),
    "--text": ("TEXT TEXT...", "FILE...", *_TEXT),
    "--threshold": ("--min-score",),
    "--top-k": ("--top",),
    "--torch-dtype": ("--model-dtype", "--dtype"),
    "--upload-to": ("--upload-repo",),
    "-f": _FILES,
    "-g": ("--include",),
    "-hf": _MODEL,
    "-i": _FILES,
    "-k": ("--top", "--top-k"),
    "-m": ("MODEL", "NAME"),
    "-n": _TOKENS,
    "-o": ("--output", "--adapter-path"),
    "-p": _TEXT,
    "-s": ("--system",),
    "-sys": ("--system",),
}

# What the commands do in any case; none of these has a value.
_DONE_ANYWAY: Final = frozenset({
    "--conversation", "--interactive", "--recursive", "--stream", "--train", "--use-default-chat-template", "-cnv",
})  # fmt: skip

# Flags that mean nothing here, and why.
_FLAG_HINTS: Final[Mapping[str, str]] = {
    "--ctx-size": "A model's context is as long as its config says: leave it out.",
    "--device": "mlx has one device: leave it out.",
    "--epochs": "Training counts steps: --iters.",
    "--gpu-layers": "All layers are on the GPU: leave it out.",
    "--lora-alpha": "mlx-lm's scale is alpha / rank: --lora-parameters scale=...",
    "--n-gpu-layers": "All layers are on the GPU: leave it out.",
    "--no-stream": "In a pipe the answer is whole: leave it out.",
    "--num-ctx": "A model's context is as long as its config says: leave it out.",
    "--num-train-epochs": "Training counts steps: --iters.",
    "--test": "To score a tuned model: grit eval SET --adapter FOLDER",
    "--threads": "mlx chooses the number of threads: leave it out.",
    "-ngl": "All layers are on the GPU: leave it out.",
}

# Flags that say how many bits where a number follows, as in `-q 4` or ollama's `--quantize q4_K_M`.
_QUANTISE: Final = ("-q", "--quantize", "--quant", "--quantization")
_SHORT: Final = re.compile(r"(-[a-zA-Z])([0-9]+)")
_BITS: Final = re.compile(r"[qQ]?([2-8])(?:bit|[_-]\w+)?")


# Commands


def translated(group: str, args: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    """The arguments with our command in the place of another tool's.

    Args:
        group: ``""``, ``"models"`` or ``"rag"``.
        args: the command's name and what follows it.
        known: the group's own commands.
    """
    word, rest = args[0], list(args[1:])
    if word in known:
        return list(args)
    plain = word.lower().replace("_", "-")
    if plain in known:
        return [plain, *rest]
    if not group and plain == "run":
        return _run(rest)
    if not group and plain == "help":
        return [*rest, "--help"]
    ours = COMMANDS.get(group, {}).get(plain, "").split()
    return [*ours, *rest] if ours else list(args)


def hint(group: str, word: str) -> str | None:
    """What to say of another tool's command that is none of ours."""
    return HINTS.get(group, {}).get(word.lower().replace("_", "-"))


def _run(rest: list[str]) -> list[str]:
    """``run MODEL`` is a chat, ``run MODEL PROMPT`` one answer."""
    if not rest or rest[0].startswith("-"):
        return ["chat", *rest]
    model, *others = rest
    prompted = bool(others) and not others[0].startswith("-")
    return ["generate" if prompted else "chat", *others, "--model", model]


# Flags


class FlagError(ValueError):
    """A flag of another tool that means nothing here; says why."""


@dataclass(frozen=True)
class _Known:
    """A command's own parameters.

    Attributes:
        valued: flags that a value follows.
        plain: those without one.
        arguments: metavars.
    """

    valued: frozenset[str]
    plain: frozenset[str]
    arguments: tuple[str, ...]

    def __contains__(self, name: str) -> bool:
        return name in self.valued or name in self.plain or name in self.arguments


def flags(args: Sequence[str], parameters: Sequence[Any]) -> list[str]:
    """The arguments of a command with its own flags in the place of other tools'.

    Args:
        args: as they were typed.
        parameters: the command's, as click holds them.

    Raises:
        FlagError: one of them means nothing here.
    """
    known = _known(parameters)
    options: list[str] = []
    first: list[str] = []  # what a flag gives that is an argument here
    positional: list[str] = []
    changed = False
    waiting = list(args)
    while waiting:
        token = waiting.pop(0)
        if token == "--":
            positional += waiting
            break
        if not token.startswith("-") or token == "-":
            positional.append(token)
            continue
        if (short := _SHORT.fullmatch(token)) and short[1] not in known.valued:  # -k5
            token, changed = short[1], True
            waiting.insert(0, short[2])
        name, equals, value = token.partition("=")
        if name not in known and (why := _FLAG_HINTS.get(name.replace("_", "-"))):
            raise FlagError(f"There is no {name} here. {why}")
        ours = _ours(name, waiting, known)
        changed |= ours != name
        if ours == "":
            continue
        if ours in known.arguments:
            first += [value] if equals else waiting[:1]
            waiting = waiting if equals else waiting[1:]
            continue
        flag, keyed, key = ours.partition("=")
        if not equals and flag in known.valued and waiting:
            value = waiting.pop(0)
            options += [flag, f"{key}={value}" if keyed else _bits(value, name)]
        else:
            options.append(f"{ours}={value}" if equals else flag)
    if not changed:
        return list(args)
    return [*options, "--", *first, *positional]


def _ours(name: str, following: Sequence[str], known: _Known) -> str:
    """Our flag or argument; empty for what is done anyway; the name itself if it is ours or nobody's."""
    if name in _QUANTISE and following and _BITS.fullmatch(following[0]) and not Path(following[0]).exists():
        return next((flag for flag in ("--bits", "--q-bits") if flag in known), name)
    if name in known:
        return name
    plain = name.replace("_", "-")
    if plain in known:
        return plain
    if plain in _DONE_ANYWAY:
        return ""
    return next((one for one in FLAGS.get(plain, ()) if one.partition("=")[0] in known), name)


def _bits(value: str, name: str) -> str:
    match = _BITS.fullmatch(value) if name in _QUANTISE else None
    return match[1] if match else value


def _known(parameters: Sequence[Any]) -> _Known:
    given = [one for one in parameters if one.param_type_name == "option"]
    return _Known(
        valued=frozenset(_names(one for one in given if not one.is_flag and not one.count)),
        plain=frozenset(_names(one for one in given if one.is_flag or one.count)),
        arguments=tuple(str(one.metavar) for one in parameters if one.param_type_name == "argument"),
    )


def _names(parameters: Iterator[Any]) -> Iterator[str]:
    for one in parameters:
        yield from (*one.opts, *one.secondary_opts)
