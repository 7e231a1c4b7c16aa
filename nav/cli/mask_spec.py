"""How a structure is named on a command line: a file, its labels, a piece of them, a safety distance."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nav.cli.errors import CommandError, ExitCode

__all__ = ["Spec", "parse_spec"]


@dataclass(frozen=True, slots=True)
class Spec:
    """``[NAME=]FILE[:LABELS[/PIECE]][@CLEARANCE[,DIAMETER]]``."""

    name: str
    path: Path
    labels: tuple[int, ...]
    piece: int | None
    clearance_mm: float | None
    diameter_mm: float


_SPEC = re.compile(
    r"(?P<path>.+?)(?::(?P<labels>\d+(?:[+]\d+)*)(?:/(?P<piece>\d+))?)?(?:@(?P<mm>[0-9.]+)(?:,(?P<thin>[0-9.]+))?)?"
)


def parse_spec(text: str, option: str, *, named: bool) -> Spec:
    """Parse a structure.

    Raises
    ------
    CommandError
        Names the option and what is expected.
    """
    name, rest = "", text
    form = "FILE[:LABELS[/PIECE]]"
    if named:
        form = "NAME=FILE[:LABELS[/PIECE]][@MM[,MM]]"
        name, sign, rest = text.partition("=")
        if not sign or not name.strip():
            raise CommandError(f"{option} {text!r}: expected {form}", ExitCode.USAGE)
    match = _SPEC.fullmatch(rest)
    if match is None or (not named and match["mm"]):
        raise CommandError(f"{option} {text!r}: expected {form}", ExitCode.USAGE)
    try:
        clearance = None if match["mm"] is None else float(match["mm"])
        thin = float(match["thin"] or 0.0)
    except ValueError:
        raise CommandError(f"{option} {text!r}: {match['mm']!r} is not a number of mm", ExitCode.USAGE) from None
    labels = tuple(int(v) for v in match["labels"].split("+")) if match["labels"] else ()
    return Spec(
        name.strip(), Path(match["path"]), labels, int(match["piece"]) if match["piece"] else None, clearance, thin
    )
