"""Do these files belong together? Identifiers, sides and places of a CT, its masks, landmarks and plans compared.

A field is compared only where both sides state it: most masks and plans state nothing, and that is no agreement but
only no contradiction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from nav.geometry.volume import Volume
from nav.io.case import CaseIdentity, Landmark, PlannedPath
from nav.io.errors import CaseMismatchError
from nav.io.labels import mirrored_fit
from nav.io.markups import fingerprint

__all__ = [
    "Identifiers",
    "Mismatch",
    "check_inside_ct",
    "compare",
    "identifiers_of_ct",
    "identifiers_of_markups",
    "identifiers_of_metadata",
    "masked",
    "require_same_case",
]

#: Farther than this outside the CT a skin landmark cannot be meant, mm: skin stands at the edge of the field of view,
#: and a divot or needle entry may lie on a marker just above it.
OUTSIDE_TOLERANCE_MM = 20.0


@dataclass(frozen=True, slots=True)
class Identifiers:
    """What a file says about whose it is. Empty: not stated.

    ``frame_of_reference_fingerprint`` is that of the UID (`nav.io.markups.fingerprint`).
    """

    source: str
    patient_name: str = ""
    patient_id: str = ""
    study_uid: str = ""
    frame_of_reference_uid: str = ""
    laterality: str = ""
    pseudonym: str = ""
    frame_of_reference_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One disagreement: what, and the two values side by side (identifying values masked unless privacy allows)."""

    what: str
    first_source: str
    first_value: str
    second_source: str
    second_value: str

    def line(self) -> str:
        """One line for a message."""
        return (
            f"{self.what}: {self.first_source} says {self.first_value}, {self.second_source} says {self.second_value}"
        )


def masked(value: str) -> str:
    """An identifying value so that two can be told apart but not read: two characters, length, short hash."""
    digest = hashlib.sha256(value.encode()).hexdigest()[:4]
    shown = value[:2] if len(value) > 4 else ""
    return f"{shown}… ({len(value)} characters, #{digest})"


_FIELDS = (
    ("patient name", "patient_name", True),
    ("patient ID", "patient_id", True),
    ("study UID", "study_uid", True),
    ("frame of reference UID", "frame_of_reference_uid", True),
    ("frame of reference", "frame_of_reference_fingerprint", False),
    ("laterality", "laterality", False),
)


def _normal(field: str, value: str) -> str:
    text = value.strip()
    if field == "patient_name":
        # Components are separated by ^ or blanks depending on the writer; trailing separators mean nothing.
        return " ".join(text.replace("^", " ").split()).casefold()
    if field == "laterality":
        return {"LEFT": "L", "RIGHT": "R", "BOTH": "B"}.get(text.upper(), text.upper())
    return text


def compare(first: Identifiers, second: Identifiers, *, show_identifying: bool = False) -> list[Mismatch]:
    """Every field that both state and that differs."""
    found: list[Mismatch] = []
    for what, field, identifying in _FIELDS:
        a, b = _normal(field, getattr(first, field)), _normal(field, getattr(second, field))
        if not a or not b or a == b:
            continue
        if field == "frame_of_reference_fingerprint" and first.frame_of_reference_uid and second.frame_of_reference_uid:
            continue  # the UIDs themselves were compared
        if field == "laterality" and "B" in (a, b):
            continue
        shown = [v if show_identifying or not identifying else masked(v) for v in (a, b)]
        found.append(Mismatch(what, first.source, shown[0], second.source, shown[1]))
    # The pseudonym stands for study and series: another series of the same frame of reference is no contradiction.
    same_frame = (
        first.frame_of_reference_fingerprint != ""
        and first.frame_of_reference_fingerprint == second.frame_of_reference_fingerprint
    )
    if first.pseudonym and second.pseudonym and first.pseudonym != second.pseudonym and not same_frame:
        found.append(Mismatch("case", first.source, first.pseudonym, second.source, second.pseudonym))
    return found


def identifiers_of_ct(identity: CaseIdentity, laterality: str = "", source: str = "the CT") -> Identifiers:
    """What the CT states."""
    return Identifiers(
        source=source,
        patient_name=identity.patient_name,
        patient_id=identity.patient_id,
        study_uid=identity.study_uid,
        frame_of_reference_uid=identity.frame_of_reference_uid,
        laterality=laterality,
        pseudonym=identity.pseudonym,
        frame_of_reference_fingerprint=fingerprint(identity.frame_of_reference_uid),
    )


