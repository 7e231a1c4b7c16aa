"""What a server sends that can be read and yet looks wrong, seen over a whole conversation.

Nothing here opens a socket or reads a clock. The rules for poses, stamps and status are those of live guidance
(`nav.runtime.pose_checks`, `nav.runtime.server_status`), those for images are in `image_checks`.
"""

from __future__ import annotations

from dataclasses import replace

from drivers.openigtlink.contents import TRACKING_TYPES, ImageContent
from drivers.openigtlink.image_checks import Finding, check_image
from drivers.openigtlink.wire import DEVICE_NAME_BYTES, WireMessage
from nav.config.room import ImageStreamConfig, SourceConfig, ToolStreamConfig
from nav.geometry.frames import FrameNameError, TransformName
from nav.geometry.poses import PoseStatus
from nav.guidance.health import StreamFinding
from nav.runtime.messages import ImageMessage, Message, PoseMessage, StatusMessage, ToolReport, UnusedMessage
from nav.runtime.pose_checks import HeldWatch, RepeatWatch, ScaleWatch, StampWatch, is_exact_identity
from nav.runtime.sender_time import DeviceTiming, SenderTimeMapper
from nav.runtime.server_status import ServerStatus
from nav.runtime.streams import DRIFT_AFTER_NS, DRIFT_LIMIT_PPM

__all__ = ["Finding", "PlausibilityChecks"]

#: A pose stream counts as frozen after this (SlicerIGT's Watchdog waits as long).
FROZEN_NS = 500_000_000
#: Clocks further apart than this are not synchronised.
CLOCK_AHEAD_S, CLOCK_APART_S = 0.05, 2.0
#: A sender "only on change": so many pauses longer than this while the link speaks, each ended by a new pose.
PAUSE_NS, PAUSES = 500_000_000, 3
#: (type, device) pairs followed; a sender that invents names must not fill the memory.
PAIRS = 1024


class _Tool:
    """State of one pose stream."""

    def __init__(self) -> None:
        self.repeats = RepeatWatch()
        self.scale = ScaleWatch()
        self.held = HeldWatch()
        self.identities = 0
        self.poses = 0
        self.frozen_ns = 0
        self.last_arrival_ns: int | None = None
        self.last_bits = b""
        self.pauses = 0
        self.is_lost = False


