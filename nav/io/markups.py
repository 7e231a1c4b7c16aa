"""Slicer markups: points (landmarks, targets) and lines (needle plans): ``.mrk.json`` both ways, ``.fcsv`` read.

A ``plan.json`` (``docs/plan-json.md``) is read as its ablations and its candidate paths, with what was said of them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nav.io.case import CaseIdentity, Landmark, PlannedPath
from nav.io.errors import MarkupsError
from nav.io.image_file import swap_lps_ras

__all__ = ["Markups", "case_fingerprint", "fingerprint", "read_markups", "write_landmarks", "write_paths"]

_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_MINE = "ablationNav"
#: Further than this from the scanner's origin no point of a patient lies, mm; such a value is metres×1000 or damage.
_FARTHEST_MM = 10_000.0


@dataclass(frozen=True, slots=True)
class Markups:
    """What a markups file holds, RAS mm.

    Attributes
    ----------
    landmarks : tuple of Landmark
        Points of ``Fiducial`` lists.
    paths : tuple of PlannedPath
        Lines: first point entry, second point target.
    identifiers : dict
        What the file says about its case (`nav.io.checks` compares it with the CT).
    warnings : tuple of str
        Points that were left out, and why.
    """

    landmarks: tuple[Landmark, ...] = ()
    paths: tuple[PlannedPath, ...] = ()
    identifiers: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def fingerprint(identifier: str) -> str:
    """12 hexadecimal digits of the SHA-256 of an identifier, to compare without revealing it; empty stays empty."""
    return hashlib.sha256(identifier.encode()).hexdigest()[:12] if identifier else ""


def read_markups(path: Path | str) -> Markups:
    """Read ``.mrk.json``, ``.fcsv``, or the paths of a ``plan.json``.

    Raises
    ------
    MarkupsError
        Absent, not JSON, no markups, unknown coordinate system or unit, a position that is not three finite numbers,
        a line without exactly two points, or two landmarks of one name.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MarkupsError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise MarkupsError(f"{file}: is not UTF-8 text: {error.reason} at byte {error.start}") from None
    if file.suffix.lower() == ".fcsv":
        return _read_fcsv(file, text)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise MarkupsError(
            f"{file}: is not valid JSON (line {error.lineno}: {error.msg}); it may be truncated"
        ) from None
    if isinstance(data, dict) and "markups" not in data and isinstance(data.get("paths"), list):
        return _read_plan(file, data)
    markups = data.get("markups") if isinstance(data, dict) else None
    if not isinstance(markups, list) or not markups:
        raise MarkupsError(f"{file}: holds no 'markups' list; expected a Slicer markups file (.mrk.json)")
    landmarks: list[Landmark] = []
    paths: list[PlannedPath] = []
    warnings: list[str] = []
    for number, item in enumerate(markups):
        where = f"{file}: markups[{number}]"
        if not isinstance(item, dict):
            raise MarkupsError(f"{where}: is not an object")
        kind = item.get("type")
        if kind not in ("Fiducial", "Line"):
            warnings.append(f"{file.name}: markups[{number}] of type {kind!r} is not used (Fiducial and Line are)")
            continue
        flip = _flips(item, where)
        points = _points(item, where, flip, warnings, file.name)
        if kind == "Fiducial":
            landmarks += [Landmark(label or f"point {i}", position) for i, label, position in points]
            continue
        if len(points) != 2:
            raise MarkupsError(f"{where}: a Line has two defined points, entry and target; this one has {len(points)}")
        name = str(item.get("name") or "") or f"path {len(paths) + 1}"
        entry, target = points[0][2], points[1][2]
        if np.linalg.norm(np.subtract(entry, target)) < 1.0:
            raise MarkupsError(f"{where}: entry and target of {name!r} are less than 1 mm apart")
        paths.append(PlannedPath(name, entry, target))
    _check_names(file, landmarks)
    return Markups(tuple(landmarks), tuple(paths), _identifiers(data), tuple(warnings))


