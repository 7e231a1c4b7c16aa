"""Put a case together: CT, tumour, vessels, bones, landmarks and plan, or nothing when they do not belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nav.geometry.volume import Volume
from nav.io.case import Case, Landmark
from nav.io.checks import (
    Identifiers,
    check_inside_ct,
    identifiers_of_ct,
    identifiers_of_markups,
    identifiers_of_metadata,
    require_same_case,
)
from nav.io.ct import load_ct
from nav.io.errors import MarkupsError
from nav.io.labels import LabelMap, LoadedMask, extract_mask, read_label_map
from nav.io.markups import Markups, read_markups

__all__ = ["load_case"]

PathLike = Path | str
Labels = int | Sequence[int] | None


def load_case(
    ct_path: PathLike,
    *,
    series: str | int | None = None,
    tumour_path: PathLike | None = None,
    tumour_label: Labels = None,
    tumour_component: int | str | None = None,
    vessels: tuple[PathLike, Labels] | None = None,
    bones: tuple[PathLike, Labels] | None = None,
    landmarks_path: PathLike | None = None,
    divots_path: PathLike | None = None,
    plan_path: PathLike | None = None,
    pseudonym: str | None = None,
    show_identifying: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Case:
    """Load a case.

    Parameters
    ----------
    ct_path, series
        As in `nav.io.ct.load_ct`.
    tumour_path, tumour_label, tumour_component
        As in `nav.io.labels.extract_mask`.
    vessels, bones : (path, label or labels), optional
    landmarks_path : ``.mrk.json`` or ``.fcsv``, optional
    divots_path : as landmarks, optional
        Points of known place on which a tool's tip is checked.
    plan_path : ``.mrk.json`` with one Line per needle, optional
        Without it the case has no path.
    pseudonym : str, optional
        Instead of the one derived from the CT. The patient's name is never used.
    show_identifying : bool
        Show patient name and identifiers in mismatch messages (the configuration's privacy section allows it).
    progress : callable, optional
        Called with (done, total) while the CT is read, which is nearly all of the wait.

    Raises
    ------
    InputFileError
        One of its kinds (`nav.io.errors`); nothing is half-loaded.
    """
    ct = load_ct(ct_path, series=series, progress=progress)
    stated: list[Identifiers] = []
    warnings = list(ct.warnings)
    landmarks = _points(landmarks_path, stated, warnings)
    divots = _points(divots_path, stated, warnings)
    plan = Markups()
    if plan_path is not None:
        plan = _markups(plan_path, stated, warnings)
        if not plan.paths:
            raise MarkupsError(f"{plan_path}: holds no needle plan (a Line from entry to target is expected)")
    maps: dict[str, LabelMap] = {}

    def label_map(path: PathLike) -> LabelMap:
        key = str(Path(path).resolve())
        if key not in maps:
            maps[key] = read_label_map(path)
            stated.append(identifiers_of_metadata(maps[key].metadata, Path(path).name))
        return maps[key]

    for path in (tumour_path, vessels and vessels[0], bones and bones[0]):
        if path is not None:
            label_map(path)
    require_same_case(identifiers_of_ct(ct.identity, ct.laterality), stated, show_identifying=show_identifying)
    check_inside_ct(ct.volume, (*landmarks, *divots), plan.paths)

    def mask(path: PathLike, label: Labels, component: int | str | None) -> Volume:
        found: LoadedMask = extract_mask(
            label_map(path), label=label, ct=ct.volume, component=component, find_components=False
        )
        warnings.extend(found.warnings)
        return found.volume

    return Case(
        identity=replace(ct.identity, pseudonym=pseudonym) if pseudonym else ct.identity,
        ct=ct.volume,
        tumour=None if tumour_path is None else mask(tumour_path, tumour_label, tumour_component),
        vessels=None if vessels is None else mask(*vessels, None),
        bones=None if bones is None else mask(*bones, None),
        landmarks=landmarks,
        divots=divots,
        paths=plan.paths,
        warnings=tuple(warnings),
    )


def _markups(path: PathLike, stated: list[Identifiers], warnings: list[str]) -> Markups:
    markups = read_markups(path)
    stated.append(identifiers_of_markups(markups.identifiers, Path(path).name))
    warnings.extend(markups.warnings)
    return markups


def _points(path: PathLike | None, stated: list[Identifiers], warnings: list[str]) -> tuple[Landmark, ...]:
    if path is None:
        return ()
    found = _markups(path, stated, warnings).landmarks
    if not found:
        raise MarkupsError(f"{path}: holds no defined point (a Fiducial list is expected)")
    return found
