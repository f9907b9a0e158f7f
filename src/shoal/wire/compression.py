"""Compression of batch bodies, and its limits on the way back.

A body from a device is hostile until proved otherwise: it is inflated by a
decompressor that stops at a stated number of bytes, with a bounded window, so a
"zip bomb" costs no more than an honest batch (Walle sheet 6.1, 6.6, B.6).
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from shoal.core.errors import InputError, LimitError
from shoal.wire.codes import ErrorCode
from shoal.wire.frames import Batch, Codec
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = [
    "FRAME_ROOM",
    "INFLATION",
    "BodyCodec",
    "UnknownDictionaryError",
    "inflated_limit",
    "train_dictionary",
]

#: An inflated body may be this many times ``WireLimits.frame``.
INFLATION: Final = 4

#: What a frame's own fields need beside the body, bytes.
FRAME_ROOM: Final = 64

# 8 MiB, what RFC 8878 asks every reader to support. A frame that wants more would
# make the reader set aside as much memory as the sender likes.
_WINDOW_LOG: Final = 23
_LEVEL: Final = 3
_SMALLEST: Final = 64  # shorter bodies do not shrink


class UnknownDictionaryError(InputError):
    """The body needs a dictionary that this end does not have."""

    code = ErrorCode.UNKNOWN_DICTIONARY


def inflated_limit(limits: WireLimits = DEFAULT_LIMITS) -> int:
    """Return how many bytes an inflated batch body may have (1 MiB by default)."""
    return INFLATION * limits.frame


class BodyCodec:
    """Packs and unpacks the bodies of BATCH frames.

    Parameters
    ----------
    dictionaries : mapping of int to bytes, optional
        Trained zstd dictionaries by their id (at least 1).
    limits : WireLimits, optional
        ``limits.frame`` bounds both a packed body and, times :data:`INFLATION`,
        an inflated one.

    Raises
    ------
    InputError
        A dictionary is malformed or its id is below 1.
    """

    def __init__(
        self,
        dictionaries: Mapping[int, bytes] | None = None,
        limits: WireLimits = DEFAULT_LIMITS,
    ) -> None:
        self.limits = limits
        self._dictionaries: dict[int, zstd.ZstdDict] = {}
        for number, content in (dictionaries or {}).items():
            if number < 1:
                raise InputError("a dictionary's id is at least 1", field="id", value=number)
            try:
                self._dictionaries[number] = zstd.ZstdDict(content)
            except ValueError as error:
                raise InputError(f"not a zstd dictionary: {error}", field="content") from error

    @property
    def dictionaries(self) -> list[int]:
        """Ids of the dictionaries at hand, rising."""
        return sorted(self._dictionaries)

    def choose(self, codecs: Collection[int], dictionaries: Collection[int]) -> tuple[Codec, int]:
        """Return the best (codec, dictionary id) that the other end knows too."""
        shared = self._dictionaries.keys() & set(dictionaries)
        if Codec.ZSTD_DICTIONARY in codecs and shared:
            return Codec.ZSTD_DICTIONARY, max(shared)
        return (Codec.ZSTD if Codec.ZSTD in codecs else Codec.RAW), 0

    def pack(
        self, raw: bytes, codec: int = Codec.ZSTD, dictionary: int = 0
    ) -> tuple[int, int, bytes]:
        """Compress a body.

        Parameters
        ----------
        raw : bytes
            The encoded batch.
        codec : int
            A :class:`Codec`; RAW is used instead where compression gains nothing.
        dictionary : int
            Id of the dictionary for :attr:`Codec.ZSTD_DICTIONARY`.

        Returns
        -------
        tuple of (codec, dictionary id, body)

        Raises
        ------
        LimitError
            ``raw`` is longer than the other end would inflate, or the packed
            body does not fit a frame.
        UnknownDictionaryError
            The dictionary is not at hand.
        """
        if len(raw) > inflated_limit(self.limits):
            raise LimitError("batch too large", field="body", value=len(raw))
        body, used, number = raw, int(Codec.RAW), 0
        if codec != Codec.RAW and (len(raw) >= _SMALLEST or codec == Codec.ZSTD_DICTIONARY):
            with_dictionary = codec == Codec.ZSTD_DICTIONARY
            trained = self._dictionary(dictionary) if with_dictionary else None
            packed = zstd.compress(raw, _LEVEL, zstd_dict=trained)
            if len(packed) < len(raw):
                body, used, number = packed, int(codec), dictionary if with_dictionary else 0
        if len(body) > self.limits.frame - FRAME_ROOM:
            raise LimitError("batch does not fit a frame", field="body", value=len(body))
        return used, number, body

    def unpack(self, batch: Batch) -> bytes:
        """Inflate the body of a batch.

        Raises
        ------
        LimitError
            It would inflate past :func:`inflated_limit`.
        UnknownDictionaryError
            The dictionary is not at hand.
        InputError
            An unknown codec, damaged or truncated data, bytes after its end.
        """
        limit = inflated_limit(self.limits)
        if batch.codec == Codec.RAW:
            if len(batch.body) > limit:
                raise LimitError("batch too large", field="body", value=len(batch.body))
            return batch.body
        if batch.codec not in (Codec.ZSTD, Codec.ZSTD_DICTIONARY):
            raise InputError("unknown codec", field="codec", value=batch.codec)
        trained = (
            self._dictionary(batch.dictionary) if batch.codec == Codec.ZSTD_DICTIONARY else None
        )
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        reader = zstd.ZstdDecompressor(zstd_dict=trained, options=options)
        try:
            raw = reader.decompress(batch.body, max_length=limit + 1)
        except zstd.ZstdError as error:
            raise InputError(f"body does not inflate: {error}", field="body") from error
        if len(raw) > limit:
            raise LimitError("body inflates past the limit", field="body", value=f"> {limit} B")
        if not reader.eof:
            raise InputError("body is truncated", field="body")
        if reader.unused_data:
            raise InputError("bytes after the end of the body", field="body")
        return raw

    def _dictionary(self, number: int) -> zstd.ZstdDict:
        try:
            return self._dictionaries[number]
        except KeyError:
            raise UnknownDictionaryError(
                "no such dictionary", field="dictionary", value=number
            ) from None


def train_dictionary(samples: Iterable[bytes], size: int = 16 * 1024) -> bytes:
    """Train a dictionary on encoded batch bodies; give it an id in :class:`BodyCodec`.

    Parameters
    ----------
    samples : iterable of bytes
        Bodies as they were before compression; some hundreds serve well.
    size : int
        Largest size of the dictionary in bytes.

    Raises
    ------
    InputError
        Too few or too small samples to learn from.
    """
    listed = list(samples)
    try:
        return zstd.train_dict(listed, size).dict_content
    except (ValueError, zstd.ZstdError) as error:
        raise InputError(
            f"cannot train a dictionary on {len(listed)} samples: {error}", field="samples"
        ) from error
