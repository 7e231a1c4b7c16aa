"""File work behind the window: find and open a CT, take a tumour, load landmarks, plans and registrations.

Every method may take seconds and is called from a worker thread; what fails raises with a text for the person and
leaves the case as it was.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from nav.config.room import RoomConfig
from nav.geometry.frames import TransformName
from nav.hud.session import FileProblem, Progress, SeriesChoice, TumourChoice
from nav.io.case import Case
from nav.io.checks import (
    Identifiers,
    check_inside_ct,
    identifiers_of_ct,
    identifiers_of_markups,
    identifiers_of_metadata,
    require_same_case,
)
from nav.io.ct import list_series, load_ct
from nav.io.itk_transform import read_itk_rigid
from nav.io.labels import LabelMap, LoadedMask, extract_mask, read_label_map
from nav.io.markups import Markups, read_markups
from nav.runtime.events import Point

__all__ = ["CaseFiles"]

#: A picked point this far from a piece still means it.
PICK_REACH_MM = 5.0
#: Larger labels are organs, not tumours.
MAX_TUMOUR_ML = 1000.0


class CaseFiles:
    """Turns files into cases. Keeps the label map that was read last, so that choosing a piece reads nothing again."""

    def __init__(self, room: RoomConfig) -> None:
        self._room = room
        self._label_map: tuple[str, LabelMap] | None = None

    def scan_ct(self, path: str, progress: Progress) -> tuple[SeriesChoice, ...]:
        """The CT series at ``path``; one nameless choice for an image file."""
        progress(-1.0, "Looking for series")
        usable = [s for s in list_series(path) if not s.note]
        if not usable and Path(path).is_file():
            return (SeriesChoice("", Path(path).suffix.lstrip(".").upper() + " image"),)
        if not usable:
            raise FileProblem(f"{path}: no CT series in this folder; choose the folder that holds the slices")
        return tuple(
            SeriesChoice(
                str(s.index),
                f"{s.index}: {s.slices} slices of {s.columns}×{s.rows}, {s.description or 'no description'}",
            )
            for s in usable
        )

    def load_ct(self, path: str, key: str, progress: Progress) -> Case:
        """Open a series as a new case."""
        loaded = load_ct(
            path, series=int(key) if key else None, progress=lambda n, of: progress(n / max(of, 1), "Reading slices")
        )
        return Case(loaded.identity, loaded.volume, warnings=loaded.warnings)

    def _labels(self, path: str, progress: Progress) -> LabelMap:
        if self._label_map is None or self._label_map[0] != path:
            progress(-1.0, "Reading the label map")
            self._label_map = (path, read_label_map(path))
        return self._label_map[1]

    def _extract(self, case: Case, labels: LabelMap, label: int, component: int | None) -> LoadedMask:
        return extract_mask(labels, label=label, ct=case.ct, component=component)

    def scan_tumour(self, case: Case, path: str, progress: Progress) -> tuple[TumourChoice, ...]:
        """Every piece of every label, the largest first within its label."""
        labels = self._labels(path, progress)
        counts = np.bincount(np.asarray(labels.volume.array).ravel())
        # A tumour is not the body: labels beyond a litre are left out; splitting those into pieces takes seconds.
        most = MAX_TUMOUR_ML * 1000.0 / labels.volume.voxel_volume_mm3
        values = [int(v) for v in np.flatnonzero(counts) if v and counts[v] <= most]
        if not values:
            raise FileProblem(f"{Path(path).name}: no label of {MAX_TUMOUR_ML:.0f} ml or less; choose a tumour mask")
        choices: list[TumourChoice] = []
        for n, value in enumerate(values):
            progress(n / len(values), f"Pieces of label {value}")
            name = labels.names.get(value, "") or f"label {value}"
            for piece in self._extract(case, labels, value, None).components:
                text = f"{name}, piece {piece.index}: {piece.volume_ml:.2f} ml"
                choices.append(TumourChoice(f"{value}:{piece.index}", text, piece.volume_ml, piece.centroid_ras))
        return tuple(choices)

    def load_tumour(self, case: Case, path: str, key: str, progress: Progress) -> Case:
        """Take the piece ``key`` (``label:piece``) of the label map at ``path``."""
        label, _, component = key.partition(":")
        labels = self._labels(path, progress)
        mask = self._extract(case, labels, int(label), int(component) if component else None)
        self._same_case(case, identifiers_of_metadata(mask.metadata, Path(path).name))
        return replace(case, tumour=mask.volume, warnings=case.warnings + mask.warnings)

    def pick_tumour(self, case: Case, path: str, ras: Point, progress: Progress) -> Case:
        """Take the piece that contains ``ras``, or the nearest within `PICK_REACH_MM`."""
        labels = self._labels(path, progress)
        grid = labels.volume
        reach = np.ceil(PICK_REACH_MM / grid.spacing_mm).astype(int)
        centre = np.rint(grid.to_index(ras)).astype(int)
        low, high = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, grid.size)
        if (low >= high).any():
            raise FileProblem(f"the point lies outside {Path(path).name}; pick inside the tumour")
        block = np.asarray(grid.array[low[2] : high[2], low[1] : high[1], low[0] : high[0]])
        found = np.argwhere(block != 0)[:, ::-1] + low
        if not found.size:
            raise FileProblem(f"no label within {PICK_REACH_MM:.0f} mm of the point; pick inside the tumour")
        distances = np.linalg.norm(grid.to_ras(found) - np.array(ras), axis=1)
        nearest = found[int(distances.argmin())]
        label = int(np.asarray(grid.array)[nearest[2], nearest[1], nearest[0]])
        everything = self._extract(case, labels, label, None)
        point = grid.to_ras(nearest)
        for piece in everything.components:
            mask = self._extract(case, labels, label, piece.index)
            i, j, k = np.rint(mask.volume.to_index(point)).astype(int)
            shape = mask.volume.size
            if 0 <= i < shape[0] and 0 <= j < shape[1] and 0 <= k < shape[2] and mask.volume.array[k, j, i]:
                return self.load_tumour(case, path, f"{label}:{piece.index}", progress)
        raise FileProblem(f"label {label} has no piece at the point; choose one from the list")

    def _markups(self, case: Case, path: str, progress: Progress) -> Markups:
        progress(-1.0, "Reading markups")
        markups = read_markups(path)
        self._same_case(case, identifiers_of_markups(markups.identifiers, Path(path).name))
        return markups

    def load_landmarks(self, case: Case, path: str, progress: Progress) -> Case:
        """Landmarks from a markups file."""
        markups = self._markups(case, path, progress)
        if len(markups.landmarks) < 3:
            raise FileProblem(f"{Path(path).name}: {len(markups.landmarks)} points, at least 3 landmarks are needed")
        check_inside_ct(case.ct, landmarks=markups.landmarks)
        return replace(case, landmarks=markups.landmarks, warnings=case.warnings + markups.warnings)

    def load_plan(self, case: Case, path: str, progress: Progress) -> Case:
        """Planned paths from a markups file."""
        markups = self._markups(case, path, progress)
        if not markups.paths:
            raise FileProblem(f"{Path(path).name}: holds no line; a plan is a line from entry to target")
        check_inside_ct(case.ct, paths=markups.paths)
        return replace(case, paths=markups.paths, warnings=case.warnings + markups.warnings)

    def load_registration(self, path: str, progress: Progress) -> tuple[float, ...]:
        """Reference to RAS as 16 numbers, row-major, from an ITK transform file."""
        progress(-1.0, "Reading the registration")
        rigid = read_itk_rigid(path, TransformName.of(self._room.reference_frame, self._room.ct_frame))
        return tuple(float(v) for v in rigid.matrix.ravel())

    def _same_case(self, case: Case, stated: Identifiers) -> None:
        require_same_case(identifiers_of_ct(case.identity), [stated], show_identifying=self._room.privacy.show_patient)
