"""What can be chosen when a server starts. One table; see ``grit_mlx.options``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from grit_mlx.errors import ArgumentError, Option
from grit_mlx.options import bytes_of_size, check, option

__all__ = ["RERANKING", "ServeOptions"]

RERANKING: Final = ("likelihood", "cosine")

_ORIGIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s]+/?")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a server answers, and whom.

    Raises:
        ArgumentError: a value out of range.
    """

    heading: ClassVar[str] = "Server"

    models: Sequence[str] = option(
        (),
        "A model folder, a hub id or a short name to serve. Default: what other commands use.",
        flags=("--model", "-m"),
        heading="Model",
        metavar="NAME",
    )
    stores: Sequence[str] = option(
        (),
        "A store of 'grit rag index' to search and to answer from, as the model rag:NAME.",
        flags=("--store",),
        metavar="NAME=FOLDER",
    )
    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 for every network.", metavar="ADDRESS")
    port: int = option(8080, "Port to listen on; 0 for a free one.", minimum=0, maximum=65535, metavar="PORT")
    api_key_file: Path | None = option(
        None, "File with one key a line; requests need one of them. Default: none.", metavar="FILE"
    )
    max_queue: int = option(
        256, "Maximum number of requests at a time; more are told to try again.", minimum=1, metavar="COUNT"
    )
    idle: float = option(
        0.0,
        "Unload a model that was not used for this long; the next request loads it again. 0 keeps it.",
        minimum=0,
        metavar="MINUTES",
    )
    origins: Sequence[str] = option(
        (),
        "Allow pages of this address to use the server from a browser, such as https://example.org; * may stand for "
        "a port or a name.",
        flags=("--origin",),
        metavar="URL",
    )
    rerank: str | None = option(
        None,
        "Order documents by how likely the model finds the query after each, or by cosine, which is faster. Default: "
        "likelihood, or cosine with a model that only embeds.",
        choices=RERANKING,
    )
    prompt_memory: int = option(
        1_000_000_000,
        "Maximum memory for what was computed of earlier prompts, such as 4GB.",
        minimum=0,
        parse=bytes_of_size,
        metavar="SIZE",
    )
    token_ids: bool = option(
        False, "Embed token ids, taken as the model's own. Otherwise they are refused: most clients send OpenAI's."
    )

    def __post_init__(self) -> None:
        check(self)
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                message = f" must be a page's address without a path, such as https://example.org, not {origin!r:.100}."
                raise ArgumentError(Option("origins"), message)