def _identifiers(data: dict[str, Any]) -> dict[str, str]:
    mine = data.get(_MINE)
    return {str(k): str(v) for k, v in mine.items() if isinstance(v, str)} if isinstance(mine, dict) else {}


def _read_plan(file: Path, data: dict[str, Any]) -> Markups:
    """Ablations first, then the candidates that break no hard constraint, in the planner's order."""
    paths: list[PlannedPath] = []
    warnings: list[str] = []
    planned = data.get("applicators")
    for number, item in enumerate(planned if isinstance(planned, list) else []):
        where = f"{file}: applicators[{number}]"
        entry, target = _planned_ends(item, where)
        values = [item.get(key) for key in ("applicator", "power_w", "time_s")]
        setting = f"{values[0]} {values[1]:g} W {values[2]:g} s" if _is_setting(values) else ""
        paths.append(PlannedPath(str(item.get("name") or f"ablation {number + 1}"), entry, target, setting=setting))
    left_out = 0
    for number, item in enumerate(data["paths"]):
        entry, target = _planned_ends(item, f"{file}: paths[{number}]")
        if item.get("feasible") is not True:
            left_out += 1
            continue
        score = item.get("score")
        found = item.get("criteria")
        criteria = tuple(
            (str(name), float(value))
            for name, value in (found.items() if isinstance(found, dict) else ())
            if _is_number(value)
        )
        paths.append(
            PlannedPath(f"path {number + 1}", entry, target, float(score) if _is_number(score) else None, criteria)
        )
    if left_out:
        warnings.append(f"{file.name}: {left_out} paths that break a hard constraint are not used")
    return Markups((), tuple(paths), _identifiers(data), tuple(warnings))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_setting(values: list[Any]) -> bool:
    return isinstance(values[0], str) and _is_number(values[1]) and _is_number(values[2])


