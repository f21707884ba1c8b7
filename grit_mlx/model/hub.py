"""From a name to a folder: short names, the Hugging Face hub, the default model, what is on this machine."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grit_mlx.errors import (
    ConfigError,
    DownloadError,
    GritError,
    ModelNotFoundError,
    OutputError,
    TokenizerError,
    first_line,
    unreadable,
    unwritable,
)
from grit_mlx.files.atomic import atomic_write
from grit_mlx.files.folder import discard
from grit_mlx.model.catalogue import converted_name, named
from grit_mlx.model.checkpoint import file_error
from grit_mlx.model.options import ModelChoice

__all__ = [
    "ADAPTER_CONFIG",
    "ALIASES",
    "PROJECTION",
    "VOCABULARY_FILES",
    "LocalModel",
    "default_model",
    "download",
    "download_errors",
    "download_gguf",
    "embedded_model",
    "home",
    "identify",
    "is_adapter",
    "local_models",
    "model_files",
    "models_folder",
    "name_of",
    "ready_made",
    "remove",
    "resolve",
    "set_default_model",
    "settled",
    "tokenizer_files",
    "write_home",
]

logger = logging.getLogger("grit_mlx")

# Short names of the models that this package exists for.
ALIASES = {"gritlm-7b": "GritLM/GritLM-7B", "gritlm-8x7b": "GritLM/GritLM-8x7B"}

# How repositories of converted models are called on the hub, the likeliest first.
READY_MADE = ("mlx-community/{name}-{bits}bit", "{owner}/{name}-{bits}bit-mlx")

# The linear map that vectors go through, in models that have one.
PROJECTION = "projection.safetensors"

# Files that decide into which tokens a text is split; any of them makes a tokenizer.
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tiktoken.model")
_TOKENIZER = (*VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "*.jinja")
# All files of a model: no pickle, no second copy of the weights, and no code.
_MODEL = (
    "*.json",
    "*.txt",
    "*.jinja",
    "*.model",
    "model*.safetensors",
    "*_Dense*/model.safetensors",
    PROJECTION,
    "README.md",
)

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapters.safetensors", "adapter_model.safetensors")  # mlx-lm's and PEFT's

EMBEDDED = Path(__file__).parents[1] / "builtin" / "grit-tiny"

# GGUF files of models; those of vision encoders are none. Large ones are split.
_GGUF = re.compile(r"(?:.*/)?(?!mmproj)[^/]+\.gguf", re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
# With llama.cpp's way of naming one GGUF file of many: owner/name:Q4_K_M.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?::[\w.-]+)?")


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine.

    Attributes:
        name: what to call it: an alias's hub id, or ``"grit-tiny"`` for the embedded model.
        folder: where it is.
        nbytes: its size on disk.
    """

    name: str
    folder: Path
    nbytes: int


def model_files(*, code: bool) -> tuple[str, ...]:
    """Patterns of the files of a model folder or repository; ``code`` adds the Python code that some bring."""
    return (*_MODEL, "*.py") if code else _MODEL


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder's tokenizer.

    Raises:
        TokenizerError: it has none.
    """
    if not any((folder / name).exists() for name in VOCABULARY_FILES):
        raise TokenizerError(f"{folder} has no tokenizer ({', '.join(VOCABULARY_FILES)}). Download the model again.")
    return [path for pattern in _TOKENIZER for path in sorted(folder.glob(pattern))]


def home() -> Path:
    """The folder of this user's choices: ``$GRIT_HOME``, else ``grit-mlx`` in ``$XDG_CONFIG_HOME`` or ``~/.config``."""
    if value := os.environ.get("GRIT_HOME"):
        return Path(value).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "grit-mlx"


def models_folder() -> Path:
    """Where models that were pulled and converted are kept: ``models`` in ``$GRIT_HOME``, else in the user's data."""
    if os.environ.get("GRIT_HOME"):
        return home() / "models"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "grit-mlx" / "models"


def embedded_model() -> Path | None:
    """The folder of the model inside the package; None if this version has none."""
    return EMBEDDED if (EMBEDDED / "config.json").exists() else None


def default_model() -> str | None:
    """The name used if none is given: ``$GRIT_MODEL``, else ``grit models use``'s choice, else the embedded model.

    Raises:
        ConfigError: the file with the choice is damaged.
    """
    if name := os.environ.get("GRIT_MODEL"):
        return name
    if name := _choices().get("model"):
        return str(name)
    embedded = embedded_model()
    return None if embedded is None else str(embedded)


