"""Geometry that a person has marked: POINT and TRAJ."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from drivers.openigtlink.contents.base import Content, need_float32, need_length, need_multiple, pack_numbers
from drivers.openigtlink.errors import EncodeError
from drivers.openigtlink.text import field_text, fixed_text

__all__ = ["Point", "PointContent", "Trajectory", "TrajectoryContent"]

_POINT = struct.Struct(">64s32s4B3ff20s")
_TRAJECTORY = struct.Struct(">64s32sbb4B3f3ff20s")

Rgba = tuple[int, int, int, int]
Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """One element of POINT.

    Attributes
    ----------
    position : (x, y, z)
        mm.
    diameter : float
        mm; 0 for a point without size. The C library calls it the radius.
    group, owner : str
        For example "Labeled Point" or "Landmark"; device name of the image it belongs to.
    """

    name: str
    position: Vector
    group: str = ""
    rgba: Rgba = (255, 0, 0, 255)
    diameter: float = 0.0
    owner: str = ""


@dataclass(frozen=True, slots=True)
class PointContent(Content):
    """POINT: points or fiducials."""

    type_name: ClassVar[str] = "POINT"
    points: tuple[Point, ...]

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read n x 136 bytes; `ContentError` for any other size."""
        need_multiple("POINT", raw, _POINT.size)
        return cls(
            tuple(
                Point(
                    name=field_text(v[0]),
                    group=field_text(v[1]),
                    rgba=(v[2], v[3], v[4], v[5]),
                    position=(v[6], v[7], v[8]),
                    diameter=v[9],
                    owner=field_text(v[10]),
                )
                for v in _POINT.iter_unpack(raw)
            )
        )

    def pack(self) -> bytes:
        """n x 136 bytes."""
        out = []
        for point in self.points:
            what = f"POINT {point.name!r}"
            need_length(f"{what} position", point.position, 3)
            need_length(f"{what} colour", point.rgba, 4)
            need_float32(what, (*point.position, point.diameter))
            out.append(
                pack_numbers(
                    _POINT,
                    what,
                    fixed_text(point.name, 64, "POINT name"),
                    fixed_text(point.group, 32, "POINT group"),
                    *point.rgba,
                    *point.position,
                    point.diameter,
                    fixed_text(point.owner, 20, "POINT owner"),
                )
            )
        return b"".join(out)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One element of TRAJ. ``kind``: 1 entry only, 2 target only, 3 both. Lengths in mm; the rest as in `Point`."""

    name: str
    entry: Vector
    target: Vector
    group: str = ""
    kind: int = 3
    rgba: Rgba = (255, 0, 0, 255)
    diameter: float = 0.0
    owner: str = ""
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class TrajectoryContent(Content):
    """TRAJ: planned paths, from entry to target."""

    type_name: ClassVar[str] = "TRAJ"
    trajectories: tuple[Trajectory, ...]

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read n x 150 bytes; `ContentError` for any other size."""
        need_multiple("TRAJ", raw, _TRAJECTORY.size)
        return cls(
            tuple(
                Trajectory(
                    name=field_text(v[0]),
                    group=field_text(v[1]),
                    kind=v[2],
                    reserved=v[3],
                    rgba=(v[4], v[5], v[6], v[7]),
                    entry=(v[8], v[9], v[10]),
                    target=(v[11], v[12], v[13]),
                    diameter=v[14],
                    owner=field_text(v[15]),
                )
                for v in _TRAJECTORY.iter_unpack(raw)
            )
        )

    def pack(self) -> bytes:
        """n x 150 bytes."""
        out = []
        for path in self.trajectories:
            what = f"TRAJ {path.name!r}"
            if path.kind not in (1, 2, 3):
                raise EncodeError(f"{what}: kind {path.kind}, allowed 1 (entry only), 2 (target only), 3 (both)")
            need_length(f"{what} entry", path.entry, 3)
            need_length(f"{what} target", path.target, 3)
            need_length(f"{what} colour", path.rgba, 4)
            need_float32(what, (*path.entry, *path.target, path.diameter))
            out.append(
                pack_numbers(
                    _TRAJECTORY,
                    what,
                    fixed_text(path.name, 64, "TRAJ name"),
                    fixed_text(path.group, 32, "TRAJ group"),
                    path.kind,
                    path.reserved,
                    *path.rgba,
                    *path.entry,
                    *path.target,
                    path.diameter,
                    fixed_text(path.owner, 20, "TRAJ owner"),
                )
            )
        return b"".join(out)
