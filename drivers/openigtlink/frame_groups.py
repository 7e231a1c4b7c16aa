"""Which frames the names of a server's transforms speak of, and which of them its transforms join. Pure."""

from __future__ import annotations

from typing import Any

from nav.geometry.frames import FrameNameError, TransformName, check_frame_name

__all__ = ["FrameGroups"]

#: Names kept; a sender that invents names must not fill the memory.
NAMES = 1024


class FrameGroups:
    """Collects names and says which frames hang together."""

    def __init__(self) -> None:
        self._transforms: dict[str, TransformName | None] = {}
        self._images: dict[str, str] = {}

    def transform(self, name: str) -> None:
        """A pose stream's name, such as ``NeedleToTracker``."""
        if name in self._transforms or len(self._transforms) >= NAMES:
            return
        try:
            self._transforms[name] = TransformName.parse(name)
        except FrameNameError:
            self._transforms[name] = None

    def image(self, device: str) -> None:
        """An image's name: ``Image_Reference`` as PLUS has it says in which frame its pixels are placed."""
        if device in self._images or len(self._images) >= NAMES:
            return
        frame = device.partition("_")[2]
        try:
            self._images[device] = check_frame_name(frame) if frame else ""
        except FrameNameError:
            self._images[device] = ""

    def transforms(self) -> list[TransformName]:
        """Those that could be parsed."""
        return sorted(name for name in self._transforms.values() if name is not None)

    def without_frames(self) -> list[str]:
        """Names of pose streams that name no frames."""
        return sorted(name for name, parsed in self._transforms.items() if parsed is None)

    def groups(self) -> list[list[str]]:
        """Frames joined by transforms, largest group first; frames that only an image names stand alone."""
        parent: dict[str, str] = {}

        def root(frame: str) -> str:
            parent.setdefault(frame, frame)
            while parent[frame] != frame:
                frame = parent[frame]
            return frame

        for name in self.transforms():
            parent[root(name.from_frame)] = root(name.to_frame)
        for frame in self._images.values():
            if frame:
                root(frame)
        groups: dict[str, list[str]] = {}
        for frame in sorted(parent):
            groups.setdefault(root(frame), []).append(frame)
        return sorted(groups.values(), key=lambda group: (-len(group), group))

    def doubled(self) -> list[list[str]]:
        """Transforms that close a ring: the same pose would be known in two ways, which a frame graph refuses."""
        joined: dict[str, set[str]] = {}
        rings = []
        for name in self.transforms():
            seen, queue = {name.from_frame}, [name.from_frame]
            while queue:
                for other in joined.get(queue.pop(), ()):
                    if other not in seen:
                        seen.add(other)
                        queue.append(other)
            if name.to_frame in seen:
                rings.append([name.wire, name.from_frame, name.to_frame])
            joined.setdefault(name.from_frame, set()).add(name.to_frame)
            joined.setdefault(name.to_frame, set()).add(name.from_frame)
        return rings

    def missing(self) -> list[str]:
        """What stands between the frames and one whole: a sentence each."""
        groups = self.groups()
        said = [
            f"nothing joins {', '.join(group)} to {groups[0][0] if len(groups[0]) == 1 else ', '.join(groups[0])}"
            for group in groups[1:]
        ]
        said += [
            f"{wire} is one way too many from {a} to {b}: the other transforms join them already"
            for wire, a, b in self.doubled()
        ]
        if groups and not any("Reference" in group for group in groups):
            said.append(
                "no frame is called Reference: without a marker fixed to the patient, a moved tracker or patient "
                "goes unnoticed (or the room's reference_frame has another name)"
            )
        return said

    def report(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "transforms": [{"name": n.wire, "from": n.from_frame, "to": n.to_frame} for n in self.transforms()],
            "images": [{"name": name, "frame": frame or None} for name, frame in sorted(self._images.items())],
            "names_without_frames": self.without_frames(),
            "groups": self.groups(),
            "missing": self.missing(),
        }