def set_default_model(name: str | None) -> Path:
    """Remember ``name`` as the default; None forgets the choice. Returns the file that holds it.

    A folder stays known after another choice: ``local_models`` has it.

    Raises:
        OutputError: the file cannot be written.
    """
    path = home() / "config.json"
    try:
        folders = _choices().get("folders") or []
    except ConfigError:
        folders = []
    if name is not None and Path(name).is_absolute() and Path(name).parent != models_folder():
        folders = [*(folder for folder in folders if folder != name), name]
    chosen = {key: value for key, value in {"model": name, "folders": folders}.items() if value}
    return write_home(path, chosen)


def write_home(path: Path, contents: Mapping[str, Any]) -> Path:
    """Write one of the JSON files in ``home``, or remove it if there is nothing to keep; returns ``path``.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        if not contents:
            path.unlink(missing_ok=True)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{unwritable(path, error)} Set GRIT_HOME to a folder you can write to.") from error
    with atomic_write(path) as file:
        file.write(json.dumps(contents).encode())
    return path


def _choices() -> dict[str, Any]:
    """What ``grit models use`` remembers: ``model``, and ``folders`` that were chosen so far."""
    path = home() / "config.json"
    try:
        choices = json.loads(path.read_text(encoding="utf-8"))
        return {"model": choices.get("model"), "folders": choices.get("folders")}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{unreadable(path, error)} Remove it, then choose again: grit models use NAME") from error


def settled(choice: ModelChoice) -> ModelChoice:
    """The choice with an adapter's folder in its place, if one was named as the model."""
    name = default_model() if choice.model is None else choice.model
    folder = None if name is None else Path(name).expanduser()
    if choice.adapter is not None or folder is None or not is_adapter(folder):
        return choice
    return replace(choice, model=None, adapter=folder)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a model."""
    weights = any((folder / name).is_file() for name in _ADAPTER_WEIGHTS)
    return weights and (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").exists()


def resolve(choice: ModelChoice) -> Path:
    """The folder of a model, downloaded first if need be.

    Args:
        choice: names a folder, a GGUF file, a hub id (``owner/name``), a short name of ``ALIASES``, or None for the
            default; with ``trust_remote_code`` the repository's Python files are downloaded too.

    Raises:
        ModelNotFoundError: no such folder or repository; the message says what was tried.
        DownloadError: the hub did not deliver.
    """
    name = default_model() if choice.model is None else choice.model
    if name is None:
        raise ModelNotFoundError(
            "No model was named and there is no default yet. Name one (--model gritlm-7b, or a folder), "
            "or choose a default: grit models use gritlm-7b"
        )
    place = identify(name)
    if not isinstance(place, Path):
        place = download(place, revision=choice.revision, code=choice.trust_remote_code)
    return _unpacked(place)


def _unpacked(place: Path) -> Path:
    """The folder itself; of a GGUF file, or of a folder with nothing else, the folder that is made of it once."""
    if place.is_dir() and (any(place.glob("model*.safetensors")) or not any(place.glob("*.gguf"))):
        return place
    from grit_mlx.model.gguf.folder import gguf_in, unpacked  # brings NumPy and tokenizers

    file = gguf_in(place)
    return place if file is None else unpacked(file, models_folder())


def identify(name: str | Path) -> Path | str:
    """The folder or GGUF file, or else the id of the hub repository, that a name stands for; touches no network.

    Raises:
        ModelNotFoundError: it can be neither; the message has the nearest name.
    """
    text = os.fspath(name)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file() and (folder.suffix.lower() == ".gguf" or _begins_as_gguf(folder)):
        return folder
    if folder.is_file():
        raise ModelNotFoundError(file_error(folder))
    if folder.suffix.lower() == ".gguf":
        raise ModelNotFoundError(f"There is no file {folder}.")
    embedded = embedded_model()
    if embedded is not None and text.lower() == embedded.name:
        return embedded
    known = named(text)
    converted = models_folder() / (text.lower() if known is None else converted_name(known[0].repository, known[1]))
    if _NAME.fullmatch(text) and (converted / "config.json").is_file():
        return converted
    if known is not None:
        family, bits = known
        raise ModelNotFoundError(
            f"{converted.name} is not on this machine yet. Get it: grit models pull {family.name} --bits {bits}"
        )
    repository = ALIASES.get(text.lower(), text)
    if _REPOSITORY.fullmatch(repository) and not text.startswith((".", "~", "/")):
        return repository
    if "/" in text or "\\" in text or text.startswith((".", "~")):
        raise ModelNotFoundError(f"There is no folder {folder}.")
    near = difflib.get_close_matches(text.lower(), ALIASES, 1)
    hint = (
        f"Did you mean {near[0]}?" if near else f"Short names are {', '.join(ALIASES)}; hub ids look like owner/name."
    )
    raise ModelNotFoundError(f"There is no folder and no model called {text!r}. {hint}")


def _begins_as_gguf(path: Path) -> bool:
    """Whether a file without the suffix is one, as those that ollama keeps."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def download(repository: str, *, revision: str | None = None, code: bool = False) -> Path:
    """The folder of a hub repository in the local cache, or its GGUF file, downloaded or completed if need be.

    An interrupted download is resumed. ``HF_HUB_OFFLINE=1`` uses only what is in the cache.

    Raises:
        ModelNotFoundError: the hub has no such repository or revision, or it is private.
        DownloadError: gated, offline and not in the cache, or the connection failed.
    """
    with download_errors(repository, revision):
        from huggingface_hub import snapshot_download  # costs 0.3 s, and most models are folders
        from huggingface_hub.errors import LocalEntryNotFoundError

        _check_cache()
        repository, _, quantisation = repository.partition(":")
        if quantisation:
            file = download_gguf(repository, quantisation, revision=revision)
            assert file is not None
            return file
        patterns = list(model_files(code=code))
        try:
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
        except LocalEntryNotFoundError:  # there is no network; the client wants refs/main exactly as it writes it
            if (cached := _cached(repository, revision)) is None:
                raise
            folder = cached
        if folder.name == "snapshots":  # of an empty refs/main
            folder = _cached(repository, revision) or folder
        if any(folder.glob("model*.safetensors")):
            return folder
        return download_gguf(repository, revision=revision) or folder


