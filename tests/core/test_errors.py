"""Errors say where, what and what to do."""

from __future__ import annotations

import pytest

from shoal.core import errors


def test_input_error_names_source_row_field_and_value():
    error = errors.InputError(
        "must be positive", field="port", value=-1, row=3, source="cloud.toml", hint="use 8080"
    )
    assert str(error) == "cloud.toml, row 3, field 'port': must be positive (got -1)"
    assert error.hint == "use 8080"
    assert error.exit_code == 2


def test_input_error_without_place_is_the_plain_message():
    assert str(errors.InputError("nothing to do")) == "nothing to do"


def test_long_values_are_shortened():
    text = str(errors.InputError("too long", field="name", value="x" * 500))
    assert len(text) < 140
    assert text.endswith("...)")


def test_exit_codes_tell_the_kinds_apart():
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert {kind.__name__: kind.exit_code for kind in kinds} == {
        "ConflictError": 5,
        "InputError": 2,
        "IntegrityError": 3,
        "LimitError": 2,
        "NotFoundError": 4,
        "ShoalError": 1,
        "UnavailableError": 6,
    }
    assert all(issubclass(kind, errors.ShoalError) for kind in kinds)


def test_a_plain_exception_is_not_a_shoal_error():
    with pytest.raises(ValueError, match="defect"):
        try:
            raise ValueError("defect")
        except errors.ShoalError:  # must not catch it
            pytest.fail("a defect was taken for a user's error")
