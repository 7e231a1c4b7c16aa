"""JSON as this program writes it: compact or readable, floats in full, and never NaN or infinity (null instead)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["compact_json", "json_ready", "write_json"]


def json_ready(value: Any) -> Any:
    """Plain Python values: numpy scalars and arrays unpacked, tuples and sets as lists, non-finite floats as None."""
    if isinstance(value, Mapping):
        return {str(k): json_ready(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json_ready(v) for v in value)
    if isinstance(value, np.ndarray):
        return json_ready(value.tolist())
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def compact_json(value: Any) -> bytes:
    """One line, UTF-8. Python floats are written with `repr`, so reading them back gives the same bits."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError):
        text = json.dumps(json_ready(value), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.encode()


def write_json(path: Path | str, value: Any) -> None:
    """Write readable JSON; the file appears in one step, complete."""
    file = Path(path)
    text = json.dumps(json_ready(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