def download_gguf(repository: str, quantisation: str = "", *, revision: str | None = None) -> Path | None:
    """A GGUF file of a hub repository, the first part if it is split; None if the repository has none.

    Args:
        repository: its id.
        quantisation: the end of the file's name, such as ``"Q4_K_M"``; empty if there is only one.
        revision: branch, tag or commit; None for the main branch.

    Raises:
        ModelNotFoundError: several files, or none, fit.
        DownloadError: as ``download``.
    """
    with download_errors(repository, revision):
        from huggingface_hub import list_repo_files, snapshot_download

        cached = None
        try:
            names = list_repo_files(repository, revision=revision)
        except OSError:
            if (cached := _cached(repository, revision)) is None:
                raise
            names = [path.relative_to(cached).as_posix() for path in cached.rglob("*.gguf")]
        models: dict[str, list[str]] = {}
        for name in sorted(names):
            if _GGUF.fullmatch(name):
                models.setdefault(_PART.sub("", name), []).append(name)
        end = re.compile(rf"(?:.*[-._/])?{re.escape(quantisation)}\.gguf", re.IGNORECASE)
        fitting = [name for name in models if not quantisation or end.fullmatch(name)]
        if not models and not quantisation:
            return None
        if len(fitting) != 1:
            raise ModelNotFoundError(_several(repository, quantisation, sorted(models)))
        parts = models[fitting[0]]
        if cached is not None:
            return cached / parts[0]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=parts)) / parts[0]


def _cached(repository: str, revision: str | None) -> Path | None:
    """The folder of a repository in the hub's cache, whatever of it is there."""
    from huggingface_hub import constants

    return _snapshot(Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}", revision)


def _snapshot(folder: Path, revision: str | None = None) -> Path | None:
    """The revision in a repository's folder of the hub's cache; the newest where ``refs`` names none that is there.

    Caches that were copied by hand often lack ``refs``, or have a line end in it.
    """
    reference, snapshots = folder / "refs" / (revision or "main"), folder / "snapshots"
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision or ""
    if commit and (snapshots / commit).is_dir():
        return snapshots / commit
    if revision is not None:
        return None
    there = [one for one in snapshots.glob("[!.]*") if one.is_dir()]
    return max(there, key=lambda one: one.stat().st_mtime, default=None)


def _several(repository: str, quantisation: str, names: list[str]) -> str:
    """What to say of a repository of several GGUF files, or none that fits."""
    likely = sorted(names, key=lambda name: "q4_k_m" not in name.lower())
    match = (
        re.search(r"[-._]((?:I?Q\d|TQ\d|F16|F32|BF16|MXFP4)\w*)\.gguf$", likely[0], re.IGNORECASE) if names else None
    )
    hint = f" Name one by its end, such as {repository}:{match[1]}" if match else ""
    fits = f", of which not one is {quantisation}" if quantisation else ""
    return f"{repository} holds {len(names)} GGUF models{fits}: {', '.join(names) or 'none'}.{hint}"


