"""Places each newest image in RAS at its own time: it waits for the poses that bracket it, and is never re-stamped."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nav.config.room import ImageStreamConfig, RoomConfig
from nav.geometry.frames import TransformName
from nav.geometry.graph import FrameGraph
from nav.geometry.poses import NotYet, PoseRefusal
from nav.geometry.rigid import PixelMap
from nav.guidance.health import StreamFinding
from nav.imaging.blend import grey_plane
from nav.runtime.image_place import misplaced
from nav.runtime.messages import ImageMessage
from nav.runtime.snapshot import TrackedImage

__all__ = ["ImagePlacer"]


@dataclass(slots=True, eq=False)
class _Slot:
    config: ImageStreamConfig
    pixel_map: PixelMap | None
    waiting: ImageMessage | None = None
    waiting_acquired_ns: int = 0
    shown: TrackedImage | None = None
    refusal: str = ""
    problem: str = ""
    misplaced: StreamFinding | None = None


class ImagePlacer:
    """One slot per image stream. Lives on the compute thread.

    An image placed by calibration needs ``<frame>To<Probe>`` among the pixel calibrations; the frame it leads to must
    be joined to RAS by the graph at the image's acquisition time.
    """

    def __init__(self, room: RoomConfig, graph: FrameGraph) -> None:
        self._graph = graph
        self._ct_frame = room.ct_frame
        self._anatomy = np.empty((0, 3))
        maps = {c.pixel_map().name.from_frame: c.pixel_map() for c in room.calibrations if c.kind == "pixels"}
        self._slots = {
            image.name: _Slot(image, maps.get(image.frame)) for source in room.sources for image in source.images
        }

    def set_anatomy(self, points_ras: NDArray[np.float64]) -> None:
        """The (n, 3) points of the case, RAS mm, that an image of the whole body must show."""
        self._anatomy = points_ras

    def take(self, config: ImageStreamConfig, message: ImageMessage, acquired_ns: int) -> None:
        """The newest image of a stream; replaces one that still waits."""
        slot = self._slots[config.name]
        slot.waiting, slot.waiting_acquired_ns = message, acquired_ns
        slot.refusal = slot.problem = ""
        if config.role == "ultrasound":
            # What cannot be drawn is refused here and said, not by the thread that draws.
            try:
                slot.waiting = replace(message, array=grey_plane(message.array)[np.newaxis])
            except ValueError as error:
                slot.problem, slot.waiting = str(error), None

    def newest(self, role: str, now_ns: int) -> TrackedImage | None:
        """The newest placed image of a role within its stream's limit; None otherwise, never an old one."""
        for slot in self._slots.values():
            if slot.config.role != role:
                continue
            self._try(slot)
            shown = slot.shown
            if shown is not None and now_ns - shown.acquired_ns > self._hide_ms(slot) * 1e6:
                slot.shown = shown = None
            return shown
        return None

    @staticmethod
    def _hide_ms(slot: _Slot) -> float:
        # An overlay of a live image disappears sooner than a number: 200 ms, or 5 periods of a slow stream.
        return max(200.0, 5.0 * slot.config.period_ms)

    def problems(self) -> tuple[str, ...]:
        """What is wrong with the images themselves, one text per stream concerned (a late pose is no such problem)."""
        return tuple(f"{slot.config.name}: {slot.problem}" for slot in self._slots.values() if slot.problem)

    def findings(self) -> dict[str, StreamFinding]:
        """Stream name → what looks wrong with the place of its newest image."""
        return {slot.config.name: slot.misplaced for slot in self._slots.values() if slot.misplaced is not None}

    def refusal(self, role: str) -> str:
        """Why the newest image of a role could not be placed; empty when it could."""
        return next((s.refusal for s in self._slots.values() if s.config.role == role), "")

    def _try(self, slot: _Slot) -> None:
        message = slot.waiting
        if message is None:
            return
        time_ns = slot.waiting_acquired_ns
        try:
            if slot.config.placed_by == "calibration":
                if slot.pixel_map is None:
                    raise ValueError(f"no pixel calibration from frame {slot.config.frame}; add it to the room")
                pixels = _shifted(slot.pixel_map, message.index_offset)
            else:
                pixels = PixelMap.from_matrix(message.mm_from_index, _header_name(slot.config.frame))
            if pixels.name.to_frame != self._ct_frame:
                timed = self._graph.lookup(self._ct_frame, pixels.name.to_frame, time_ns)
                pixels = pixels.placed_by(timed.pose)
        except NotYet:
            return
        except PoseRefusal as error:
            slot.refusal, slot.waiting = str(error), None
            return
        except ValueError as error:
            slot.problem, slot.waiting = str(error), None
            return
        slot.waiting = None
        if slot.config.role == "fluoro" and slot.config.placed_by == "header":
            rows, columns = message.array.shape[1:3]
            slot.misplaced = misplaced(pixels.matrix, (columns, rows), self._anatomy)
        slot.shown = TrackedImage(
            message.device, message.array, pixels.matrix, time_ns, message.arrival_ns, message.sequence
        )


def _shifted(pixels: PixelMap, offset: tuple[int, int, int]) -> PixelMap:
    """The map of a sub-volume, whose first voxel is ``offset`` of the whole image that was calibrated."""
    if not any(offset):
        return pixels
    matrix = pixels.matrix.copy()
    matrix[:3, 3] = pixels.apply(offset)
    return PixelMap.from_matrix(matrix, pixels.name)


def _header_name(frame: str) -> TransformName:
    return TransformName.of("Voxel", frame)
