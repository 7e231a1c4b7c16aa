"""What the simulated operator and tracker know of the patient and the room: points and transforms, no volumes.

Small, and kept as JSON, so that the ground truth of a run can be computed again from its header alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nav.config.room import CalibrationConfig, RoomConfig
from nav.config.simulation import SimulationConfig
from nav.geometry.rigid import PixelMap, Rigid

__all__ = ["TOOLS", "PatientGeometry", "RoomError", "RoomSetup", "look_along", "unit"]

F64 = NDArray[np.float64]
Point = tuple[float, float, float]

#: Tools of the simulated tracker, in the order in which they are sent.
TOOLS = ("Needle", "Stylus", "Probe", "Reference")


class RoomError(RuntimeError):
    """The simulated room cannot be set up or has failed; the message says what to do."""


def unit(vector: Any) -> F64:
    """``vector`` scaled to length 1."""
    v = np.asarray(vector, dtype=np.float64)
    return v / np.linalg.norm(v)


def look_along(origin: Any, z_axis: Any, near_x: Any) -> F64:
    """(4, 4) pose with +Z along ``z_axis`` and +X as near to ``near_x`` as it can be; columns are the axes."""
    z = unit(z_axis)
    x = np.asarray(near_x, dtype=np.float64)
    x = x - (x @ z) * z
    if np.linalg.norm(x) < 1e-6:
        x = np.cross(z, [0.36, 0.48, 0.8])
    x = unit(x)
    m = np.eye(4)
    m[:3, 0], m[:3, 1], m[:3, 2], m[:3, 3] = x, np.cross(z, x), z, origin
    return m


@dataclass(frozen=True, slots=True)
class PatientGeometry:
    """Points of the patient at exhale (the state of the CT) and the fixed transforms of the room, RAS mm.

    Attributes
    ----------
    landmarks : tuple of (name, point)
        On the skin.
    landmark_normals : tuple of point
        Outward unit normals there.
    divot_name, divot : str, point
        A divot fixed beside the reference marker, for the check of the needle's tip.
    entry, target : point
        The planned path.
    tumour_labels : tuple of int
        Values in the label map; the first is the target's.
    probe_contact, probe_axis, probe_lateral : point
        Where the probe sits on the skin, its beam axis into the body, and the direction along its array.
    path_motion : tuple of float
        Breathing weight (0..1) of the tissue at equal steps from entry to target: how the needle is carried along.
    reference_marker : (16,) floats
        ``ras_from_reference``, row-major.
    tracker : (16,) floats
        ``ras_from_tracker``, row-major.
    """

    landmarks: tuple[tuple[str, Point], ...]
    landmark_normals: tuple[Point, ...]
    divot_name: str
    divot: Point
    entry: Point
    target: Point
    tumour_labels: tuple[int, ...]
    probe_contact: Point
    probe_axis: Point
    probe_lateral: Point
    path_motion: tuple[float, ...]
    reference_marker: tuple[float, ...]
    tracker: tuple[float, ...]

    @property
    def ras_from_reference(self) -> Rigid:
        """The true registration."""
        return Rigid.from_matrix(np.array(self.reference_marker).reshape(4, 4), "ReferenceToRas")

    @property
    def ras_from_tracker(self) -> F64:
        """(4, 4) pose of the tracker's camera."""
        return np.array(self.tracker).reshape(4, 4)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From `to_dict`, also after a trip through JSON."""
        values = {key: _tuples(value) for key, value in data.items()}
        return cls(**values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True, eq=False)
class RoomSetup:
    """The settings and the calibrations of the room's tools (true ones: the room is what the calibration says).

    Attributes
    ----------
    simulation : SimulationConfig
    needle_from_tip, stylus_from_tip : (4, 4) float64
    probe_from_image : (4, 4) float64
        Pixel map.
    """

    simulation: SimulationConfig
    needle_from_tip: F64
    stylus_from_tip: F64
    probe_from_image: F64

    @classmethod
    def from_room(cls, room: RoomConfig) -> Self:
        """Take the settings and calibrations out of a room configuration.

        Raises
        ------
        RoomError
            When a needed calibration is missing, or the configuration has no ``[simulation]``.
        """
        if room.simulation is None:
            raise RoomError(f"room {room.name!r} has no [simulation] table; only such a room can be simulated")
        by_name = {c.name: c for c in room.calibrations}

        def need(name: str) -> CalibrationConfig:
            if name not in by_name:
                raise RoomError(f"room {room.name!r}: the simulation needs a [[calibrations]] entry named {name}")
            return by_name[name]

        image: PixelMap = need("ImageToProbe").pixel_map()
        return cls(
            room.simulation,
            np.array(need("NeedleTipToNeedle").rigid().matrix),
            np.array(need("StylusTipToStylus").rigid().matrix),
            np.array(image.matrix),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "simulation": self.simulation.model_dump(),
            "needle_from_tip": self.needle_from_tip.tolist(),
            "stylus_from_tip": self.stylus_from_tip.tolist(),
            "probe_from_image": self.probe_from_image.tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From `to_dict`."""
        return cls(
            SimulationConfig.model_validate(data["simulation"]),
            np.array(data["needle_from_tip"]),
            np.array(data["stylus_from_tip"]),
            np.array(data["probe_from_image"]),
        )
