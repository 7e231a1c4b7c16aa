"""What to think of a registration, in one word."""

from __future__ import annotations

from enum import Enum

__all__ = ["ImageRegistrationError", "Verdict"]


class ImageRegistrationError(ValueError):
    """The images cannot be registered at all; the message names what, the value and the limit."""


class Verdict(Enum):
    """What to think of a registration."""

    GOOD = "good"
    DOUBTFUL = "doubtful"
    NOT_CONVERGED = "not_converged"
    IMPLAUSIBLE = "implausible"
