"""A checkpoint on the hub, converted while it is downloaded.

The headers of the weight files come first, by a request for their first bytes: the conversion is planned, checked
and begun before the weights are here. The files follow one after the other, in the order in which they are needed,
each while the one before is converted. They go through the hub's own client and cache, which resumes interrupted
downloads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from grit_mlx.convert.reading import Folder, GgufFile, Source, check_tensors, read_index
from grit_mlx.errors import CheckpointError, DownloadError
from grit_mlx.model import hub
from grit_mlx.model.checkpoint import Tensor, read_header
from grit_mlx.model.gguf.folder import gguf_in
from grit_mlx.model.options import ModelChoice

__all__ = ["Repository", "open_source"]

logger = logging.getLogger("grit_mlx")


def open_source(place: Path | str, choice: ModelChoice) -> Source:
    """A folder or GGUF file; a hub repository; or, if the hub does not answer, what the cache has of one.

    Args:
        place: a folder, a GGUF file, or the id of a repository.
        choice: its revision, and whether its code is wanted.

    Raises:
        ModelError: it cannot be read.
    """
    if isinstance(place, Path):
        file = gguf_in(place)
        return Folder(place) if file is None else GgufFile(file)
    if ":" in place:  # one GGUF file of many
        return open_source(hub.download(place, revision=choice.revision), choice)
    try:
        return Repository(place, revision=choice.revision, code=choice.trust_remote_code)
    except DownloadError:
        return Folder(hub.resolve(replace(choice, model=place)), name=place)
    except NoWeightsError as error:
        file = hub.download_gguf(place, revision=choice.revision)
        if file is None:
            raise CheckpointError(str(error)) from error
        return open_source(file, choice)


class NoWeightsError(CheckpointError):
    """A repository without safetensors."""


class Repository(Source):
    """A hub repository as a source.

    Args:
        name: its id.
        revision: branch, tag or commit; None for the main branch.
        code: fetch Python files too.

    Raises:
        ModelNotFoundError: there is no such repository or revision.
        DownloadError: the hub did not deliver.
        CheckpointError: it holds no safetensors, or broken ones.
    """

    def __init__(self, name: str, *, revision: str | None = None, code: bool = False) -> None:
        self.name = name
        with hub.download_errors(name, revision):
            from huggingface_hub import HfApi, snapshot_download

            api = HfApi()
            info = api.model_info(name, revision=revision, files_metadata=True)
            self._revision = str(info.sha)
            sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
            self._weights = sorted(file for file in sizes if fnmatch(file, "model*.safetensors"))
            if not self._weights:
                raise NoWeightsError(_no_weights(name, sizes))
            small = [pattern for pattern in hub.model_files(code=code) if "model*" not in pattern]
            self.folder = Path(snapshot_download(name, revision=self._revision, allow_patterns=small))
            self.tensors: dict[str, Tensor] = {}
            for file in self._weights:
                header = api.parse_safetensors_file_metadata(name, file, revision=self._revision)
                for key, entry in header.tensors.items():
                    if key in self.tensors:
                        raise CheckpointError(f"{key} is in both {self.tensors[key].file} and {file} of {name}.")
                    start, end = entry.data_offsets
                    self.tensors[key] = Tensor(Path(file), entry.dtype, tuple(entry.shape), end - start, -1)
        check_tensors(self.tensors, read_index(self.folder, name), name)
        self.identity = [name, self._revision]
        self.pending_bytes = sum(sizes[file] for file in self._weights if self._cached(file) is None)
        self._headers: dict[str, dict[str, Tensor]] = {}
        self._files: dict[str, Future[Path]] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="download")

    def expect(self, names: Iterable[str]) -> None:
        """Fetch the files in the order of these tensors."""
        needed = dict.fromkeys(self.tensors[name].file.name for name in names)
        self._weights = [*needed, *(file for file in self._weights if file not in needed)]

    def __enter__(self) -> Repository:
        if self.pending_bytes:
            size = self.pending_bytes / 1e9
            logger.info("%s is converted while %.1f GB of it are downloaded.", self.name, size)
        self._files = {file: self._pool.submit(self._download, file) for file in self._weights}
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def locate(self, name: str) -> Tensor:
        """The tensor, once its file is there; the file must hold what its header promised."""
        promised = self.tensors[name]
        file = promised.file.name
        if file not in self._headers:
            self._headers[file] = read_header(self._files[file].result())
            check_tensors(self._headers[file], {}, self.name)
        tensor = self._headers[file].get(name)
        if tensor is None or (tensor.shape, tensor.dtype) != (promised.shape, promised.dtype):
            raise CheckpointError(
                f"{file} of {self.name} is not what the hub announced: {name} differs. Remove it from the hub's "
                "cache and convert again."
            )
        return tensor

    def files(self) -> list[Path]:
        """All weight files, once they are all there."""
        return [self._files[file].result() for file in self._weights]

    def _download(self, file: str) -> Path:
        from huggingface_hub import hf_hub_download

        with hub.download_errors(self.name, self._revision):
            return Path(hf_hub_download(self.name, file, revision=self._revision))

    def _cached(self, file: str) -> str | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.name, file, revision=self._revision)
        return path if isinstance(path, str) else None


def _no_weights(name: str, files: dict[str, Any]) -> str:
    if any(file.endswith((".bin", ".pth", ".pt")) for file in files):
        return (
            f"{name} holds its weights as pickle files (.bin or .pth), which can run code and are not read. "
            f'Save it as safetensors: AutoModelForCausalLM.from_pretrained("{name}").save_pretrained("folder") '
            "with PyTorch and transformers, then convert the folder."
        )
    return f"{name} holds no model*.safetensors, so it is not a model that can be converted."
