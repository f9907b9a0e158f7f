"""What the documentation lists by hand is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from shoal.core import errors
from shoal.wire.codes import ErrorCode

DOCS = Path(__file__).parents[2] / "docs"


def rows(page: str) -> list[list[str]]:
    """Return the cells of the tables of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]


def test_error_codes_are_all_listed_with_their_names():
    listed = {row[0]: row[1] for row in rows("reference/error-codes.md") if row[0].isdigit()}
    assert listed == {str(int(code)): code.name.lower() for code in ErrorCode}


def test_exit_statuses_are_all_listed():
    listed = {row[0] for row in rows("reference/command-line.md") if row[0].isdigit()}
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert {str(kind.exit_code) for kind in kinds} <= listed


def test_dependencies_of_the_package_are_all_explained():
    import tomllib

    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    wanted = set()
    for requirement in [
        *project["dependencies"],
        *(entry for extra in project["optional-dependencies"].values() for entry in extra),
    ]:
        name = re.match(r"[A-Za-z0-9._-]+", requirement).group()
        if name != "shoal":
            wanted.add(name.lower())
    text = (DOCS / "explanation/dependencies.md").read_text(encoding="utf-8").lower()
    missing = {name for name in wanted if not re.search(rf"\b{re.escape(name)}\b", text)}
    assert not missing
