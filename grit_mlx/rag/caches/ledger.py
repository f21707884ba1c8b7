"""The list of the cached documents that machines share in a bucket, as a value: what each step makes of it.

Nothing here reads or writes. ``bucket`` commits these steps one after another, so each is seen by all or by none.
Objects appear and vanish outside of such a step; these rules keep them within the budget nevertheless:

- Room is reserved before an object is written, and what has to go for it is *doomed* in the same step: no longer used,
  and still there.
- Nobody writes an object before all that were doomed when its room was reserved are deleted.

So whatever is in the bucket was counted when the last of the rooms that are being filled was reserved. A process that
is killed between two steps leaves a document that is being written, which counts until it is *abandoned*, or one that
is doomed, which the next writer deletes.

Time is the server's, who dates each version of the list: machines' clocks differ. Uses are ordered by turns, the
number of steps so far.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Final

from grit_mlx.errors import StoreError
from grit_mlx.rag.caches.budget import Held, giving_way

__all__ = ["ABANDONED_SECONDS", "Ledger", "Shared", "object_name"]

_FORMAT: Final = 1
# In place of a checksum: a document is being written, or was forgotten meanwhile.
_WRITING: Final = -1
_UNWANTED: Final = -2

# A document that is being written for longer than this belongs to a process that was killed; ``bucket`` gives up
# long before.
ABANDONED_SECONDS: Final = 900.0


@dataclass(frozen=True)
class Shared:
    """A document in the bucket."""

    token: str  # of who wrote it: names of objects are never used again
    bytes: int
    used: int  # the turn in which it was last used
    crc: int = _WRITING  # its checksum
    tag: str = ""  # the server's name for its content
    since: float | None = None  # when it began to be written, as far as that is known yet

    @property
    def is_written(self) -> bool:
        """Whether it can be read."""
        return self.crc >= 0


@dataclass(frozen=True)
class Ledger:
    """All documents in the bucket."""

    budget: int
    turn: int = 0
    documents: Mapping[str, Shared] = field(default_factory=dict)
    doomed: frozenset[str] = frozenset()  # names of objects that are to be deleted before anything is written

    @classmethod
    def parse(cls, content: bytes) -> Ledger:
        """What ``dump`` wrote.

        Raises:
            ValueError: something else.
            StoreError: a later version wrote it.
        """
        try:
            values = json.loads(content)
            if values["format"] > _FORMAT:
                raise StoreError(f"The list of shared documents has format {values['format']}: update grit-mlx.")
            documents = {key: Shared(*one) for key, one in values["documents"].items()}
            return cls(int(values["budget"]), int(values["turn"]), documents, frozenset(values["doomed"]))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError("it is not a list of cached documents") from error

    def dump(self) -> bytes:
        """As JSON."""
        documents = {key: astuple(one) for key, one in self.documents.items()}
        values = {"format": _FORMAT, "budget": self.budget, "turn": self.turn}
        return json.dumps({**values, "documents": documents, "doomed": sorted(self.doomed)}).encode()

    @property
    def bytes(self) -> int:
        """Of the documents that can be read."""
        return sum(one.bytes for one in self.written.values())

    @property
    def written(self) -> dict[str, Shared]:
        """The documents that can be read."""
        return {key: one for key, one in self.documents.items() if one.is_written}

    @property
    def objects(self) -> set[str]:
        """The names of all objects that may be in the bucket."""
        return {object_name(key, one) for key, one in self.documents.items()} | self.doomed

    # Steps

    def dated(self, time: float) -> Ledger:
        """With the time of this version for what began to be written in it."""
        begun = {key: replace(one, since=time) for key, one in self.documents.items() if self._is_undated(one)}
        return replace(self, documents={**self.documents, **begun}) if begun else self

    def reserved(self, sizes: Mapping[str, int], token: str, *, time: float | None) -> Ledger:
        """With room for documents that are not there, as far as there is room; ``mine`` are those that got some."""
        made = self.without_abandoned(time)
        for key, size in sizes.items():
            if key in made.documents:
                continue
            held = (Held(name, one.bytes, one.used, not one.is_written) for name, one in made.documents.items())
            going = giving_way(held, size=size, budget=self.budget)
            if going is not None:
                made = made._without(going)
                mine = Shared(token, size, self.turn + 1)
                made = replace(made, documents={**made.documents, key: mine})
        return made._next(self)

    def mine(self, token: str) -> list[str]:
        """The documents that a process reserved room for."""
        return [key for key, one in self.documents.items() if one.token == token]

    def registered(self, token: str, written: Mapping[str, tuple[int, str]], deleted: Collection[str]) -> Ledger:
        """With what a process wrote, by checksum and tag, and without what it had room for and did not write."""
        done = {
            key: replace(one, crc=written[key][0], tag=written[key][1], used=self.turn + 1, since=None)
            for key, one in self.documents.items()
            if one.token == token and key in written and one.crc == _WRITING
        }
        made = self._without(key for key in self.mine(token) if key not in done)
        made = replace(made, documents={**made.documents, **done})
        return made.cleared(deleted)._next(self)

    def cleared(self, deleted: Collection[str]) -> Ledger:
        """Without objects that were doomed and are deleted."""
        return replace(self, doomed=self.doomed.difference(deleted))._next(self)

    def forgotten(self, keys: Iterable[str]) -> Ledger:
        """Without documents. One that is being written counts until its writer is done with it, or is abandoned."""
        wanted = set(keys)
        gone = [key for key in wanted if key in self.documents and self.documents[key].is_written]
        late = {
            key: replace(one, crc=_UNWANTED)
            for key, one in self.documents.items()
            if key in wanted and not one.is_written
        }
        made = replace(self, documents={**self.documents, **late})
        return made._without(gone)._next(self)

    def used(self, keys: Collection[str]) -> Ledger:
        """With documents that were just used."""
        now = {
            key: replace(self.documents[key], used=self.turn + 1)
            for key in keys
            if key in self.documents and self.documents[key].is_written
        }
        return replace(self, documents={**self.documents, **now})._next(self)

    def resized(self, budget: int) -> Ledger:
        """With another budget, and without what it has no room for."""
        held = [Held(key, one.bytes, one.used, not one.is_written) for key, one in self.documents.items()]
        going = giving_way(held, size=0, budget=budget)
        if going is None:  # what is being written alone is too much, for now
            going = list(self.written)
        return replace(self._without(going), budget=budget)._next(self)

    def without_abandoned(self, time: float | None) -> Ledger:
        """Without what nobody is writing any more, as far as it is known what time it is."""
        if time is None:
            return self
        old = [
            key
            for key, one in self.documents.items()
            if not one.is_written and one.since is not None and time - one.since > ABANDONED_SECONDS
        ]
        return self._without(old)

    def _without(self, keys: Iterable[str]) -> Ledger:
        """Without documents, whose objects are doomed."""
        gone = {key: self.documents[key] for key in keys if key in self.documents}
        kept = {key: one for key, one in self.documents.items() if key not in gone}
        doomed = self.doomed.union(object_name(key, one) for key, one in gone.items())
        return replace(self, documents=kept, doomed=doomed)._next(self)

    def _next(self, before: Ledger) -> Ledger:
        """The version after another, if anything changed; no two versions are equal."""
        same = (self.budget, self.documents, self.doomed) == (before.budget, before.documents, before.doomed)
        return before if same else replace(self, turn=before.turn + 1)

    @staticmethod
    def _is_undated(one: Shared) -> bool:
        return not one.is_written and one.since is None


def object_name(key: str, document: Shared) -> str:
    """Where a document is, from the folder of all."""
    return f"{key}-{document.token}.safetensors"
