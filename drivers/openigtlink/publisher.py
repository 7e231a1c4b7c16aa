"""Publishes what the navigation knows over OpenIGTLink, and answers queries and commands (``docs/publishing.md``).

The compute thread only puts its newest snapshot into a slot. A thread of the publisher's own sends from it; queries and
commands have a thread each, so that neither a recording that is being finished nor an image that is being made delays a
pose. A snapshot that nothing has followed for `SNAPSHOT_LIMIT_MS` is blank on the wire, as it is on the screen.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

from drivers.openigtlink.codec import encode_content, encode_image, encode_status, encode_string
from drivers.openigtlink.commands import CommandError, NavigationControl, Reply, carry_out, parse_command
from drivers.openigtlink.contents import (
    TRACKING_TYPES,
    CapabilityContent,
    CommandContent,
    CommandReplyContent,
    Content,
    PolyDataContent,
    QuaternionTool,
    QuaternionTrackingContent,
    ReplyContent,
    StartTrackingContent,
    StringContent,
    TrackedTool,
    TrackingContent,
    TransformContent,
    cell_array,
    query_of,
    unpack_content,
)
from drivers.openigtlink.errors import ContentError
from drivers.openigtlink.navigation_messages import (
    PublishedNames,
    blanked,
    margin_text,
    tip_metadata,
    visible_tools,
    zone_image,
    zone_surface,
)
from drivers.openigtlink.sink import ClientInfo, IgtlServer
from drivers.openigtlink.wire import WireMessage, parse_message
from nav.config.room import PublishConfig, RoomConfig
from nav.guidance.numbers import GateState
from nav.runtime.clock import Clock
from nav.runtime.slots import LatestSlot
from nav.runtime.snapshot import NavigationSnapshot

__all__ = ["SERVED", "NavigationPublisher"]

_LOG = logging.getLogger(__name__)

#: A snapshot older than this stands for a computation that has stopped: everything is withheld (as on the screen).
SNAPSHOT_LIMIT_MS = 250.0
#: The registration is sent again this often, so that a client that cleared its scene has it back.
REGISTRATION_PERIOD_NS = 1_000_000_000
#: A tip that is withheld is said again this often.
WITHHELD_PERIOD_NS = 100_000_000
#: The label map, for clients that asked for it to go on.
IMAGE_PERIOD_NS = 1_000_000_000
#: The sending thread looks round at least this often although no snapshot came, s.
POLL_S = 0.02
#: Requests of one client, and of all, that may wait for an answer.
CLIENT_REQUESTS, ALL_REQUESTS = 8, 64

#: What every client gets unless it says STP_, and what only those get who say STT_.
_PUSHED = frozenset({"TRANSFORM", "POLYDATA", "STRING"})
_ON_REQUEST = TRACKING_TYPES | {"IMAGE"}
#: Answer to GET_CAPABIL.
SERVED = (
    "TRANSFORM", "POLYDATA", "STRING", "IMAGE", "TDATA", "QTDATA", "STATUS", "CAPABILITY",
    "GET_TRANS", "GET_TRANSFOR", "GET_POLYDATA", "GET_STRING", "GET_IMAGE", "GET_TDATA", "GET_QTDATA", "GET_STATUS",
    "GET_CAPABIL", "STT_TRANS", "STP_TRANS", "STT_POLYDATA", "STP_POLYDATA", "STT_STRING", "STP_STRING", "STT_IMAGE",
    "STP_IMAGE", "STT_TDATA", "STP_TDATA", "STT_QTDATA", "STP_QTDATA", "COMMAND",
)  # fmt: skip


@dataclass(slots=True)
class _Subscription:
    """What one client gets."""

    types: set[str] = field(default_factory=lambda: set(_PUSHED))
    #: TDATA or QTDATA → (interval, next due time, device), ns on the local clock.
    tracking: dict[str, tuple[int, int, str]] = field(default_factory=dict)


class _Worker:
    """A thread that works off requests, in order, with a bound on how many wait."""

    def __init__(self, name: str, handle: Callable[[ClientInfo, WireMessage], None]) -> None:
        self._handle = handle
        self._queue: queue.Queue[tuple[ClientInfo, WireMessage] | None] = queue.Queue()
        self._waiting: dict[int, int] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        self._queue.put(None)
        self._thread.join(timeout_s)

    def take(self, client: ClientInfo, message: WireMessage) -> bool:
        """Queue a request; False when too many wait."""
        with self._lock:
            mine = self._waiting.get(client.number, 0)
            if mine >= CLIENT_REQUESTS or sum(self._waiting.values()) >= ALL_REQUESTS:
                return False
            self._waiting[client.number] = mine + 1
        self._queue.put((client, message))
        return True

    def _run(self) -> None:
        while (request := self._queue.get()) is not None:
            client, message = request
            try:
                self._handle(client, message)
            except Exception:
                _LOG.exception("client %s: %s could not be answered", client.address, message.type_name)
            with self._lock:
                self._waiting[client.number] -= 1
                if not self._waiting[client.number]:
                    del self._waiting[client.number]


class NavigationPublisher:
    """Serves the navigation's results.

    Parameters
    ----------
    room : RoomConfig
        Its frames give the names.
    config : PublishConfig
    clock : Clock
        In which the snapshots' times are; its UTC reading stamps what is sent.
    control : NavigationControl
        What commands may do.

    Raises
    ------
    EncodeError
        When a frame's name does not fit the wire.
    AllowListError
        When an allowed network is none.
    """

    def __init__(self, room: RoomConfig, config: PublishConfig, clock: Clock, control: NavigationControl) -> None:
        self.names = PublishedNames.of(room)
        self._config, self._clock, self._control = config, clock, control
        self._coordinates = {"", room.ct_frame.lower()}
        self._slot: LatestSlot[NavigationSnapshot] = LatestSlot()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._subscriptions: dict[int, _Subscription] = {}
        self._newcomers: list[int] = []
        self._queries = _Worker("igtl-queries", self._answer)
        self._commands = _Worker("igtl-commands", self._obey)
        self.server = IgtlServer(
            config.host,
            config.port,
            name="AblationNav",
            max_clients=config.max_clients,
            allow=config.allow,
            on_message=self._heard,
            on_client=self._client,
        )
        # What was sent last, for the sending thread alone.
        self._tip_key: tuple[int, GateState] | None = None
        self._registration_key: tuple[int, str] | None = None
        self._zone_shown: bool | None = None
        self._gate_key: tuple[object, ...] | None = None
        self._due: dict[str, int] = {}

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> NavigationPublisher:
        """Listen and publish; see `IgtlServer.start` for what it raises."""
        self.server.start()
        self._queries.start()
        self._commands.start()
        self._thread = threading.Thread(target=self._run, name="igtl-publisher", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop everything. Safe to call twice."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(2.0)
        self.server.stop()
        self._queries.stop(2.0)
        self._commands.stop(12.0)  # finishing a recording may take as long as the disk
        self._thread = None

    def __enter__(self) -> NavigationPublisher:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def offer(self, snapshot: NavigationSnapshot) -> None:
        """Take the newest snapshot; called on the compute thread, returns at once."""
        self._slot.put(snapshot)

    # -- what is shown -------------------------------------------------------------------------------------------

    def _shown(self) -> NavigationSnapshot | None:
        """The newest snapshot, blanked when nothing has followed it."""
        snapshot = self._slot.peek()
        if snapshot is None:
            return None
        age_ms = (self._clock.now_ns() - snapshot.now_ns) / 1e6
        if age_ms <= SNAPSHOT_LIMIT_MS:
            return snapshot
        text = f"nothing has been computed for {age_ms:.0f} ms (limit {SNAPSHOT_LIMIT_MS:.0f} ms)"
        return blanked(snapshot, "compute_stopped", text)

    def _utc_ns(self, local_ns: int) -> int:
        return self._clock.utc_ns() - self._clock.now_ns() + local_ns

    def _acquired_utc_ns(self, snapshot: NavigationSnapshot) -> int | None:
        return self._utc_ns(snapshot.needle.acquired_ns) if snapshot.needle.pose is not None else None

    # -- the sending thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            self._slot.wait(POLL_S)
            snapshot = self._shown()
            if snapshot is None:
                continue
            try:
                self._publish(snapshot, self._clock.now_ns())
            except Exception:  # one message that cannot be sent must not end all that follow
                _LOG.exception("a snapshot could not be published")
                self._stop.wait(0.1)

    def _getting(self, type_name: str) -> list[int]:
        with self._lock:
            return [number for number, s in self._subscriptions.items() if type_name in s.types]

    def _is_due(self, what: str, now_ns: int, period_ns: int) -> bool:
        if now_ns < self._due.get(what, 0):
            return False
        self._due[what] = now_ns + period_ns
        return True

    def _publish(self, snapshot: NavigationSnapshot, now_ns: int) -> None:
        with self._lock:
            newcomers, self._newcomers = self._newcomers, []
        for number in newcomers:
            self._send_registration(snapshot, now_ns, [number])
            self._send_zone(snapshot, now_ns, [number])
            self._send_margin(snapshot, [number])
        self._publish_tip(snapshot, now_ns)
        self._publish_registration(snapshot, now_ns)
        self._publish_zone(snapshot, now_ns)
        gate_key = (snapshot.gate.state, tuple(r.code for r in snapshot.gate.reasons), snapshot.margin is None)
        changed, self._gate_key = gate_key != self._gate_key, gate_key
        if changed or self._is_due("margin", now_ns, round(1e9 / self._config.margin_hz)):
            self._send_margin(snapshot, self._getting("STRING"))
        if self._is_due("image", now_ns, IMAGE_PERIOD_NS) and snapshot.zone is not None:
            self._send_image(snapshot, self.names.zone_map, self._getting("IMAGE"))
        self._publish_tracking(snapshot, now_ns)

    def _publish_tip(self, snapshot: NavigationSnapshot, now_ns: int) -> None:
        key = (snapshot.needle.acquired_ns if snapshot.needle.pose is not None else -1, snapshot.gate.state)
        changed, self._tip_key = key != self._tip_key, key
        if changed or (snapshot.needle.pose is None and now_ns >= self._due.get("withheld", 0)):
            self._due["withheld"] = now_ns + WITHHELD_PERIOD_NS
            self._send_tip(snapshot, now_ns, self._getting("TRANSFORM"))

    def _send_tip(self, snapshot: NavigationSnapshot, now_ns: int, to: list[int]) -> None:
        pose, metadata = snapshot.needle.pose, tip_metadata(snapshot)
        stamp = self._utc_ns(snapshot.needle.acquired_ns if pose is not None else now_ns)
        content = TransformContent(np.eye(4) if pose is None else pose.matrix)

        def build(version: int) -> bytes | None:
            if pose is None and version == 1:
                return None  # version 1 has no place for a status: silence says lost, an identity would be a pose
            return encode_content(self.names.tip, content, sender_ns=stamp, version=version, metadata=metadata)

        self.server.publish(self.names.tip, build, only=to)

    def _publish_registration(self, snapshot: NavigationSnapshot, now_ns: int) -> None:
        registration = snapshot.registration
        key = None if registration is None else (registration.generation, registration.method)
        changed, self._registration_key = key != self._registration_key, key
        if changed or self._is_due("registration", now_ns, REGISTRATION_PERIOD_NS):
            self._send_registration(snapshot, now_ns, self._getting("TRANSFORM"))

    def _send_registration(self, snapshot: NavigationSnapshot, now_ns: int, to: list[int]) -> None:
        registration = snapshot.registration
        transform = None if registration is None else registration.transform
        name = self.names.registration
        metadata = {"TransformStatus": "INVALID" if transform is None else "OK"}
        if registration is not None:
            metadata |= {"Method": registration.method, "Generation": str(registration.generation)}
        content = TransformContent(np.eye(4) if transform is None else transform.matrix)
        stamp = self._utc_ns(now_ns)

        def build(version: int) -> bytes | None:
            if transform is None and version == 1:
                return None
            return encode_content(name, content, sender_ns=stamp, version=version, metadata=metadata)

        self.server.publish(name, build, only=to)

    def _publish_zone(self, snapshot: NavigationSnapshot, now_ns: int) -> None:
        shown = snapshot.zone is not None
        changed, self._zone_shown = shown != self._zone_shown, shown
        # Taken away at once, drawn at its own pace; said again while there is none.
        if changed or self._is_due("zone", now_ns, round(1e9 / self._config.zone_hz)):
            self._send_zone(snapshot, now_ns, self._getting("POLYDATA"))

    def _send_zone(self, snapshot: NavigationSnapshot, now_ns: int, to: list[int]) -> None:
        if not to:
            return
        vertices, triangles = zone_surface(snapshot.zone)
        content = PolyDataContent(vertices.astype(np.float32), polygons=cell_array(triangles))
        stamp = self._acquired_utc_ns(snapshot) or self._utc_ns(now_ns)
        metadata = {"GateState": snapshot.gate.state.name}
        self.server.publish(
            self.names.zone,
            lambda v: encode_content(self.names.zone, content, sender_ns=stamp, version=v, metadata=metadata),
            depth=2,
            only=to,
        )

    def _send_margin(self, snapshot: NavigationSnapshot, to: list[int]) -> None:
        acquired = self._acquired_utc_ns(snapshot)
        stamp = acquired or self._clock.utc_ns()
        text = margin_text(snapshot, acquired)
        # The newest margin is worth more than the one before: a stream, although it is a text.
        self.server.publish(
            self.names.margin,
            lambda v: encode_string(self.names.margin, text, sender_ns=stamp, version=v),
            depth=2,
            only=to,
        )

    def _send_image(self, snapshot: NavigationSnapshot, device: str, to: list[int]) -> None:
        if snapshot.zone is None or not to:
            return
        array, matrix = zone_image(snapshot.zone)
        stamp = self._acquired_utc_ns(snapshot)
        self.server.publish(
            device, lambda v: encode_image(device, array, matrix, sender_ns=stamp, version=v), depth=2, only=to
        )

    def _publish_tracking(self, snapshot: NavigationSnapshot, now_ns: int) -> None:
        due: list[tuple[int, str, str]] = []
        with self._lock:
            for number, subscription in self._subscriptions.items():
                for kind, (interval, at, device) in subscription.tracking.items():
                    if now_ns >= at:
                        due.append((number, kind, device))
                        # In step with the interval, without making up for what was missed.
                        following = at + interval if at + interval > now_ns else now_ns + interval
                        subscription.tracking[kind] = (interval, following, device)
        for number, kind, device in due:
            self._send_tracking(snapshot, now_ns, kind, device, number)

    def _send_tracking(self, snapshot: NavigationSnapshot, now_ns: int, kind: str, device: str, to: int) -> None:
        content = _tracking(snapshot, self.names, kind)
        stamp = self._acquired_utc_ns(snapshot) or self._utc_ns(now_ns)
        self.server.publish(device, lambda v: encode_content(device, content, sender_ns=stamp, version=v), only=to)

    # -- what clients say ----------------------------------------------------------------------------------------

    def _client(self, client: ClientInfo, here: bool) -> None:
        with self._lock:
            if here:
                self._subscriptions[client.number] = _Subscription()
                self._newcomers.append(client.number)
            else:
                self._subscriptions.pop(client.number, None)

    def _heard(self, client: ClientInfo, raw: bytes) -> None:
        """In the server's thread: hand a request to the thread that answers it."""
        try:
            message = parse_message(raw)
        except ContentError as error:
            _LOG.info("client %s: %s", client.address, error)
            return
        kind = message.type_name
        if kind == "COMMAND" or (kind == "STRING" and message.device.startswith("CMD_")):
            if not self._commands.take(client, message):
                self._reply(client, message, Reply(False, "busy: too many commands wait"), "")
        elif kind[:4] in ("GET_", "STT_", "STP_") and not self._queries.take(client, message):
            self._confirm(client, message, done=False)

    def _send(self, client: ClientInfo, device: str, content: Content, type_name: str | None = None) -> None:
        stamp = self._clock.utc_ns()
        self.server.publish(
            device,
            lambda v: encode_content(device, content, type_name=type_name, sender_ns=stamp, version=v),
            kind="reliable",
            only=client.number,
        )

    def _confirm(self, client: ClientInfo, message: WireMessage, *, done: bool) -> None:
        """``RTS_<type>``: done, or an error."""
        self._send(client, message.device, ReplyContent(0 if done else 1), f"RTS_{message.type_name[4:]}")

    def _answer(self, client: ClientInfo, message: WireMessage) -> None:
        query = query_of(message.type_name)
        if query is None:
            self._confirm(client, message, done=False)
            return
        verb, asked = query
        if verb == "GET":
            self._confirm_unless(client, message, self._get(client, asked, message.device))
        elif asked in TRACKING_TYPES:
            self._confirm(client, message, done=self._track(client, message, asked, verb == "STT"))
        elif asked in _PUSHED | _ON_REQUEST:
            with self._lock:
                subscription = self._subscriptions.get(client.number)
                if subscription is not None:
                    (subscription.types.add if verb == "STT" else subscription.types.discard)(asked)
            self._confirm(client, message, done=True)
            if verb == "STT":
                self._get(client, asked, "")
        else:
            self._confirm(client, message, done=False)

    def _confirm_unless(self, client: ClientInfo, message: WireMessage, answered: bool) -> None:
        if not answered:
            self._confirm(client, message, done=False)

    def _get(self, client: ClientInfo, asked: str, device: str) -> bool:
        """Send what was asked for; False when there is none (unknown, or withheld)."""
        if asked == "CAPABILITY":
            self._send(client, device, CapabilityContent(SERVED))
            return True
        snapshot = self._shown()
        if asked == "STATUS":
            self._send_status(client, device, snapshot)
            return True
        names = self.names
        wanted = {
            "TRANSFORM": (names.tip, names.registration),
            "POLYDATA": (names.zone,),
            "STRING": (names.margin,),
            "IMAGE": (names.zone_map,),
            "TDATA": (device,),
            "QTDATA": (device,),
        }.get(asked, ())
        if snapshot is None or (device and device not in wanted):
            return False
        now_ns, to = self._clock.now_ns(), [client.number]
        match asked:
            case "TRANSFORM":
                return self._get_transforms(client, snapshot, now_ns, device)
            case "POLYDATA":
                self._send_zone(snapshot, now_ns, to)
            case "STRING":
                self._send_margin(snapshot, to)
            case "IMAGE":
                self._send_image(snapshot, names.zone_map, to)
                return snapshot.zone is not None
            case "TDATA" | "QTDATA":
                self._send_tracking(snapshot, now_ns, asked, device or names.tracking, client.number)
            case _:
                return False
        return True

    def _get_transforms(self, client: ClientInfo, snapshot: NavigationSnapshot, now_ns: int, device: str) -> bool:
        names, to = self.names, [client.number]
        registration = snapshot.registration
        there = {
            names.tip: snapshot.needle.pose is not None,
            names.registration: registration is not None and registration.transform is not None,
        }
        asked = [device] if device else [name for name in there if there[name]]
        says_status = client.version == 2  # a status without a pose is an answer there
        if not asked or not (says_status or there[asked[0]]):
            return False
        for name in asked:
            (self._send_tip if name == names.tip else self._send_registration)(snapshot, now_ns, to)
        return True

    def _send_status(self, client: ClientInfo, device: str, snapshot: NavigationSnapshot | None) -> None:
        name = device or self.server.name
        if snapshot is None:
            code, text = 13, "nothing has been computed yet"  # 13: not ready
        elif snapshot.gate.state is GateState.BLANK:
            code, text = 13, "; ".join(reason.text for reason in snapshot.gate.reasons)
        else:
            code, text = 1, "; ".join(reason.text for reason in snapshot.gate.reasons)
        error_name = "" if snapshot is None else snapshot.gate.state.name
        self.server.publish(
            name,
            lambda v: encode_status(name, code, 0, error_name, text, version=v),
            kind="reliable",
            only=client.number,
        )

    def _track(self, client: ClientInfo, message: WireMessage, kind: str, start: bool) -> bool:
        """Begin or end tracking data for a client; False when the request cannot be met."""
        if not start:
            with self._lock:
                subscription = self._subscriptions.get(client.number)
                return subscription is not None and subscription.tracking.pop(kind, None) is not None
        try:
            content = unpack_content(message.type_name, message.content)
        except ContentError as error:
            _LOG.info("client %s: %s", client.address, error)
            return False
        if not isinstance(content, StartTrackingContent):
            return False
        if content.interval_ms < 0 or content.coordinates.lower() not in self._coordinates:
            return False
        with self._lock:
            subscription = self._subscriptions.get(client.number)
            if subscription is not None:
                device = message.device or self.names.tracking
                subscription.tracking[kind] = (content.interval_ms * 1_000_000, 0, device)
        return True

    # -- commands ------------------------------------------------------------------------------------------------

    def _obey(self, client: ClientInfo, message: WireMessage) -> None:
        name = ""
        try:
            content = unpack_content(message.type_name, message.content)
            if isinstance(content, CommandContent):
                name = content.name
                text = content.text
            elif isinstance(content, StringContent):
                text = content.text
            else:
                raise CommandError("the command cannot be read")
            command = parse_command(text, name)
            name = command.name
            if self._config.commands:
                reply = carry_out(command, self._control, self._shown())
            else:
                reply = Reply(False, "commands are not accepted here (publish.commands = false)")
        except (CommandError, ContentError) as error:
            reply = Reply(False, str(error))
        _LOG.info("client %s: command %s: %s", client.address, name[:40] or "without a name", reply.message)
        self._reply(client, message, reply, name)

    def _reply(self, client: ClientInfo, message: WireMessage, reply: Reply, name: str) -> None:
        """RTS_COMMAND with the command's number; ``ACK_<uid>`` to the older form in a STRING."""
        xml = reply.xml(name)
        if message.type_name == "STRING":
            self._send(client, f"ACK_{message.device.removeprefix('CMD_')}", StringContent(xml))
            return
        number = int.from_bytes(bytes(message.content[:4]), "big")
        error = "" if reply.done else reply.message.encode("ascii", "replace")[:127].decode()
        self._send(client, message.device, CommandReplyContent(number, error, xml))


def _tracking(snapshot: NavigationSnapshot, names: PublishedNames, kind: str) -> Content:
    tools = visible_tools(snapshot, names)
    if kind == "TDATA":
        return TrackingContent(tools)
    return QuaternionTrackingContent(tuple(_with_quaternion(tool) for tool in tools))


def _with_quaternion(tool: TrackedTool) -> QuaternionTool:
    x, y, z, w = (float(v) for v in Rotation.from_matrix(tool.matrix[:3, :3]).as_quat())
    r, a, s = (float(v) for v in tool.matrix[:3, 3])
    return QuaternionTool(tool.name, (r, a, s), (x, y, z, w), tool.kind)
