"""The floors of the house hold, and the contracts that guard them can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT_IMPORTS = Path(sysconfig.get_path("scripts")) / "lint-imports"
ROOMS = [
    "cli",
    "console",
    "catalogue",
    "tasks",
    "cloud",
    "device",
    "wire",
    "spatial",
    "llm",
    "data",
    "core",
]

pytestmark = pytest.mark.skipif(not LINT_IMPORTS.exists(), reason="import-linter is not installed")


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    """Run the project's contracts on the package ``house/shoal``."""
    shutil.copy(ROOT / "pyproject.toml", house / "pyproject.toml")
    return subprocess.run(
        [sys.executable, str(LINT_IMPORTS), "--no-logo", "--no-cache"],
        cwd=house,
        env={"PYTHONPATH": str(house), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def house(tmp_path):
    for room in ROOMS:
        folder = tmp_path / "shoal" / room
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (tmp_path / "shoal" / "__init__.py").touch()
    return tmp_path


def test_an_empty_house_passes(house):
    done = lint(house)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("core", "wire"),
        ("data", "cloud"),
        ("wire", "device"),
        ("cloud", "device"),
        ("device", "cloud"),
        ("cloud", "tasks"),
        ("device", "spatial"),
        ("cloud", "llm"),
        ("spatial", "wire"),
        ("spatial", "llm"),
        ("wire", "spatial"),
        ("catalogue", "tasks"),
        ("tasks", "cli"),
        ("console", "cli"),
    ],
)
def test_climbing_and_sideways_imports_break_a_contract(house, importer, imported):
    (house / "shoal" / importer / "wrong.py").write_text(f"import shoal.{imported}\n")
    done = lint(house)
    assert done.returncode == 1
    assert f"shoal.{importer}.wrong -> shoal.{imported}" in done.stdout


@pytest.mark.parametrize(
    ("importer", "imported"),
    [("cli", "console"), ("tasks", "spatial"), ("tasks", "device"), ("cloud", "wire")],
)
def test_imports_that_go_down_are_fine(house, importer, imported):
    (house / "shoal" / importer / "right.py").write_text(f"import shoal.{imported}\n")
    assert lint(house).returncode == 0
