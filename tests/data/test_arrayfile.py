"""Arrays in a file: the format of others, mapped and aligned, damage named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shoal.core.errors import InputError, IntegrityError
from shoal.data.arrayfile import read_arrays, write_arrays


def test_the_files_are_safetensors(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(7, dtype=np.uint8),
        "b": np.arange(6.0).reshape(2, 3),
        "empty": np.empty((0, 6), dtype=np.float32),
        "flag": np.array([True, False]),
        "scalar": np.array(4, dtype=np.int64),
    }
    write_arrays(tmp_path / "ours", arrays)
    save_file(arrays, tmp_path / "theirs")
    for found in (load_file(tmp_path / "ours"), read_arrays(tmp_path / "theirs")):
        assert set(found) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
    mapped = read_arrays(tmp_path / "ours")
    assert all(array.ctypes.data % array.itemsize == 0 for array in mapped.values())
    assert not mapped["b"].flags.writeable
    assert isinstance(mapped["b"].base, np.ndarray)
    with pytest.raises(InputError, match="cannot be kept"):
        write_arrays(tmp_path / "text", {"x": np.array(["a"])})


def test_damage_is_named(tmp_path: Path) -> None:
    known = write_arrays(tmp_path / "a", {"x": np.arange(100), "y": np.arange(3.0)})
    whole = (tmp_path / "a").read_bytes()
    for name, data, said in (
        ("short", whole[:-1], "bytes instead of"),
        ("header", whole.replace(b'"x"', b'"z"', 1), "another checksum"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(IntegrityError, match=said):
            read_arrays(tmp_path / name, known)
    for name, data, said in (
        ("nothing", b"", "cut short"),
        ("long header", b"\xff" * 8 + whole[8:], "cut short"),
        ("no header", b"\x02" + b"\0" * 7 + b"[]", "no safetensors file"),
        ("ranges", whole.replace(b"[0,800]", b"[0,900]", 1), "no safetensors file"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(IntegrityError, match=said):
            read_arrays(tmp_path / name)