_METADATA_KEYS = {
    "patient_name": ("00100010", "patientname"),
    "patient_id": ("00100020", "patientid"),
    "study_uid": ("0020000d", "studyinstanceuid"),
    "frame_of_reference_uid": ("00200052", "frameofreferenceuid"),
    "laterality": ("00200060", "00200062", "laterality", "imagelaterality"),
    "pseudonym": ("pseudonym", "ablationnavpseudonym"),
}


def identifiers_of_metadata(metadata: Mapping[str, str], source: str) -> Identifiers:
    """What the header entries of an image file state.

    Recognised however they are spelled: ``0010|0020``, ``DICOM_0010_0020``, ``DICOM.PatientID``, ``PatientID``.
    """
    plain: dict[str, str] = {}
    for key, value in metadata.items():
        short = "".join(c for c in key.lower() if c.isalnum()).removeprefix("dicom")
        if value.strip():
            plain[short] = value.strip()
    values = {field: next((plain[k] for k in keys if k in plain), "") for field, keys in _METADATA_KEYS.items()}
    return Identifiers(source=source, **values)


def identifiers_of_markups(identifiers: Mapping[str, str], source: str) -> Identifiers:
    """What a markups file states in its ``ablationNav`` object."""
    known = identifiers_of_metadata({k: v for k, v in identifiers.items() if k != "frameOfReferenceSha256"}, source)
    return Identifiers(
        source=source,
        patient_name=known.patient_name,
        patient_id=known.patient_id,
        study_uid=known.study_uid,
        frame_of_reference_uid=known.frame_of_reference_uid,
        laterality=known.laterality,
        pseudonym=known.pseudonym,
        frame_of_reference_fingerprint=identifiers.get("frameOfReferenceSha256", "")
        or fingerprint(known.frame_of_reference_uid),
    )


def require_same_case(first: Identifiers, others: Iterable[Identifiers], *, show_identifying: bool = False) -> None:
    """Stop when any of ``others`` contradicts ``first``; every contradiction is listed.

    Raises
    ------
    CaseMismatchError
    """
    found = [m for other in others for m in compare(first, other, show_identifying=show_identifying)]
    if found:
        raise CaseMismatchError(
            "these files do not belong together; nothing was loaded:\n" + "\n".join(f"  {m.line()}" for m in found),
            tuple(found),
        )


def check_inside_ct(ct: Volume, landmarks: Iterable[Landmark] = (), paths: Iterable[PlannedPath] = ()) -> None:
    """Landmarks and entries must lie in the CT or within `OUTSIDE_TOLERANCE_MM` of it, targets inside.

    Raises
    ------
    CaseMismatchError
        Naming every point that does not, with its place, and whether swapped sides would explain it.
    """
    points: list[tuple[str, tuple[float, float, float], float]] = [
        (f"landmark {mark.name!r}", mark.ras, OUTSIDE_TOLERANCE_MM) for mark in landmarks
    ]
    for path in paths:
        points.append((f"entry of {path.name!r}", path.entry_ras, OUTSIDE_TOLERANCE_MM))
        points.append((f"target of {path.name!r}", path.target_ras, 0.0))
    outside = [(what, ras) for what, ras, tolerance in points if _distance_outside_mm(ct, ras) > tolerance]
    if not outside:
        return
    corners = ct.corners_ras()
    extent = ", ".join(
        f"{n} {a:.1f} to {b:.1f}" for n, a, b in zip("RAS", corners.min(axis=0), corners.max(axis=0), strict=True)
    )
    swap = mirrored_fit(np.array([ras for _, ras in outside]), ct)
    hint = f"\n  they would lie inside if {swap}: check the coordinate system of the file" if swap else ""
    lines = [f"  {what} at ({ras[0]:.1f}, {ras[1]:.1f}, {ras[2]:.1f}) RAS mm" for what, ras in outside]
    raise CaseMismatchError(
        f"outside the CT, which reaches from {extent} RAS mm; nothing was loaded:\n" + "\n".join(lines) + hint
    )


def _distance_outside_mm(ct: Volume, ras: tuple[float, float, float]) -> float:
    """Distance from the CT's box, 0 inside; along the grid's axes, so exact for any box with square corners."""
    index = ct.to_index(ras)
    nearest = np.clip(index, -0.5, np.array(ct.size) - 0.5)
    return float(np.linalg.norm(ct.ras_from_index[:3, :3] @ (index - nearest)))
