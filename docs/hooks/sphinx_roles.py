"""Shows Sphinx roles of docstrings (``:class:`~a.b.C```) as code, for mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|meth|func|mod|data|attr|exc|const):`(~?)([^`]+)`")


def plain(text: str) -> str:
    """Replace each role by its name in code; ``~`` keeps the last part only."""
    return _ROLE.sub(
        lambda found: f"`{found[2].rpartition('.')[2] if found[1] else found[2]}`", text
    )


class SphinxRoles(Extension):
    """Rewrites the docstring of every object that griffe has read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Take one object (called by griffe)."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)
