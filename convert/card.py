"""The model card of a converted model, and uploading it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grit_mlx.convert.reading import Source
from grit_mlx.errors import DownloadError, first_line
from grit_mlx.evaluation.drift import Drift

__all__ = ["card_text", "upload", "write_card"]

logger = logging.getLogger("grit_mlx")

_SNIPPET = """```python
from grit_mlx import GritLM

model = GritLM("{name}")
vectors = model.encode_corpus(["A keel keeps a boat upright."])       # bidirectional attention
queries = model.encode_queries(["what keeps a boat upright?"])
print(queries @ vectors.T)
{generate}```
"""
_GENERATE = 'print(model.generate("What keeps a boat upright?"))                   # causal attention, same weights\n'
_MLX_LM = """It is an ordinary mlx-lm folder as well (for generating only):

```bash
mlx_lm.generate --model {name} --prompt "What keeps a boat upright?"
```
"""


def write_card(source: Source, folder: Path, name: str, about: Mapping[str, Any], drift: Drift | None) -> None:
    """Write ``README.md`` of the model ``name`` into a folder, with the licence and languages of the source's card."""
    kept = _kept_metadata(source.folder)
    text = card_text(name, source.name, about, drift, kept)
    (folder / "README.md").write_text(text, encoding="utf-8")


def card_text(
    name: str, base_model: str, about: Mapping[str, Any], drift: Drift | None, kept: Mapping[str, Any]
) -> str:
    """A model card.

    Args:
        name: of the model; the folder's or the hub id.
        base_model: hub id or folder's name of the source.
        about: as in ``grit.json``.
        drift: from the source; None if it was not measured.
        kept: metadata of the source's card that is taken over.
    """
    from huggingface_hub import ModelCardData

    tags = list(dict.fromkeys([*kept.get("tags", ()), "mlx", "grit", "feature-extraction", "text-generation"]))
    data = ModelCardData(
        **{key: value for key, value in kept.items() if key != "tags"},
        library_name="mlx",
        pipeline_tag="text-generation",
        base_model=base_model if "/" in base_model else None,
        tags=tags,
    )
    embeds_only = "head" in about
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {name}\n",
        f"[{base_model}](https://huggingface.co/{base_model})" if "/" in base_model else f"`{base_model}`",
        f"for MLX, converted with {about['made_with'].partition(',')[0]}: {_count(about['parameters'])} parameters at "
        f"{about['bits_per_weight']:.2f} bits each.\n",
        _SNIPPET.format(name=name, generate="" if embeds_only else _GENERATE),
        "" if embeds_only else _MLX_LM.format(name=name),
        _tables(about, drift),
    ]
    return "\n".join(part for part in parts if part)


def upload(folder: Path, repository: str) -> None:
    """Upload a converted folder to the hub.

    Raises:
        DownloadError: the hub did not take it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo_id=repository, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repository)
    except Exception as error:  # the hub's client lets errors of its HTTP library through
        raise DownloadError(
            f"Uploading {folder} to {repository} failed: {first_line(error)} The folder is complete; upload it with: "
            f"hf upload {repository} {folder}"
        ) from error


def _kept_metadata(folder: Path) -> dict[str, Any]:
    """Licence, languages and tags of the source's card; nothing if it has none or it cannot be read."""
    path = folder / "README.md"
    if not path.exists():
        return {}
    from huggingface_hub import ModelCard

    try:
        data = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # whatever a stranger's YAML does to the parser
        logger.info("The source's model card cannot be read: %s", error)
        return {}
    wanted = ("license", "license_name", "license_link", "language", "datasets", "tags")
    return {key: data[key] for key in wanted if data.get(key)}


def _count(number: int) -> str:
    """Three digits and a unit: 7.24 B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _tables(about: Mapping[str, Any], drift: Drift | None) -> str:
    lines = ["## How it was made\n", "| | |", "|---|---|"]
    if "recipe" in about:
        lines.append(f"| quantisation | {about['recipe']} |")
    if "adapter" in about:
        lines.append(f"| adapter fused into the weights | {about['adapter']} |")
    share = ", ".join(f"{_count(count)} at {bits}" for bits, count in about["parameters_by_bits"].items())
    lines.append(f"| parameters by bits | {share} |")
    lines.append(f"| made with | {about['made_with']} |")
    if drift is None:
        return "\n".join([*lines, "\nThe drift from the source was not measured.\n"])
    lines += [f"\n## Drift from the source, on {drift.texts} texts\n", "| | |", "|---|---|"]
    lines += [f"| {label} | {value} |" for label, value in drift.rows()]
    return "\n".join([*lines, ""])
