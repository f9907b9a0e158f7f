"""Settings come from defaults, TOML, environment and arguments, and errors name the place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SecretStr, ValidationError

from shoal.core.errors import InputError, NotFoundError
from shoal.core.settings import Settings, load_settings, read_toml


class Limits(Settings):
    frame: int = Field(default=1024, gt=0)
    names: list[str] = Field(default=[])


class Example(Settings):
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    limits: Limits = Limits()
    ratio: float | None = None
    admin_token: str | None = Field(default=None, min_length=8)
    key: SecretStr | None = None


@pytest.fixture
def toml(tmp_path):
    def write(text: str):
        path = tmp_path / "shoal.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_precedence_argument_environment_file_default(toml):
    path = toml('host = "file"\nport = 1\n[limits]\nframe = 5\nnames = ["f"]\n')
    environ = {"X_PORT": "2", "X_LIMITS__FRAME": "6", "HOME": "/"}
    loaded = load_settings(
        Example, path, env_prefix="X_", environ=environ, overrides={"port": 3, "host": None}
    )
    assert loaded == Example(host="file", port=3, limits=Limits(frame=6, names=["f"]))


def test_given_defaults_come_last():
    loaded = load_settings(
        Example,
        env_prefix="X_",
        environ={"X_PORT": "2"},
        defaults={"port": 1, "host": "given", "limits": {"frame": 7}},
    )
    assert loaded == Example(port=2, host="given", limits=Limits(frame=7))


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Example().port = 1


def test_a_table_is_read_and_a_missing_one_is_empty(toml):
    path = toml("[cloud.http]\nport = 9\n")
    assert load_settings(Example, path, table="cloud.http").port == 9
    assert load_settings(Example, path, table="elsewhere") == Example()
    with pytest.raises(InputError, match="must be a table"):
        load_settings(Example, path, table="cloud.http.port")


def test_wrong_type_names_file_field_and_value(toml):
    path = toml('[limits]\nframe = "many"\n')
    with pytest.raises(InputError, match=r"shoal.toml, field 'limits.frame': .*got 'many'"):
        load_settings(Example, path)


def test_wrong_value_from_the_environment_names_the_variable():
    with pytest.raises(InputError, match="environment variable X_PORT, field 'port'"):
        load_settings(Example, env_prefix="X_", environ={"X_PORT": "70000"})


def test_unknown_fields_are_refused_with_the_nearest_name(toml):
    with pytest.raises(InputError, match="no such setting") as caught:
        load_settings(Example, toml("prot = 1\n"))
    assert caught.value.hint == "did you mean 'port'?"
    with pytest.raises(InputError, match="X_LIMITS__FRAMES") as caught:
        load_settings(Example, env_prefix="X_", environ={"X_LIMITS__FRAMES": "1"})
    assert caught.value.hint == "did you mean 'frame'?"


def test_lists_in_the_environment_are_json():
    loaded = load_settings(Example, env_prefix="X_", environ={"X_LIMITS__NAMES": '["a", "b"]'})
    assert loaded.limits.names == ["a", "b"]
    with pytest.raises(InputError, match="not valid JSON"):
        load_settings(Example, env_prefix="X_", environ={"X_LIMITS__NAMES": "a,b"})


def test_tables_that_are_no_models_take_json_below_them():
    class Open(Settings):
        table: dict[str, object] = Field(default={})

    environ = {"X_TABLE__A": "1", "X_TABLE__B": "text"}
    assert load_settings(Open, env_prefix="X_", environ=environ).table == {"a": 1, "b": "text"}


def test_secrets_do_not_appear_in_messages(toml):
    with pytest.raises(InputError) as caught:
        load_settings(Example, toml('admin_token = "hunter2"\n'))
    assert "hunter2" not in str(caught.value)
    assert "admin_token" in str(caught.value)


@pytest.mark.parametrize("text", ["port = ", "port = 1\nport = 2", "\x00"])
def test_broken_toml_is_one_line(toml, text):
    with pytest.raises(InputError, match="not valid TOML") as caught:
        read_toml(toml(text))
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(NotFoundError):
        load_settings(Example, tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read"):
        read_toml(tmp_path)
    (tmp_path / "latin").write_bytes(b'a = "\xe9"')
    with pytest.raises(InputError, match="cannot be read"):
        read_toml(tmp_path / "latin")


@given(
    st.dictionaries(
        st.sampled_from(["host", "port", "limits", "ratio", "key", "other"]),
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.lists(st.integers())
        ),
    )
)
def test_any_argument_gives_settings_or_an_input_error(values):
    try:
        loaded = load_settings(Example, overrides=values)
    except InputError as error:
        assert error.field
    else:
        assert 0 <= loaded.port <= 65535
