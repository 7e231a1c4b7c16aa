"""SimpleITK under one name. It ships no types, so it is `Any` to the type checker; results are converted at once."""

from __future__ import annotations

from typing import Any

import SimpleITK

__all__ = ["last_line", "sitk"]

sitk: Any = SimpleITK


def last_line(problem: RuntimeError) -> str:
    """What an error of ITK says, without where in ITK it was noticed."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    # ITK appends "Reason: No such file or directory" (a stale errno) to every MetaImage failure.
    lines = [line for line in lines if not line.startswith("Reason:")]
    return lines[-1][-160:] if lines else "no reason given"