def _planned_ends(item: object, where: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Entry and target of a planned path, RAS mm."""
    if not isinstance(item, dict):
        raise MarkupsError(f"{where}: is not an object")
    ends = []
    for key in ("entry_ras", "target_ras"):
        value = item.get(key)
        if not isinstance(value, list) or len(value) != 3 or not all(_is_number(v) for v in value):
            raise MarkupsError(f"{where}: {key} is {value!r}, must be three finite numbers (RAS mm)")
        if max(abs(v) for v in value) > _FARTHEST_MM:
            raise MarkupsError(f"{where}: {key} lies {max(abs(v) for v in value):g} mm from the origin; RAS mm?")
        ends.append((float(value[0]), float(value[1]), float(value[2])))
    if math.dist(ends[0], ends[1]) < 1.0:
        raise MarkupsError(f"{where}: entry and target are less than 1 mm apart")
    return ends[0], ends[1]


def case_fingerprint(case: CaseIdentity) -> dict[str, dict[str, str]]:
    """What a file says of its case: a pseudonym, and a fingerprint that can only be compared; nothing identifies."""
    return {
        _MINE: {
            "pseudonym": case.pseudonym,
            "frameOfReferenceSha256": fingerprint(case.frame_of_reference_uid),
        }
    }


def _check_names(file: Path, landmarks: list[Landmark]) -> None:
    names = [mark.name for mark in landmarks]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise MarkupsError(f"{file}: landmark names must differ; given twice: {', '.join(twice)}")


def _flips(item: dict[str, Any], where: str) -> bool:
    system = str(item.get("coordinateSystem", "LPS")).upper()
    if system not in ("LPS", "RAS", "0", "1"):
        raise MarkupsError(f"{where}: coordinateSystem = {system!r}, must be LPS or RAS")
    units = item.get("coordinateUnits", "mm")
    # Newer Slicer may write a DICOM code triple, such as ["mm", "UCUM", "millimeter"].
    unit = str(units[0] if isinstance(units, list) and units else units)
    if unit not in ("mm", "millimeter", "millimetre"):
        raise MarkupsError(f"{where}: coordinateUnits = {unit!r}, must be mm")
    return system in ("LPS", "1")


def _position(value: Any, where: str, flip: bool) -> tuple[float, float, float]:
    try:
        point = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        point = np.empty(0)
    if point.shape != (3,) or not np.isfinite(point).all() or np.abs(point).max() > _FARTHEST_MM:
        raise MarkupsError(
            f"{where}: position = {value!r}, must be three finite numbers in mm, at most {_FARTHEST_MM:g}"
        )
    x, y, z = swap_lps_ras(point) if flip else point
    return float(x), float(y), float(z)


def _points(
    item: dict[str, Any], where: str, flip: bool, warnings: list[str], name: str
) -> list[tuple[int, str, tuple[float, float, float]]]:
    """Defined control points: (number from 1, label, RAS mm)."""
    points = []
    for i, point in enumerate(item.get("controlPoints") or [], start=1):
        if not isinstance(point, dict):
            raise MarkupsError(f"{where}.controlPoints[{i - 1}]: is not an object")
        label = str(point.get("label") or "")
        status = str(point.get("positionStatus", "defined"))
        if status != "defined":
            warnings.append(f"{name}: point {label or i} is left out, its position is {status}")
            continue
        points.append((i, label, _position(point.get("position"), f"{where}.controlPoints[{i - 1}]", flip)))
    return points


def _read_fcsv(file: Path, text: str) -> Markups:
    system, columns = "", ["id", "x", "y", "z", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "label"]
    landmarks: list[Landmark] = []
    warnings: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("#"):
            key, _, value = line[1:].partition("=")
            if key.strip() == "CoordinateSystem":
                system = value.strip().upper()
            elif key.strip() == "columns":
                columns = [c.strip() for c in value.split(",")]
            continue
        if not line.strip():
            continue
        row = dict(zip(columns, next(csv.reader([line])), strict=False))
        if system not in ("RAS", "0", "LPS", "1"):
            raise MarkupsError(f"{file}: CoordinateSystem = {system or 'missing'!r}, must be RAS (0) or LPS (1)")
        try:
            point = [float(row[c]) for c in "xyz"]
        except (KeyError, ValueError):
            raise MarkupsError(f"{file}: line {number} holds no x, y, z: {line[:80]!r}") from None
        label = row.get("label", "") or f"point {len(landmarks) + 1}"
        landmarks.append(Landmark(label, _position(point, f"{file}: line {number}", system in ("LPS", "1"))))
    if not landmarks:
        raise MarkupsError(f"{file}: holds no points")
    _check_names(file, landmarks)
    return Markups(tuple(landmarks), warnings=tuple(warnings))


def write_landmarks(path: Path | str, landmarks: Sequence[Landmark], *, case: CaseIdentity | None = None) -> None:
    """Write landmarks as one ``Fiducial`` list, LPS mm."""
    points = [(mark.name, mark.ras) for mark in landmarks]
    _write(Path(path), [_markup("Fiducial", "landmarks", points)], case)


def write_paths(path: Path | str, paths: Sequence[PlannedPath], *, case: CaseIdentity | None = None) -> None:
    """Write needle plans, one ``Line`` each (entry, target), LPS mm."""
    _write(
        Path(path),
        [_markup("Line", p.name, [("entry", p.entry_ras), ("target", p.target_ras)]) for p in paths],
        case,
    )


def _markup(kind: str, name: str, points: Sequence[tuple[str, tuple[float, float, float]]]) -> dict[str, Any]:
    return {
        "type": kind,
        "name": name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "controlPoints": [
            {
                "id": str(i),
                "label": label,
                # + 0.0 turns −0.0 into 0.0, which reads better in a file.
                "position": [float(v) + 0.0 for v in swap_lps_ras(ras)],
                "positionStatus": "defined",
            }
            for i, (label, ras) in enumerate(points, start=1)
        ],
    }


def _write(path: Path, markups: list[dict[str, Any]], case: CaseIdentity | None) -> None:
    data: dict[str, Any] = {"@schema": _SCHEMA, "markups": markups}
    if case is not None:
        data |= case_fingerprint(case)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
