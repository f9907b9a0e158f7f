"""The errors that shoal raises on purpose.

Every error a caller can act on derives from :class:`ShoalError`. The command
line turns one into a single line and a hint; anything else is a defect and
keeps its traceback.
"""

from __future__ import annotations

__all__ = [
    "ConflictError",
    "InputError",
    "IntegrityError",
    "LimitError",
    "NotFoundError",
    "ShoalError",
    "UnavailableError",
]


class ShoalError(Exception):
    """Base of every error that shoal raises on purpose.

    Parameters
    ----------
    message : str
        What is wrong, in one line.
    hint : str, optional
        What the reader can do about it, in one line.
    """

    #: Exit status of the command line for this error.
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class InputError(ShoalError):
    """The caller's input is wrong; the message names the place and the value.

    Parameters
    ----------
    message : str
        What is wrong.
    field : str, optional
        Name of the field, column or argument.
    value : object, optional
        The offending value; shown shortened.
    row : int, optional
        Number of the row or line, counted from 1.
    source : str, optional
        The file or message that it was read from.
    hint : str, optional
        What to do about it.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: object = None,
        row: int | None = None,
        source: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.field = field
        self.value = value
        self.row = row
        self.source = source
        place = [
            part
            for part in (
                source,
                f"row {row}" if row is not None else None,
                f"field {field!r}" if field is not None else None,
            )
            if part
        ]
        text = f"{', '.join(place)}: {message}" if place else message
        if value is not None:
            shown = repr(value)
            text += f" (got {shown if len(shown) <= 80 else shown[:77] + '...'})"
        super().__init__(text, hint=hint)


class LimitError(InputError):
    """A stated limit of size, depth or count was exceeded."""


class IntegrityError(ShoalError):
    """Bytes are not what their hash, length or signature promised."""

    exit_code = 3


class NotFoundError(ShoalError):
    """A named thing does not exist."""

    exit_code = 4


class ConflictError(ShoalError):
    """The change does not fit the present state, or someone else was faster."""

    exit_code = 5


class UnavailableError(ShoalError):
    """A server, device, disk or optional library is not there right now."""

    exit_code = 6
