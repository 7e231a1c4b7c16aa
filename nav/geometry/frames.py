"""Frame and transform names: ``NeedleToReference`` on the wire, ``reference_from_needle`` in code.

One parser for both spellings. The rule is that of PLUS (IGSIO ``igsioTransformName``): a transform name holds exactly
one ``To`` that is followed by a character that is not a lower-case letter, so ``TestToolToTracker`` is legal.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["FrameNameError", "TransformName", "check_frame_name"]

_SEPARATOR = re.compile(r"To(?=[^a-z])")
_FRAME = re.compile(r"[A-Z][A-Za-z0-9]*\Z")
_WORD = re.compile(r"[A-Z]+(?![a-z])[a-z0-9]*|[A-Z][a-z0-9]*")


class FrameNameError(ValueError):
    """A frame or transform name that cannot be understood; the message names it and what is allowed."""


def check_frame_name(frame: str) -> str:
    """Return ``frame`` if it is a legal frame name, else raise `FrameNameError`."""
    if not _FRAME.match(frame):
        raise FrameNameError(
            f"frame name {frame!r}: must start with an upper-case letter and hold only ASCII letters and digits"
        )
    if _SEPARATOR.search(frame):
        raise FrameNameError(f"frame name {frame!r}: must not contain 'To' followed by an upper-case letter or digit")
    if frame.endswith("To"):  # <frame>To<other> would hold two separators
        raise FrameNameError(f"frame name {frame!r}: must not end with 'To'")
    return frame


class TransformName(NamedTuple):
    """The name of a transform that maps points of ``from_frame`` to ``to_frame`` (``p_to = T @ p_from``)."""

    from_frame: str
    to_frame: str

    @classmethod
    def parse(cls, name: str) -> TransformName:
        """Parse ``"NeedleToReference"`` or ``"reference_from_needle"``.

        Raises
        ------
        FrameNameError
            If the name holds no or several separators, an illegal frame name, or twice the same frame.
        """
        if "_from_" in name:
            to_snake, _, from_snake = name.partition("_from_")
            return cls.of(_from_snake(from_snake, name), _from_snake(to_snake, name))
        cuts = [m.start() for m in _SEPARATOR.finditer(name)]
        if len(cuts) != 1 or cuts[0] == 0:
            raise FrameNameError(
                f"transform name {name!r}: expected <From>To<To> with exactly one 'To' before an upper-case letter, "
                f"such as NeedleToReference; found {len([c for c in cuts if c])}"
            )
        return cls.of(name[: cuts[0]], name[cuts[0] + 2 :])

    @classmethod
    def of(cls, from_frame: str, to_frame: str) -> TransformName:
        """Build a checked name from two frame names."""
        check_frame_name(from_frame)
        check_frame_name(to_frame)
        if from_frame == to_frame:
            raise FrameNameError(f"transform {from_frame}To{to_frame}: a frame cannot be placed in itself")
        return cls(from_frame, to_frame)

    @property
    def wire(self) -> str:
        """PLUS spelling, ``NeedleToReference``."""
        return f"{self.from_frame}To{self.to_frame}"

    @property
    def code(self) -> str:
        """Code spelling, ``reference_from_needle``."""
        return f"{_to_snake(self.to_frame)}_from_{_to_snake(self.from_frame)}"

    @property
    def inverse(self) -> TransformName:
        """The name of the inverse transform."""
        return TransformName(self.to_frame, self.from_frame)

    def __str__(self) -> str:
        return self.wire


def _to_snake(frame: str) -> str:
    return "_".join(word.lower() for word in _WORD.findall(frame))


def _from_snake(snake: str, whole: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", snake):
        raise FrameNameError(f"transform name {whole!r}: {snake!r} is not a lower_snake frame name")
    return "".join(part.capitalize() for part in snake.split("_"))
