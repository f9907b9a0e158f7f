"""Ground floor: errors, settings, seeds, progress, whole files, evidence."""

from shoal.core.errors import (
    ConflictError,
    InputError,
    IntegrityError,
    LimitError,
    NotFoundError,
    ShoalError,
    UnavailableError,
)

__all__ = [
    "ConflictError",
    "InputError",
    "IntegrityError",
    "LimitError",
    "NotFoundError",
    "ShoalError",
    "UnavailableError",
]
