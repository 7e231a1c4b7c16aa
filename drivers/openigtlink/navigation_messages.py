"""What the navigation knows, as contents of messages: pure, from one snapshot each, RAS mm.

The rule of the screen holds on the wire: what the gate withholds is not sent, in no form. A lost tip is a status
without a pose, a zone that is withheld an empty surface, a margin null.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.openigtlink.contents import TrackedTool
from drivers.openigtlink.wire import DEVICE_NAME_BYTES, EncodeError
from nav.ablation.zone import Zone, ZoneUnion
from nav.ablation.zone_surface import zone_map, zone_mesh
from nav.config.room import RoomConfig
from nav.geometry.frames import TransformName
from nav.geometry.poses import PoseStatus
from nav.guidance.numbers import GateReason, GateState, GateVerdict
from nav.runtime.jsonio import compact_json
from nav.runtime.snapshot import NavigationSnapshot, ToolState

__all__ = [
    "PublishedNames",
    "blanked",
    "margin_text",
    "tip_metadata",
    "visible_tools",
    "zone_image",
    "zone_surface",
]

#: Voxel of the zone's label map, and what is empty around it, mm.
ZONE_VOXEL_MM, ZONE_BORDER_MM = 1.0, 2.0


@dataclass(frozen=True, slots=True)
class PublishedNames:
    """Device names on the wire, 20 bytes of ASCII each.

    Attributes
    ----------
    tools : dict
        Frame of a tip → ``<Frame>To<Ras>``.
    tip : str
        That of the needle.
    registration : str
        Patient reference to CT.
    """

    tip: str
    registration: str
    tools: dict[str, str]
    zone: str = "Zone"
    margin: str = "Margin"
    zone_map: str = "ZoneMap"
    tracking: str = "Tracking"

    @classmethod
    def of(cls, room: RoomConfig) -> PublishedNames:
        """The names in a room.

        Raises
        ------
        EncodeError
            When a frame's name is too long for the wire.
        """
        tips = dict.fromkeys((room.needle_frame, room.stylus_frame))
        tools = {frame: TransformName.of(frame, room.ct_frame).wire for frame in tips}
        registration = TransformName.of(room.reference_frame, room.ct_frame).wire
        for name in (*tools.values(), registration):
            if len(name.encode()) > DEVICE_NAME_BYTES:
                raise EncodeError(
                    f"published name {name!r}: {len(name.encode())} bytes, limit {DEVICE_NAME_BYTES}; "
                    "give the frame a shorter name in the room"
                )
        return cls(tools[room.needle_frame], registration, tools)


def blanked(snapshot: NavigationSnapshot, code: str, text: str) -> NavigationSnapshot:
    """``snapshot`` with everything withheld for a reason that it does not know itself (it is too old)."""
    reason = GateReason(code, GateState.BLANK, text)
    needle = ToolState(snapshot.needle.name, None, PoseStatus.INVALID, 0, 0, text)
    tools = {name: ToolState(name, None, PoseStatus.INVALID, 0, 0, text) for name in snapshot.tools}
    return replace(
        snapshot,
        needle=needle,
        tools=tools,
        guidance=None,
        placed=None,
        margin=None,
        uncertainty=None,
        gate=GateVerdict(GateState.BLANK, (reason, *snapshot.gate.reasons)),
    )


def tip_metadata(snapshot: NavigationSnapshot) -> dict[str, str]:
    """``TransformStatus`` as PLUS writes it, and the gate with the codes of its reasons."""
    status = snapshot.needle.status
    if snapshot.needle.pose is None and status is PoseStatus.OK:
        status = PoseStatus.INVALID  # the tracker sees it; the gate withholds it
    return {
        "TransformStatus": status.value,
        "GateState": snapshot.gate.state.name,
        "GateReasons": " ".join(reason.code for reason in snapshot.gate.reasons),
    }


def visible_tools(snapshot: NavigationSnapshot, names: PublishedNames) -> tuple[TrackedTool, ...]:
    """The tips that have a pose now, in RAS; the others are left out, which is how TDATA says lost."""
    states = (snapshot.needle, *snapshot.tools.values())
    return tuple(
        TrackedTool(names.tools[state.name], state.pose.matrix)
        for state in states
        if state.pose is not None and state.name in names.tools
    )


def zone_surface(zone: Zone | None) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """(n, 3) vertices, RAS mm, and (m, 3) triangles, counter-clockwise from outside; both empty without a zone."""
    if zone is None:
        return np.zeros((0, 3)), np.zeros((0, 3), np.int32)
    mesh = zone_mesh(zone)
    return mesh.vertices, mesh.triangles


def zone_image(zone: Zone) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Label map of the zone.

    Returns
    -------
    array : (k, j, i) uint8
        1 where the voxel's centre lies inside the zone, else 0.
    ras_from_index : (4, 4)
        Takes (i, j, k, 1) at voxel centres to RAS mm; axes along R, A, S.
    """
    if len(zone_mesh(zone).vertices) == 0:
        return np.zeros((1, 1, 1), np.uint8), np.eye(4)
    (volume,) = zone_map([zone], ZONE_VOXEL_MM, ZONE_BORDER_MM)
    return volume.array.astype(np.uint8), volume.ras_from_index


def margin_text(snapshot: NavigationSnapshot, acquired_utc_ns: int | None) -> str:
    """JSON with the numbers, their uncertainty, and the gate with its reasons; null for what is withheld.

    Keys and units: ``docs/publishing.md``.
    """
    guidance, margin, zone, uncertainty = snapshot.guidance, snapshot.margin, snapshot.zone, snapshot.uncertainty
    registration, setting = snapshot.registration, snapshot.setting
    data: dict[str, Any] = {
        "gate": snapshot.gate.state.name,
        "reasons": [{"code": r.code, "level": r.level.name, "text": r.text} for r in snapshot.gate.reasons],
        "acquired_utc_ns": acquired_utc_ns,
        "margin": None
        if margin is None
        else {
            "min_margin_mm": margin.min_margin_mm,
            "sigma_mm": margin.sigma_mm,
            "coverage": margin.coverage,
            "p_ge5": None if margin.chance is None else margin.chance.p_ge5,
            "worst_point_ras_mm": margin.worst_point_ras.tolist(),
        },
        "tip": None
        if guidance is None
        else {
            "ras_mm": guidance.tip_ras.tolist(),
            "tip_to_target_mm": guidance.tip_to_target_mm,
            "lateral_mm": guidance.lateral_mm,
            "depth_mm": guidance.depth_mm,
            "angle_deg": guidance.angle_deg,
            "tip_to_surface_mm": guidance.tip_to_surface_mm,
        },
        "uncertainty": None
        if uncertainty is None
        else {
            "rms_mm": uncertainty.rms_mm,
            "radius95_mm": uncertainty.radius95_mm,
            "calibrated": uncertainty.calibrated,
        },
        "zone": None
        if zone is None or setting is None
        else {
            "applicator": setting.device,
            "power_w": setting.power_w,
            "time_s": setting.time_s,
            "tissue": setting.tissue,
            "long_mm": None if isinstance(zone, ZoneUnion) else zone.long_mm,
            "short_mm": None if isinstance(zone, ZoneUnion) else zone.short_mm,
            "tier": zone.tier,
            "basis": zone.basis,
        },
        "registration": None
        if registration is None
        else {
            "method": registration.method,
            "generation": registration.generation,
            "fre_mm": registration.fre_mm,
            "tre_at_target_mm": registration.tre_at_target_mm,
        },
    }
    return compact_json(data).decode()
