"""The streams of a room: sender time to local time, every pose into the frame graph, the health of each stream."""

from __future__ import annotations

from dataclasses import dataclass

from nav.config.room import ImageStreamConfig, RoomConfig, SourceConfig, ToolStreamConfig
from nav.geometry.frames import TransformName
from nav.geometry.graph import FrameGraph
from nav.geometry.poses import PoseBuffer, PoseSample, PoseStatus
from nav.geometry.rigid import NotRigidError, Rigid
from nav.guidance.health import StreamHealth
from nav.runtime.health import StreamMonitor
from nav.runtime.messages import ImageMessage, LinkMessage, LinkState, Message, PoseMessage
from nav.runtime.sender_time import SenderTimeMapper

__all__ = ["ImageStream", "StreamSet", "ToolStream"]


@dataclass(frozen=True, slots=True, eq=False)
class ToolStream:
    """One tool of one source."""

    source: str
    config: ToolStreamConfig
    name: TransformName
    monitor: StreamMonitor


@dataclass(frozen=True, slots=True, eq=False)
class ImageStream:
    """One image device of one source."""

    source: str
    config: ImageStreamConfig
    monitor: StreamMonitor


class StreamSet:
    """Takes messages in and keeps what the lookups and the lamps need. Lives on the compute thread.

    Parameters
    ----------
    room : RoomConfig
    graph : FrameGraph
        Gets one moving edge per tool.
    """

    def __init__(self, room: RoomConfig, graph: FrameGraph) -> None:
        self.graph = graph
        self._mappers: dict[str, SenderTimeMapper] = {}
        self.tools: dict[str, ToolStream] = {}
        self.images: dict[tuple[str, str], ImageStream] = {}
        self._by_source: dict[str, list[StreamMonitor]] = {}
        for source in room.sources:
            self._add_source(source)

    def _add_source(self, source: SourceConfig) -> None:
        silent_ns = round(source.silent_after_s * 1e9)
        self._mappers[source.name] = SenderTimeMapper(
            round(source.offset_window_s * 1e9),
            round(source.fixed_delay_ms * 1e6),
            use_sender=source.stamps == "sender",
        )
        monitors = self._by_source.setdefault(source.name, [])
        for tool in source.tools:
            name = TransformName.parse(tool.transform)
            self.graph.add_moving(PoseBuffer(name, max_gap_ns=round(tool.gap_limit_ms * 1e6), hold_last=tool.hold_last))
            stream = ToolStream(source.name, tool, name, StreamMonitor(name.wire, "tool", tool, silent_ns))
            self.tools[name.wire] = stream
            monitors.append(stream.monitor)
        for image in source.images:
            monitor = StreamMonitor(image.name, "image", image, silent_ns)
            self.images[(source.name, image.device)] = ImageStream(source.name, image, monitor)
            monitors.append(monitor)

    # -- taking in -----------------------------------------------------------------------------------------------

    def acquired_ns(self, message: Message) -> int:
        """Local time at which the content of ``message`` was acquired."""
        return self._mappers[message.source].acquired_ns(message.sender_ns, message.arrival_ns, message.device)

    def on_link(self, message: LinkMessage) -> None:
        """The link of a source changed. A new connection may lead to another clock, so its offset is learned anew."""
        if message.state is LinkState.CONNECTED:
            self._mappers[message.source].reset()
        for monitor in self._by_source.get(message.source, ()):
            monitor.on_link(message.state, message.arrival_ns, message.detail)

    def on_any(self, message: Message) -> None:
        """Any message proves that the link speaks."""
        for monitor in self._by_source.get(message.source, ()):
            monitor.on_any_message(message.arrival_ns)

    def on_poses(self, message: PoseMessage) -> None:
        """Keep every pose of the tools this room knows; tools it does not know are ignored."""
        known = [(self.tools[r.name], r) for r in message.tools if r.name in self.tools]
        if not known:
            return
        acquired = self.acquired_ns(message)
        for stream, report in known:
            if stream.source != message.source:
                continue  # the configuration says which source this tool comes from
            pose: Rigid | None = None
            status = report.status
            if status is PoseStatus.OK and report.matrix is not None:
                try:
                    pose = Rigid.from_matrix(report.matrix, stream.name)
                except NotRigidError:
                    status = PoseStatus.INVALID
            elif status is PoseStatus.OK:
                status = PoseStatus.INVALID
            sample = PoseSample(pose, status, acquired, message.arrival_ns, message.sequence, message.sender_ns)
            if not self.graph.append(stream.name, sample):
                continue  # its time is not after the one before; the buffer counts it, and the stream ages
            if pose is None:
                stream.monitor.on_lost(status, message.arrival_ns)
            else:
                stream.monitor.on_sample(acquired, message.arrival_ns, pose.matrix.tobytes())

    def on_image(self, message: ImageMessage, *, used: bool) -> int | None:
        """Count an image; returns its acquisition time, or None for a device this room does not know."""
        stream = self.images.get((message.source, message.device))
        if stream is None:
            return None
        acquired = self.acquired_ns(message)
        stream.monitor.on_sample(acquired, message.arrival_ns, used=used)
        return acquired

    def on_overflow(self, source: str, count: int) -> None:
        """Images that were pushed out before a tick because the compute thread stalled."""
        for (of, _), stream in self.images.items():
            if of == source:
                stream.monitor.on_drop(count)
                return

    # -- reading out ---------------------------------------------------------------------------------------------

    def monitors(self) -> tuple[StreamMonitor, ...]:
        """Every stream's monitor, in the order of the configuration."""
        return tuple(m for monitors in self._by_source.values() for m in monitors)

    def health(self, now_ns: int) -> tuple[StreamHealth, ...]:
        """Health of every stream at ``now_ns``; also keeps the ages for the summary."""
        result = []
        for monitor in self.monitors():
            monitor.sample_age(now_ns)
            result.append(monitor.health(now_ns))
        return tuple(result)
