"""SimpleITK under one name. It ships no types, so it is `Any` to the type checker; results are converted at once."""

from __future__ import annotations

from typing import Any

import SimpleITK

__all__ = ["sitk"]

sitk: Any = SimpleITK
