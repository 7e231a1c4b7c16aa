"""Collecting skin landmarks with the stylus: averaged touches, the growing fit, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nav.config.room import RoomConfig
from nav.geometry.frames import TransformName
from nav.geometry.graph import FrameGraph
from nav.geometry.poses import PoseRefusal
from nav.io.case import Landmark
from nav.registration.landmarks import LandmarkRegistration, RegistrationError, register_landmarks
from nav.runtime.snapshot import LandmarkRow

__all__ = ["LandmarkWorkup", "Touch", "TouchError", "average_tip"]

#: Fewer poses than this in a dwell are not averaged: the person is asked to hold still a little longer.
MIN_TOUCH_SAMPLES = 5
#: 3-D rms about the mean above which the stylus moved during the dwell.
MAX_TOUCH_SCATTER_MM = 2.0


class TouchError(ValueError):
    """A touch that cannot be taken; the text is for the person."""


@dataclass(frozen=True, slots=True, eq=False)
class Touch:
    """A tool tip averaged over a dwell: mm in the reference frame, 3-D rms scatter, samples averaged.

    ``covariance_mm2`` (3, 3) is that of the mean from tracker noise alone; None when it is not known.
    """

    point: tuple[float, float, float]
    scatter_mm: float
    samples: int
    covariance_mm2: NDArray[np.float64] | None = None


def average_tip(graph: FrameGraph, frame: str, tip: str, *, until_ns: int, dwell_s: float) -> Touch:
    """Average the origin of ``tip`` in ``frame`` over the valid poses acquired in the last ``dwell_s``.

    Raises
    ------
    TouchError
        Too few valid poses, or the tip moved.
    """
    since = until_ns - round(dwell_s * 1e9)
    points: list[NDArray[np.float64]] = []
    try:
        buffers = graph.moving_on_path(frame, tip)
    except PoseRefusal as error:
        raise TouchError(str(error)) from None
    times = sorted({s.acquired_ns for b in buffers for s in b.samples() if since <= s.acquired_ns <= until_ns})
    last = -(1 << 62)
    for time in times:
        # Tools of one tracker frame may carry stamps that differ by microseconds: one point per frame is enough.
        if time - last < 1_000_000:
            continue
        try:
            points.append(graph.lookup(frame, tip, time).pose.translation)
            last = time
        except PoseRefusal:
            continue
    if len(points) < MIN_TOUCH_SAMPLES:
        raise TouchError(
            f"only {len(points)} valid poses of {tip} in the last {dwell_s:.1f} s, {MIN_TOUCH_SAMPLES} are needed: "
            "keep the tool and the reference in view and hold still"
        )
    cloud = np.array(points)
    mean = cloud.mean(axis=0)
    scatter = float(np.sqrt(((cloud - mean) ** 2).sum(axis=1).mean()))
    if scatter > MAX_TOUCH_SCATTER_MM:
        raise TouchError(
            f"{tip} moved by {scatter:.1f} mm rms during the touch, limit {MAX_TOUCH_SCATTER_MM:.0f} mm: "
            "hold still and collect again"
        )
    return Touch((float(mean[0]), float(mean[1]), float(mean[2])), scatter, len(points))


class LandmarkWorkup:
    """The landmarks of a case and what was touched of them. Lives on the compute thread."""

    def __init__(self, room: RoomConfig, landmarks: tuple[Landmark, ...]) -> None:
        self._room = room
        self._name = TransformName.of(room.reference_frame, room.ct_frame)
        self._landmarks = landmarks
        self._touches: dict[str, Touch] = {}
        self._used: dict[str, bool] = {p.name: True for p in landmarks}
        self.active = landmarks[0].name if landmarks else ""
        self.fit: LandmarkRegistration | None = None
        self.problem = ""
        self._rows: tuple[LandmarkRow, ...] | None = None

    def names(self) -> tuple[str, ...]:
        """All landmark names in the order of the case."""
        return tuple(p.name for p in self._landmarks)

    def select(self, name: str) -> None:
        """Make ``name`` the next to be collected; unknown names are refused."""
        if name not in self._used:
            raise TouchError(f"landmark {name!r}: not one of this case ({', '.join(self.names()) or 'it has none'})")
        self.active = name

    def collect(self, name: str, touch: Touch) -> None:
        """Take a touch for ``name`` and move on to the next landmark that is not collected yet."""
        self.select(name)
        self._touches[name] = touch
        names = self.names()
        start = names.index(name)
        order = names[start + 1 :] + names[: start + 1]
        self.active = next((n for n in order if n not in self._touches), name)
        self._refit()

    def clear(self, name: str) -> None:
        """Forget a touch."""
        self._touches.pop(name, None)
        if name in self._used:
            self.active = name
        self._refit()

    def use(self, name: str, used: bool) -> None:
        """Include or exclude a landmark."""
        self.select(name)
        self._used[name] = used
        self._refit()

    def take_over(self, other: LandmarkWorkup) -> None:
        """Keep the touches of another work-up for landmarks that stand unchanged at the same place here."""
        same = {p for p in self._landmarks if p in other._landmarks}
        self._touches = {p.name: other._touches[p.name] for p in same if p.name in other._touches}
        self._used.update({p.name: other._used[p.name] for p in same})
        self._refit()

    def _refit(self) -> None:
        self._rows = None
        rows = [p for p in self._landmarks if p.name in self._touches]
        self.fit, self.problem = None, ""
        if sum(self._used[p.name] for p in rows) < 3:
            return
        sigma = self._room.uncertainty
        try:
            self.fit = register_landmarks(
                np.array([p.ras for p in rows]),
                np.array([self._touches[p.name].point for p in rows]),
                name=self._name,
                labels=[p.name for p in rows],
                used=[self._used[p.name] for p in rows],
                moving_covariances=self._covariances([self._touches[p.name] for p in rows]),
                prior_rms_mm=float(np.hypot(sigma.landmark_rms_mm, sigma.ct_landmark_rms_mm)),
            )
        except RegistrationError as error:
            self.problem = str(error)
            return
        if self.fit.order_warning is not None:
            self.problem = self.fit.order_warning.text

    @staticmethod
    def _covariances(touches: list[Touch]) -> NDArray[np.float64] | None:
        known = [t.covariance_mm2 for t in touches if t.covariance_mm2 is not None]
        return np.array(known) if len(known) == len(touches) else None

    def rows(self) -> tuple[LandmarkRow, ...]:
        """The table: one row per landmark of the case (made anew after a change only: every tick asks for it)."""
        if self._rows is None:
            self._rows = self._make_rows()
        return self._rows

    def _make_rows(self) -> tuple[LandmarkRow, ...]:
        residuals: dict[str, float] = {}
        if self.fit is not None:
            collected = [p.name for p in self._landmarks if p.name in self._touches]
            residuals = dict(zip(collected, map(float, self.fit.residuals_mm), strict=True))
        rows = []
        for p in self._landmarks:
            touch = self._touches.get(p.name)
            row = LandmarkRow(
                p.name, p.ras, touch is not None, touch is not None and self._used[p.name], residuals.get(p.name)
            )
            rows.append(row if touch is None else replace(row, scatter_mm=touch.scatter_mm))
        return tuple(rows)