def _check_cache() -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    if cache.exists() and not (cache.is_dir() and os.access(cache, os.R_OK | os.X_OK)):
        problem = "permission denied" if cache.is_dir() else "it is a file, not a folder"
        raise DownloadError(
            f"The hub's cache of models, {cache}, cannot be read: {problem}. Set HF_HUB_CACHE to another folder."
        )


def name_of(folder: Path) -> str:
    """What to call the model in a folder: its hub id if it is in the hub's cache, else the folder's name."""
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def ready_made(repository: str, bits: int) -> str | None:
    """The id of a hub repository that holds ``repository`` for MLX at that many bits; None if there is none.

    Raises:
        DownloadError: the hub cannot be asked.
    """
    owner, _, name = repository.partition("/")
    with download_errors(repository):
        from huggingface_hub import repo_exists

        candidates = (pattern.format(owner=owner, name=name, bits=bits) for pattern in READY_MADE)
        return next((candidate for candidate in candidates if repo_exists(candidate)), None)


# The packages whose errors the hub's client lets through; their classes change between versions.
_CLIENTS = {"httpx", "httpx2", "httpcore", "requests", "huggingface_hub"}


# Those of them that mean that there is no network, and not that it broke off.
_NO_CONNECTION = {"ConnectError", "ConnectTimeout", "ProxyError", "OfflineModeIsEnabled", "NewConnectionError"}


@contextmanager
def download_errors(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the hub's client raises into errors that say what to do.

    Raises:
        ModelNotFoundError: the hub has no such repository or revision, or it is private.
        DownloadError: gated, offline and not in the cache, or the connection failed.
    """
    from huggingface_hub import errors

    try:
        yield
    except GritError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repository} is gated: accept its terms on its page on the hub, then log in with: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"The hub has no model {repository!r}, or it is private. Check the spelling; for a private one log in "
            "with: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"{repository} has no revision {revision!r}. Name a branch, a tag or a commit."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(repository) from error
    except errors.HFValidationError as error:
        raise ModelNotFoundError(f"{repository!r} is not a valid hub id: they look like owner/name.") from error
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        if any(kind.__name__ in _NO_CONNECTION for kind in type(error).__mro__):
            raise _unreachable(repository) from error
        raise DownloadError(
            f"Downloading {repository} failed: {first_line(error)} Run it again to resume the download."
        ) from error


def _unreachable(repository: str) -> DownloadError:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
    return DownloadError(
        f"{repository} is not on this machine and {why}. Connect to the network"
        f"{' and unset HF_HUB_OFFLINE' if offline else ''}, or name a model folder."
    )


def _remembered() -> list[str]:
    try:
        return list(map(str, _choices().get("folders") or []))
    except ConfigError:
        return []


def local_models() -> Iterator[LocalModel]:
    """Models on this machine: the embedded one, converted ones, folders that were chosen, those in the hub's cache."""
    converted = [config.parent for config in sorted(models_folder().glob("[!.]*/config.json"))]
    chosen = [Path(folder) for folder in _remembered() if (Path(folder) / "config.json").is_file()]
    for folder in dict.fromkeys(filter(None, [embedded_model(), *converted, *chosen])):
        yield LocalModel(folder.name, folder, sum(file.stat().st_size for file in folder.iterdir() if file.is_file()))
    from huggingface_hub import constants

    try:
        _check_cache()
        repositories = sorted(Path(constants.HF_HUB_CACHE).glob("models--*"), key=lambda one: one.name.lower())
        snapshots = [snapshot for one in repositories if (snapshot := _snapshot(one)) is not None]
    except (OSError, DownloadError) as error:
        logger.warning("%s", first_line(error))
        return
    for folder in snapshots:
        if (folder / "config.json").exists():
            files = {file.resolve() for file in folder.rglob("*") if file.is_file()}
            yield LocalModel(name_of(folder), folder, sum(file.stat().st_size for file in files))


def remove(model: LocalModel) -> None:
    """Delete a model that was pulled or converted on this machine, and forget it as the default.

    The folder disappears by one renaming, so that no half of a model is left if this is interrupted.

    Raises:
        ModelNotFoundError: it is the embedded one, or in a folder of the user's own.
        OutputError: it cannot be deleted.
    """
    if model.folder == embedded_model():
        raise ModelNotFoundError(f"{model.name} is part of grit-mlx and cannot be removed.")
    try:
        if model.folder.parent == models_folder():
            discard(model.folder)
        elif model.folder.parent.name == "snapshots":
            discard(model.folder.parent.parent)
        else:
            raise ModelNotFoundError(f"{model.folder} is a folder of your own: delete it with rm -r.")
    except OSError as error:
        raise OutputError(unwritable(model.folder, error)) from error
    if _choices().get("model") in (model.name, str(model.folder)):
        set_default_model(None)