class PlausibilityChecks:
    """Follows one connection and says what looks wrong. Not thread-safe; deterministic.

    Parameters
    ----------
    options : SourceConfig or None
        The options of the source in force, which are then checked as well; None: none.
    """

    def __init__(self, options: SourceConfig | None = None) -> None:
        self._options = options
        self._seen: dict[tuple[str, str], Finding] = {}
        self._images: dict[str, int] = {}
        self._tools: dict[str, _Tool] = {}
        self._stamps: dict[tuple[str, str], StampWatch] = {}
        self._apart_ns: dict[str, int] = {}
        self._mapper = SenderTimeMapper(10_000_000_000)
        self._first_ns: int | None = None
        self._last_ns = 0
        self._heard_ns: list[int] = []
        self._frames: set[str] = set()
        self._full_names: dict[str, str] = {}
        self._no_status: set[str] = set()
        self._with_status: set[str] = set()
        self._names: set[str] = set()

    def observe(
        self,
        message: Message,
        wire: WireMessage,
        content: object | None = None,
        *,
        utc_minus_local_ns: int | None = None,
    ) -> None:
        """Take one message in.

        Parameters
        ----------
        message : Message
            As decoded; ``arrival_ns`` is local monotonic and must not fall.
        wire : WireMessage
            The same message, taken apart.
        content : content dataclass or None
            The same message's content; only that of IMAGE is looked at.
        utc_minus_local_ns : int or None
            Local UTC minus local monotonic clock, to compare the sender's clock with this one; None: not compared.
        """
        now_ns = message.arrival_ns
        self._first_ns = now_ns if self._first_ns is None else self._first_ns
        self._last_ns = max(self._last_ns, now_ns)
        self._name(message.device, wire)
        self._time(message, wire, utc_minus_local_ns)
        if isinstance(content, ImageContent):
            images = self._images.get(message.device, 0)
            if images or len(self._images) < PAIRS:
                self._images[message.device] = images + 1
            for finding in check_image(content, message.device, self._options, self._image_stream(message.device)):
                self._add(finding)
        if isinstance(message, PoseMessage):
            self._poses(message, wire)
        elif isinstance(message, StatusMessage):
            self._status(message)
        elif isinstance(message, UnusedMessage) and message.problem:
            self._add(
                Finding(
                    "content_refused",
                    message.device,
                    f"{message.type_name} that cannot be used: {message.problem}",
                    message.type_name,
                    "readable",
                    "Correct the sender",
                )
            )
        if not isinstance(message, PoseMessage):
            self._heard_ns = [*self._heard_ns[-63:], now_ns]

    def timing(self, device: str) -> DeviceTiming | None:
        """Offset, lag, jitter, drift and shift of a device's stamps; None before the first."""
        return self._mapper.device(device)

    @property
    def clock_steps(self) -> int:
        """How often the sender's clock was found to have been set."""
        return self._mapper.steps

    def findings(self) -> tuple[Finding, ...]:
        """Everything that has looked wrong so far, warnings first."""
        found = [f for f in self._seen.values() if not f.by_every_item or f.count == self._images.get(f.device)]
        found += [*self._tool_findings(), *self._stamp_findings(), *self._clock_findings()]
        found += self._name_findings()
        found += self._status_findings()
        return tuple(sorted(found, key=lambda f: (f.severity != "warning", f.code, f.device)))

    # -- taking in -----------------------------------------------------------------------------------------------

    def _add(self, finding: Finding) -> None:
        key = (finding.code, finding.device)
        old = self._seen.get(key)
        if old is None and len(self._seen) >= PAIRS:
            return
        self._seen[key] = finding if old is None else replace(finding, count=old.count + 1)

    def _tool_config(self, name: str) -> ToolStreamConfig | None:
        if self._options is None:
            return None
        return next((t for t in self._options.tools if name in (t.device, t.transform)), None)

    def _image_stream(self, device: str) -> ImageStreamConfig | None:
        if self._options is None:
            return None
        return next((i for i in self._options.images if i.device == device), None)

    def _name(self, device: str, wire: WireMessage) -> None:
        if device not in self._names:
            if len(self._names) >= PAIRS:
                return
            self._names.add(device)
            self._take_frames(device)
        full = wire.metadata.get("IGTL_DEVICE_NAME", "")
        if full and full != device and full.encode("utf-8").startswith(device.encode("utf-8")):
            self._full_names[device] = full
            self._take_frames(full)

    def _take_frames(self, name: str) -> None:
        try:
            frames = TransformName.parse(name)
        except FrameNameError:
            return
        self._frames.update((frames.from_frame, frames.to_frame))

    def _time(self, message: Message, wire: WireMessage, utc_minus_local_ns: int | None) -> None:
        key = (wire.type_name, message.device)
        watch = self._stamps.get(key)
        if watch is None and isinstance(message, PoseMessage | ImageMessage) and len(self._stamps) < PAIRS:
            watch = self._stamps[key] = StampWatch()
        if watch is not None:
            watch.take(message.sender_ns, message.arrival_ns)
        if not message.sender_ns:
            return
        self._mapper.acquired_ns(message.sender_ns, message.arrival_ns, message.device)
        if utc_minus_local_ns is not None and (message.device in self._apart_ns or len(self._apart_ns) < PAIRS):
            apart = message.sender_ns - (message.arrival_ns + utc_minus_local_ns)
            self._apart_ns[message.device] = max(apart, self._apart_ns.get(message.device, apart))

    def _poses(self, message: PoseMessage, wire: WireMessage) -> None:
        # In TDATA the names are the tools'.
        several = wire.type_name in TRACKING_TYPES
        for report in message.tools:
            name = report.name if several else message.device
            if several and name not in self._names and len(self._names) < PAIRS:
                self._names.add(name)
                self._take_frames(name)
            tool = self._tools.get(name)
            if tool is None:
                if len(self._tools) >= PAIRS:
                    return
                tool = self._tools[name] = _Tool()
            if report.status_stated:
                self._with_status.add(name)
            elif wire.version == 1:
                self._no_status.add(name)
            self._pose(name, tool, report, message.arrival_ns)

    def _pose(self, name: str, tool: _Tool, report: ToolReport, arrival_ns: int) -> None:
        if report.problem:
            self._add(
                Finding(
                    "pose_invalid",
                    name,
                    report.problem,
                    report.problem,
                    "a rigid transform in mm",
                    "Correct the sender",
                )
            )
        if report.status is not PoseStatus.OK or report.matrix is None:
            tool.is_lost = True
            return
        config = self._tool_config(report.name)
        if is_exact_identity(report.matrix) and not report.status_stated and not (config and config.hold_last):
            tool.identities += 1
            tool.is_lost = True
            return
        tool.poses += 1
        bits = report.matrix.tobytes()
        self._pause(tool, bits, arrival_ns)
        tool.scale.take(report.matrix)
        if config is not None and config.hold_last:
            tool.held.take(arrival_ns)
        tool.repeats.take(bits, arrival_ns)
        if not (config is not None and config.hold_last):
            tool.frozen_ns = max(tool.frozen_ns, tool.repeats.length_ns)
        tool.is_lost = False

    def _pause(self, tool: _Tool, bits: bytes, arrival_ns: int) -> None:
        last = tool.last_arrival_ns
        if last is not None and arrival_ns - last > PAUSE_NS and not tool.is_lost and bits != tool.last_bits:
            # The link spoke all along: half of the pause at least lies before its last sign of life.
            heard = [at for at in self._heard_ns if last < at < arrival_ns]
            if heard and heard[-1] - last > PAUSE_NS // 2:
                tool.pauses += 1
        tool.last_arrival_ns, tool.last_bits = arrival_ns, bits

    def _status(self, message: StatusMessage) -> None:
        status = ServerStatus(message.code, message.subcode, message.error_name, message.text, message.arrival_ns)
        if not status.is_ok:
            self._add(_of(status.finding(), message.device))

    # -- reading out ---------------------------------------------------------------------------------------------

    def _tool_findings(self) -> list[Finding]:
        found = []
        for name, tool in self._tools.items():
            config = self._tool_config(name)
            if tool.identities and (config is None or config.identity_is_lost):
                always = "" if tool.poses else " and nothing else"
                found.append(
                    Finding(
                        "identity_because_lost",
                        name,
                        f"exact identity without a status{always}: taken as not seen",
                        f"{tool.identities} of {tool.identities + tool.poses} poses",
                        "none",
                        "Let the sender state the status (PLUS: header_version = 2, or SendValidTransformsOnly); if "
                        "the identity is a pose, set identity_is_lost = false",
                        count=tool.identities,
                    )
                )
            if tool.frozen_ns > FROZEN_NS:
                found.append(
                    Finding(
                        "pose_frozen",
                        name,
                        "the same pose bit for bit while messages go on",
                        f"{tool.frozen_ns * 1e-9:.1f} s",
                        f"{FROZEN_NS * 1e-9:.1f} s",
                        "Check whether the tracker still measures; if the sender repeats the last pose of a lost tool, "
                        "let it state the status",
                    )
                )
            found += [_of(f, name) for f in (tool.scale.finding(), tool.held.finding()) if f is not None]
            if tool.pauses >= PAUSES and not (config is not None and config.hold_last):
                found.append(
                    Finding(
                        "hold_last_missing",
                        name,
                        "poses come only now and then, each time a new one, while the link lives: sent only on change?",
                        f"{tool.pauses} pauses",
                        f"{PAUSES} pauses longer than {PAUSE_NS * 1e-9:.1f} s",
                        "If the sender sends only on change, set hold_last = true for this tool",
                        "note",
                        tool.pauses,
                    )
                )
        return found

    def _stamp_findings(self) -> list[Finding]:
        found: dict[tuple[str, str], Finding] = {}
        for (_, device), watch in self._stamps.items():
            if self._options is not None and self._options.stamps == "arrival":
                continue
            for part in watch.findings(self._last_ns):
                found[part.code, device] = _of(part, device)
            if watch.backwards and ("stamp_backwards", device) not in found:
                found["stamp_backwards", device] = Finding(
                    "stamp_backwards",
                    device,
                    "time stamps ran backwards",
                    f"{watch.backwards} times",
                    "never",
                    "Check the sender's clock; give each device one sender only",
                    count=watch.backwards,
                )
        return list(found.values())

    def _clock_findings(self) -> list[Finding]:
        found = []
        for device, apart_ns in self._apart_ns.items():
            apart_s = apart_ns * 1e-9
            if apart_s > CLOCK_AHEAD_S or apart_s < -CLOCK_APART_S:
                ahead = apart_s > 0
                found.append(
                    Finding(
                        "clock_ahead" if ahead else "clock_behind",
                        device,
                        "stamps lie in the future of this machine's clock"
                        if ahead
                        else "stamps lie far in the past of this machine's clock (a clock that is wrong, or old data)",
                        f"{apart_s:+.3f} s",
                        f"-{CLOCK_APART_S:g} to +{CLOCK_AHEAD_S:g} s",
                        "Synchronise both clocks (NTP); guidance takes the constant part out by itself",
                        "note",
                    )
                )
        if self._mapper.steps:
            found.append(
                Finding(
                    "clock_step",
                    "",
                    "the sender's clock was set while it was sending",
                    f"{self._mapper.steps} times",
                    "never",
                    "Keep its time service from stepping the clock",
                    count=self._mapper.steps,
                )
            )
        drift = self._mapper.drift_ppm
        watched_ns = 0 if self._first_ns is None else self._last_ns - self._first_ns
        if drift is not None and watched_ns >= DRIFT_AFTER_NS and abs(drift) > DRIFT_LIMIT_PPM:
            found.append(
                Finding(
                    "clock_drift",
                    "",
                    "the sender's clock parts from this one, or its data comes later and later",
                    f"{drift:+.0f} ppm",
                    f"{DRIFT_LIMIT_PPM:.0f} ppm",
                    "Check its time synchronisation and the network",
                )
            )
        return found

    def _name_findings(self) -> list[Finding]:
        known = set(self._frames)
        if self._options is not None:
            for tool in self._options.tools:
                known.update(TransformName.parse(tool.transform))
        found = []
        for name in sorted(self._names):
            if len(name.encode("utf-8")) != DEVICE_NAME_BYTES:
                continue
            full = self._full_names.get(name) or self._longer(name, known)
            if not full:
                continue
            said = name in self._full_names
            found.append(
                Finding(
                    "name_cut",
                    name,
                    f"name cut to {DEVICE_NAME_BYTES} bytes, "
                    + (f"in full {full} (IGTL_DEVICE_NAME)" if said else f"perhaps of {full}"),
                    name,
                    f"{DEVICE_NAME_BYTES} bytes",
                    f'Give the tool device = "{name}" and its transform in the room, or shorten the frame names',
                    "note" if said else "warning",
                )
            )
        return found

    @staticmethod
    def _longer(name: str, frames: set[str]) -> str:
        """The whole name that ``name`` may be the beginning of: its last frame is the beginning of a known one."""
        stem, to, tail = name.rpartition("To")
        if not to or not stem:
            return ""
        longer = sorted(f for f in frames if f.startswith(tail) and f != tail)
        return f"{stem}To{longer[0]}" if longer else ""

    def _status_findings(self) -> list[Finding]:
        return [
            Finding(
                "status_missing_v1",
                name,
                "no status: header version 1 cannot carry it, a lost tool is told by silence or identity only",
                "header version 1",
                "header version 2",
                "For PLUS set header_version = 2; never for programs on the 1.x C++ library",
                "note",
            )
            for name in sorted(self._no_status - self._with_status)
        ]


def _of(finding: StreamFinding, device: str) -> Finding:
    """A finding of the rules that live guidance uses, of one device."""
    return Finding(finding.code, device, finding.seen, finding.value, finding.limit, finding.what_to_do)
