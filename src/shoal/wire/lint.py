"""What a look at a task's source tells before it runs anywhere.

A task that only uses what its context gives is replayable: same package, same
events, same bytes. The linter warns of what breaks that (clock, randomness,
network); it is advice to the author, not a sandbox: the container is
(Walle sheet C.2).
"""

from __future__ import annotations

import ast

from shoal.core.errors import InputError

__all__ = ["check_entry", "lint_code"]

_MODULES = {
    "random": "draws that no replay repeats; use ctx.random",
    "secrets": "draws that no replay repeats; use ctx.random",
    "socket": "opens the network, which the container refuses",
    "ssl": "opens the network, which the container refuses",
    "http": "opens the network, which the container refuses",
    "urllib": "opens the network, which the container refuses",
    "requests": "opens the network, which the container refuses",
    "httpx": "opens the network, which the container refuses",
    "asyncio": "needs sockets, which the container refuses",
    "subprocess": "starts processes, which the container refuses",
    "multiprocessing": "starts processes, which the container refuses",
    "pickle": "can run hostile code when it loads; use JSON",
    "marshal": "can run hostile code when it loads; use JSON",
}
_CALLS = {
    ("time", "time"): "reads the clock; use ctx.now()",
    ("time", "time_ns"): "reads the clock; use ctx.now()",
    ("time", "monotonic"): "reads the clock; use ctx.deadline_left()",
    ("datetime", "now"): "reads the clock; use ctx.now()",
    ("datetime", "utcnow"): "reads the clock; use ctx.now()",
    ("date", "today"): "reads the clock; use ctx.now()",
    ("os", "urandom"): "draws that no replay repeats; use ctx.random",
    ("os", "fork"): "starts a process, which the container refuses",
    ("os", "system"): "starts a process, which the container refuses",
}


def _parse(path: str, source: bytes) -> ast.Module:
    try:
        return ast.parse(source, filename=path)
    except SyntaxError as error:
        raise InputError(
            f"not Python: {error.msg}", source=path, row=error.lineno or None
        ) from error
    except ValueError as error:  # null bytes
        raise InputError(f"not Python: {error}", source=path) from error


def lint_code(path: str, source: bytes) -> list[str]:
    """Return one line of advice for each doubtful place in a source file.

    Raises
    ------
    InputError
        The file is not Python; names the line.
    """
    advice: list[tuple[int, str]] = []
    for node in ast.walk(_parse(path, source)):
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [(node.module or "").partition(".")[0]]
        elif isinstance(node, ast.Attribute):
            owner = node.value
            base = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            said = _CALLS.get((base, node.attr))
            if said is not None:
                advice.append((node.lineno, f"{base}.{node.attr} {said}"))
            continue
        else:
            continue
        advice += [(node.lineno, f"{name} {_MODULES[name]}") for name in names if name in _MODULES]
    return [f"{path}, row {line}: {text}" for line, text in sorted(advice)]


def check_entry(path: str, source: bytes, function: str) -> None:
    """Make sure that a module defines the function its entry names.

    Raises
    ------
    InputError
        Not Python, or no top-level function (or name) ``function``.
    """
    for node in _parse(path, source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound = {node.name}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound = {(alias.asname or alias.name) for alias in node.names}
        elif isinstance(node, ast.Assign):
            bound = {target.id for target in node.targets if isinstance(target, ast.Name)}
        else:
            continue
        if function in bound:
            return
    raise InputError(f"defines no {function}", source=path, field="entry")
