"""Numbers as text: one decimal, U+2212 for minus, a hysteresis of 0.1 so that the last digit does not flicker. Pure."""

from __future__ import annotations

import math

__all__ = ["BLANK", "HYSTERESIS", "MINUS", "Shown", "format_value"]

BLANK = "---"
MINUS = "\u2212"
HYSTERESIS = 0.1


def format_value(value: float | None, *, signed: bool = False, decimals: int = 1) -> str:
    """``value`` as text; `BLANK` for None or a value that is not finite. ``signed``: a plus sign above zero.

    What rounds to zero has no sign: ``0.0``, never a minus zero.
    """
    if value is None or not math.isfinite(value):
        return BLANK
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0.0:
        return text
    if value < 0.0:
        return MINUS + text
    return "+" + text if signed else text


class Shown:
    """The numbers that are shown now, made from those shown before. Lives for one call of `present`."""

    def __init__(self, before: dict[str, float]) -> None:
        self._before = before
        self.now: dict[str, float] = {}

    def settle(self, key: str, value: float | None) -> float | None:
        """The number to show for ``value``: the one shown before while it differs by less than `HYSTERESIS`.

        None (or not finite) blanks and forgets, so that a returning number starts afresh.
        """
        if value is None or not math.isfinite(value):
            return None
        before = self._before.get(key)
        # The small term keeps a step of exactly 0.1 in floating point from being swallowed.
        kept = before is not None and abs(value - before) < HYSTERESIS - 1e-9
        result = before if kept and before is not None else round(value, 1)
        self.now[key] = result
        return result
