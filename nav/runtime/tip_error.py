"""Gathers what the uncertainty of the tip rests on at one moment: lever arms, speed, latency, calibration."""

from __future__ import annotations

from nav.config.room import RoomConfig
from nav.geometry.graph import FrameGraph
from nav.geometry.poses import PoseRefusal, TimedPose
from nav.geometry.rigid import Rigid
from nav.guidance.numbers import TipUncertainty
from nav.guidance.uncertainty import tip_uncertainty
from nav.registration.landmarks import LandmarkRegistration

__all__ = ["TipErrorModel"]

#: Span over which the tip's speed is taken.
SPEED_SPAN_NS = 150_000_000


class TipErrorModel:
    """Applies `nav.guidance.uncertainty.tip_uncertainty` to the frames of one room."""

    def __init__(self, room: RoomConfig) -> None:
        self._room = room
        self._tip = room.rigid_calibration(room.needle_frame)
        self._registration = room.rigid_calibration(room.reference_frame, room.ct_frame)

    @property
    def tip_calibration(self) -> str:
        """Provenance of the needle tip: ``calibrated`` when the tracker reports the tip itself."""
        return "calibrated" if self._tip is None else self._tip.provenance

    def at(
        self,
        graph: FrameGraph,
        tip: TimedPose,
        registration: LandmarkRegistration | None,
        method: str,
        now_ns: int,
    ) -> TipUncertainty:
        """Uncertainty of the tip shown at ``now_ns``."""
        stated = None
        if method in ("assumed", "file") and self._registration is not None:
            stated = self._registration.sigma_mm
        return tip_uncertainty(
            ras_from_tip=tip.pose,
            config=self._room.uncertainty,
            registration=registration,
            assumed=method == "assumed",
            stated_registration_rms_mm=stated,
            ras_from_needle=self._marker(graph, self._room.marker_of(self._room.needle_frame), tip.time_ns),
            ras_from_reference=self._reference(graph, tip.time_ns),
            tip_calibrated=self.tip_calibration == "calibrated",
            tip_calibration_rms_mm=None if self._tip is None else self._tip.sigma_mm,
            speed_mm_s=self._speed(graph, tip),
            latency_s=(now_ns - tip.time_ns) / 1e9,
        )

    def _marker(self, graph: FrameGraph, frame: str | None, time_ns: int) -> Rigid | None:
        if frame is None or frame == self._room.ct_frame:
            return None
        try:
            return graph.lookup(self._room.ct_frame, frame, time_ns).pose
        except PoseRefusal:
            return None

    def _reference(self, graph: FrameGraph, time_ns: int) -> Rigid | None:
        """Pose of the reference marker; None when no tracked marker lies between it and the needle."""
        reference = self._room.reference_frame
        moving = graph.moving_on_path(self._room.ct_frame, self._room.needle_frame)
        if not any(reference == b.name.from_frame for b in moving):
            return None
        return self._marker(graph, reference, time_ns)

    def _speed(self, graph: FrameGraph, tip: TimedPose) -> float:
        """Mean speed of the tip over the last `SPEED_SPAN_NS`, mm/s; 0 when it is not known that far back."""
        try:
            before = graph.lookup(self._room.ct_frame, self._room.needle_frame, tip.time_ns - SPEED_SPAN_NS)
        except PoseRefusal:
            return 0.0
        moved = tip.pose.translation - before.pose.translation
        # Only along the needle: tracker noise across it is in the budget already.
        return abs(float(moved @ tip.pose.rotation[:, 2])) / (SPEED_SPAN_NS / 1e9)
