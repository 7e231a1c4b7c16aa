"""A case: the pre-operative CT and what was drawn on it, all in RAS."""

from __future__ import annotations

from dataclasses import dataclass

from nav.geometry.volume import Volume

__all__ = ["Case", "CaseIdentity", "Landmark", "PlannedPath"]


@dataclass(frozen=True, slots=True)
class CaseIdentity:
    """Who and what this is. Everything but ``pseudonym`` stays off the screen and out of files by default."""

    pseudonym: str
    patient_name: str = ""
    patient_id: str = ""
    study_uid: str = ""
    series_uid: str = ""
    frame_of_reference_uid: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Landmark:
    """A named point, RAS mm."""

    name: str
    ras: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class PlannedPath:
    """A planned needle path, RAS mm.

    Attributes
    ----------
    score : float or None
        Of a planner's candidate, 0 to 1, 1 is best; None for a path that nobody has judged.
    criteria : tuple of (name, value)
        What the score is made of, each 0 to 1.
    setting : str
        Applicator, power and time that were planned for it, as text; empty when none were.
    """

    name: str
    entry_ras: tuple[float, float, float]
    target_ras: tuple[float, float, float]
    score: float | None = None
    criteria: tuple[tuple[str, float], ...] = ()
    setting: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Everything pre-operative.

    Attributes
    ----------
    ct : Volume
        int16 HU.
    tumour : Volume or None
        uint8 0/1 on any grid that lies within the CT.
    vessels, bones : Volume or None
        uint8 0/1, for the 3-D view and the plan.
    landmarks : tuple of Landmark
        On the skin, for registration.
    """

    identity: CaseIdentity
    ct: Volume
    tumour: Volume | None = None
    vessels: Volume | None = None
    bones: Volume | None = None
    landmarks: tuple[Landmark, ...] = ()
    divots: tuple[Landmark, ...] = ()
    paths: tuple[PlannedPath, ...] = ()
    warnings: tuple[str, ...] = ()
