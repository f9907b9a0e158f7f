"""Labels: one text a place, for people who read the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError

__all__ = ["Labels"]


class Labels:
    """Texts by key: those of the first build packed, later ones in a dictionary.

    One writer changes; readers may read at the same time.
    """

    def __init__(self) -> None:
        self._keys = np.empty(0, dtype=np.int64)
        self._starts = np.zeros(1, dtype=np.int64)
        self._blob = np.empty(0, dtype=np.uint8)
        self._later: dict[int, str] = {}

    @classmethod
    def of(cls, keys: npt.NDArray[np.int64], texts: Sequence[str | None]) -> Labels:
        """Pack the labels of places; None is no label.

        Raises
        ------
        InputError
            The numbers of keys and labels differ, or a label is no text.
        """
        if len(texts) != len(keys):
            raise InputError(f"{len(texts)} labels for {len(keys)} places", field="labels")
        made = cls()
        order = np.argsort(keys, kind="stable")
        parts = [_bytes(texts[i], i) for i in order.tolist()]
        made._keys = keys[order]
        made._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(
            np.int64
        )
        made._blob = np.frombuffer(b"".join(parts), dtype=np.uint8)
        return made

    def __bool__(self) -> bool:
        return bool(len(self._keys) or self._later)

    def put(self, keys: npt.NDArray[np.int64], texts: Sequence[str | None]) -> None:
        """Set or replace the labels of places."""
        if len(texts) != len(keys):
            raise InputError(f"{len(texts)} labels for {len(keys)} places", field="labels")
        for row, (key, text) in enumerate(zip(keys.tolist(), texts, strict=True)):
            self._later[key] = _bytes(text, row).decode()

    def get(self, keys: npt.NDArray[np.int64]) -> list[str | None]:
        """Return the label of each key, None where there is none."""
        found: list[str | None] = []
        places = np.searchsorted(self._keys, keys)
        for key, place in zip(keys.tolist(), places.tolist(), strict=True):
            text = self._later.get(key)
            if text is None and place < len(self._keys) and self._keys[place] == key:
                raw = self._blob[self._starts[place] : self._starts[place + 1]]
                text = raw.tobytes().decode()
            found.append(text or None)
        return found

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all labels as flat arrays."""
        later = np.array(list(self._later), dtype=np.int64)
        keys = np.union1d(self._keys, later)
        packed = Labels.of(keys, self.get(keys))
        return {"keys": packed._keys, "starts": packed._starts, "blob": packed._blob}

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[Any]]) -> Labels:
        """Return the labels that :meth:`arrays` came from."""
        made = cls()
        made._keys, made._starts = arrays["keys"], arrays["starts"]
        made._blob = arrays["blob"]
        return made


def _bytes(text: object, row: int) -> bytes:
    if text is None:
        return b""
    if not isinstance(text, str):
        raise InputError("a label is a text", field="labels", value=text, row=row + 1)
    return text.encode()
