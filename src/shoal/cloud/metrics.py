"""The cloud's numbers in Prometheus' text form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["METRICS_TYPE", "Metric", "prometheus_text"]

#: Media type of the exposition format.
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Name, kind ("counter" or "gauge"), help, and values by labels.
Metric = tuple[str, str, str, Iterable[tuple[Mapping[str, str], float]]]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def prometheus_text(metrics: Iterable[Metric]) -> str:
    """Return the exposition of ``metrics``; label values are escaped."""
    lines = []
    for name, kind, text, values in metrics:
        lines.append(f"# HELP {name} {text}")
        lines.append(f"# TYPE {name} {kind}")
        for labels, value in values:
            inside = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
            shown = int(value) if float(value).is_integer() else value
            lines.append(f"{name}{{{inside}}} {shown}" if inside else f"{name} {shown}")
    return "\n".join(lines) + "\n"
