"""The streams of a room: sender time to local time, every pose into the frame graph, the health of each stream."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nav.config.room import ImageStreamConfig, RoomConfig, SourceConfig, ToolStreamConfig
from nav.geometry.frames import TransformName
from nav.geometry.graph import FrameGraph
from nav.geometry.poses import PoseBuffer, PoseSample, PoseStatus
from nav.geometry.rigid import NotRigidError, Rigid
from nav.guidance.health import StreamClock, StreamFinding, StreamHealth
from nav.runtime.health import StreamMonitor
from nav.runtime.messages import (
    ImageMessage,
    LinkMessage,
    LinkState,
    Message,
    PoseMessage,
    StatusMessage,
    ToolReport,
)
from nav.runtime.pose_checks import IDENTITY_PROBLEM, NOTICE_NS, is_exact_identity
from nav.runtime.sender_time import SenderTimeMapper
from nav.runtime.server_status import ServerStatus

__all__ = ["ImageStream", "StreamSet", "ToolStream"]

#: Clock numbers change slowly and cost percentiles: they are computed anew this often.
CLOCK_PERIOD_NS = 500_000_000
#: Crystals part by up to 100 ppm. A sender beyond this is being slewed, or its data comes later and later.
DRIFT_LIMIT_PPM = 300.0
#: The drift is judged once it has been watched for so long: before that, jitter passes for it.
DRIFT_AFTER_NS = 60_000_000_000
#: Data that comes this much later than before, at two looks in a row, is waiting somewhere.
SHIFT_LIMIT_MS = 50.0


@dataclass(slots=True, eq=False)
class _SourceClock:
    """How the clock of one source is followed."""

    mapper: SenderTimeMapper
    uses_stamps: bool
    first_ns: int | None = None
    stepped_ns: int | None = None


@dataclass(slots=True, eq=False)
class _StreamTiming:
    """The clock numbers of one stream as last computed, and the device that they are of."""

    source: str
    device: str | None = None
    computed_ns: int | None = None
    clock: StreamClock | None = None
    late_looks: int = 0


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
        self._clocks: dict[str, _SourceClock] = {}
        self._timing: dict[str, _StreamTiming] = {}
        self._of_device: dict[tuple[str, str], StreamMonitor] = {}
        #: Local UTC minus local monotonic clock, ns, for showing clock offsets; None: not known.
        self.utc_minus_local_ns: int | None = None
        self.tools: dict[str, ToolStream] = {}
        self.images: dict[tuple[str, str], ImageStream] = {}
        self._by_source: dict[str, list[StreamMonitor]] = {}
        for source in room.sources:
            self._add_source(source)

    def _add_source(self, source: SourceConfig) -> None:
        silent_ns = round(source.silent_after_s * 1e9)
        uses_stamps = source.stamps == "sender"
        mapper = SenderTimeMapper(
            round(source.offset_window_s * 1e9), round(source.fixed_delay_ms * 1e6), use_sender=uses_stamps
        )
        self._clocks[source.name] = _SourceClock(mapper, uses_stamps)
        monitors = self._by_source.setdefault(source.name, [])
        for tool in source.tools:
            name = TransformName.parse(tool.transform)
            self.graph.add_moving(PoseBuffer(name, max_gap_ns=round(tool.gap_limit_ms * 1e6), hold_last=tool.hold_last))
            monitor = StreamMonitor(name.wire, "tool", tool, silent_ns, reconnects=source.reconnect)
            stream = ToolStream(source.name, tool, name, monitor)
            self.tools[name.wire] = stream
            self._timing[name.wire] = _StreamTiming(source.name)
            self._of_device[source.name, tool.device] = stream.monitor
            monitors.append(stream.monitor)
        for image in source.images:
            monitor = StreamMonitor(image.name, "image", image, silent_ns, reconnects=source.reconnect)
            self.images[(source.name, image.device)] = ImageStream(source.name, image, monitor)
            self._of_device[source.name, image.device] = monitor
            self._timing[image.name] = _StreamTiming(source.name)
            monitors.append(monitor)

    # -- taking in -----------------------------------------------------------------------------------------------

    def acquired_ns(self, message: Message) -> int:
        """Local time at which the content of ``message`` was acquired."""
        clock = self._clocks[message.source]
        before = clock.mapper.steps
        acquired = clock.mapper.acquired_ns(message.sender_ns, message.arrival_ns, message.device)
        if clock.first_ns is None:
            clock.first_ns = message.arrival_ns
        if clock.mapper.steps != before:
            clock.stepped_ns = clock.first_ns = message.arrival_ns
        return acquired

    def on_link(self, message: LinkMessage) -> None:
        """The link of a source changed. A new connection may lead to another clock, so its offset is learned anew."""
        if message.state is LinkState.CONNECTED:
            clock = self._clocks[message.source]
            clock.mapper.reset()
            clock.first_ns = clock.stepped_ns = None
        for monitor in self._by_source.get(message.source, ()):
            monitor.on_link(message.state, message.arrival_ns, message.detail)

    def on_any(self, message: Message) -> None:
        """Any message proves that the link speaks."""
        for monitor in self._by_source.get(message.source, ()):
            monitor.on_any_message(message.arrival_ns)

    def on_status(self, message: StatusMessage) -> None:
        """What a server says of itself, or (under a stream's device name) of one device."""
        status = ServerStatus(message.code, message.subcode, message.error_name, message.text, message.arrival_ns)
        own = self._of_device.get((message.source, message.device))
        for monitor in self._by_source.get(message.source, ()) if own is None else (own,):
            monitor.on_status(status, own=own is not None)

    def on_poses(self, message: PoseMessage) -> None:
        """Keep every pose of the tools this room knows; tools it does not know are ignored."""
        # The configuration says which source a tool comes from.
        known = [
            (stream, report)
            for report in message.tools
            if (stream := self.tools.get(report.name)) is not None and stream.source == message.source
        ]
        if not known:
            return
        acquired = self.acquired_ns(message)
        for stream, report in known:
            monitor = stream.monitor
            self._note_stamp(message, stream.name.wire, monitor)
            pose, status, problem = self._judge(stream, report, acquired)
            sample = PoseSample(pose, status, acquired, message.arrival_ns, message.sequence, message.sender_ns)
            kept = self.graph.append(stream.name, sample)
            if pose is None:
                # Believed whatever its time: a report of loss can only tighten.
                monitor.on_lost(status, message.arrival_ns, problem)
            elif kept:
                monitor.on_matrix(pose.matrix)
                monitor.on_sample(acquired, message.arrival_ns, pose.matrix.tobytes())
            else:  # not after the one before: the stream ages
                monitor.on_rejected(acquired, message.arrival_ns, pose.matrix.tobytes())

    def _note_stamp(self, message: Message, name: str, monitor: StreamMonitor) -> None:
        self._timing[name].device = message.device
        if self._clocks[message.source].uses_stamps:
            monitor.on_stamp(message.sender_ns, message.arrival_ns)

    @staticmethod
    def _judge(stream: ToolStream, report: ToolReport, acquired_ns: int) -> tuple[Rigid | None, PoseStatus, str]:
        """The pose to keep, or None with a status other than OK and why what was sent is not believed."""
        if report.status is not PoseStatus.OK:
            return None, report.status, report.problem
        if report.matrix is None:
            return None, PoseStatus.INVALID, report.problem
        config = stream.config
        if (
            config.identity_is_lost
            and not config.hold_last
            and not report.status_stated
            and is_exact_identity(report.matrix)
        ):
            return None, PoseStatus.MISSING, IDENTITY_PROBLEM
        try:
            pose = Rigid.from_matrix(report.matrix, stream.name)
        except NotRigidError as error:
            return None, PoseStatus.INVALID, str(error)
        if stream.monitor.is_frozen(pose.matrix.tobytes(), acquired_ns):
            return None, PoseStatus.MISSING, "frozen: the same pose bit for bit, with stamps that move on"
        return pose, PoseStatus.OK, ""

    def on_image(self, message: ImageMessage, *, used: bool) -> int | None:
        """Count an image; returns its acquisition time, or None for a device this room does not know."""
        stream = self.images.get((message.source, message.device))
        if stream is None:
            return None
        acquired = self.acquired_ns(message)
        self._note_stamp(message, stream.config.name, stream.monitor)
        stream.monitor.on_sample(acquired, message.arrival_ns, used=used, findings=message.findings)
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
            timing = self._timing[monitor.name]
            self._look_at_clock(timing, now_ns)
            findings = self._clock_findings(timing, now_ns)
            result.append(monitor.health(now_ns, timing.clock, findings))
        return tuple(result)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Per stream: `StreamMonitor.summary` and ``clock`` (`StreamClock`, None for a stream without stamps)."""
        return {
            m.name: {**m.summary(), "clock": None if (c := self._timing[m.name].clock) is None else asdict(c)}
            for m in self.monitors()
        }

    def _look_at_clock(self, timing: _StreamTiming, now_ns: int) -> None:
        """Compute the clock numbers of a stream anew, at most every `CLOCK_PERIOD_NS`."""
        if timing.device is None:
            return
        if timing.computed_ns is not None and now_ns - timing.computed_ns < CLOCK_PERIOD_NS:
            return
        mapper = self._clocks[timing.source].mapper
        found = mapper.device(timing.device)
        if found is None:
            return
        timing.computed_ns = now_ns
        offset_ns = -found.offset_ns - (self.utc_minus_local_ns or 0)
        timing.clock = StreamClock(
            offset_ns * 1e-6, found.lag_ms, found.jitter_ms, found.drift_ppm, mapper.steps, found.shift_ms
        )
        timing.late_looks = timing.late_looks + 1 if found.shift_ms > SHIFT_LIMIT_MS else 0

    def _clock_findings(self, timing: _StreamTiming, now_ns: int) -> tuple[StreamFinding, ...]:
        source, clock = self._clocks[timing.source], timing.clock
        found = []
        if source.stepped_ns is not None and now_ns - source.stepped_ns <= NOTICE_NS:
            found.append(
                StreamFinding(
                    "clock_step",
                    "the sender's clock was set",
                    f"{source.mapper.steps} times so far",
                    "never during guidance",
                    "Wait; keep its time service from stepping the clock",
                )
            )
        if clock is None:
            return tuple(found)
        watched_ns = 0 if source.first_ns is None else now_ns - source.first_ns
        drift = clock.drift_ppm
        if drift is not None and watched_ns >= DRIFT_AFTER_NS and abs(drift) > DRIFT_LIMIT_PPM:
            found.append(
                StreamFinding(
                    "clock_drift",
                    "the sender's clock is being slewed, or its data comes later and later",
                    f"{drift:+.0f} ppm",
                    f"{DRIFT_LIMIT_PPM:.0f} ppm",
                    "Check its time synchronisation and the network",
                )
            )
        if timing.late_looks >= 2 and clock.shift_ms is not None:
            found.append(
                StreamFinding(
                    "data_late",
                    "data comes later than before",
                    f"{clock.shift_ms:.0f} ms",
                    f"{SHIFT_LIMIT_MS:.0f} ms",
                    "Check the network and the load of the sender",
                )
            )
        return tuple(found)
