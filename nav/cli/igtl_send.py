"""``ablation-nav igtl send``: messages from files, or trial data, to a server or as one."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from drivers.openigtlink.codec import encode_image, encode_status, encode_transform
from drivers.openigtlink.errors import EncodeError, PeerGone, WireError
from drivers.openigtlink.json_form import error_as_json, message_as_json, message_from_json
from drivers.openigtlink.sink import ClientInfo, IgtlServer
from drivers.openigtlink.source import IgtlSource
from drivers.openigtlink.trial_data import MARK, trial_image, trial_pose
from drivers.openigtlink.wire import HEADER_SIZE, header_prefix, parse_header
from nav.cli.endpoints import until_interrupted
from nav.cli.errors import CommandError, ExitCode
from nav.cli.igtl_source import prepare, print_json
from nav.cli.progress import Steps
from nav.config.room import SourceConfig
from nav.runtime.clock import Clock, SystemClock
from nav.runtime.messages import LinkMessage, LinkState, Message

__all__ = ["SendPlan", "messages_in", "send_to", "serve_at"]

#: Replies kept for the report; further ones are counted.
REPLIES = 100
_MARK_S = 1.0
_TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class SendPlan:
    """What to send.

    Attributes
    ----------
    messages : tuple of bytes
        Sent as they are, all of them in every round.
    tools, images : tuple of str
        Device names of trial poses and pictures, one each in every round.
    rate_hz : float
        Rounds per second.
    rounds : int or None
        How many; None: until the time is over.
    duration_s : float or None
    version : 1, 2 or None
        Header version of trial data; None: what the peer has spoken (1 as a client).
    wait_s : float or None
        How long to wait for the peer; None: until Ctrl-C.
    replies_s : float
        How long to listen for replies after the last message.
    """

    messages: tuple[bytes, ...]
    tools: tuple[str, ...]
    images: tuple[str, ...]
    rate_hz: float
    rounds: int | None
    duration_s: float | None
    version: int | None
    wait_s: float | None
    replies_s: float


def messages_in(path: Path) -> list[bytes]:
    """The messages of a file: a specification (``.json``), or bytes as on the wire, whose CRC is not looked at.

    Raises
    ------
    CommandError
        When the file holds no message, or something else.
    """
    data = path.read_bytes()
    out = []
    if path.suffix.lower() == ".json":
        try:
            loaded = json.loads(data)
            for spec in loaded if isinstance(loaded, list) else [loaded]:
                out.append(message_from_json(spec))
        except (ValueError, EncodeError) as error:
            raise CommandError(f"{path}: message {len(out)}: {error}", ExitCode.INPUT) from None
    else:
        at = 0
        while at < len(data):
            try:
                end = at + HEADER_SIZE + parse_header(data[at : at + HEADER_SIZE]).body_size
            except WireError as error:
                raise CommandError(f"{path}: message {len(out)}: {error.moved(at)}", ExitCode.INPUT) from None
            if end > len(data):
                raise CommandError(
                    f"{path}: message {len(out)} at byte {at} ends at {end}, the file at {len(data)}", ExitCode.INPUT
                )
            out.append(data[at:end])
            at = end
    if not out:
        raise CommandError(f"{path}: holds no message", ExitCode.INPUT)
    return out


class _Peer(Protocol):
    """Where the messages go."""

    def put(self, device: str, build: Callable[[int], bytes], *, reliable: bool = False) -> int:
        """Send one; returns how many peers were given it."""


class _Replies:
    """Keeps what comes back, decoded."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, raw: bytes | memoryview, peer: str) -> None:
        """One message."""
        header = parse_header(raw)
        with self._lock:
            self.counts[header.type_name] += 1
            if len(self.kept) >= REPLIES:
                return
        try:
            shown: dict[str, Any] = message_as_json(raw)
        except WireError as error:
            shown = {"type": header.type_name, "device": header.device, "error": error_as_json(error)}
        with self._lock:
            self.kept.append({"from": peer, **shown})


class _Client:
    """Sends to a server over the program's own source."""

    def __init__(self, config: SourceConfig, clock: Clock, replies: _Replies) -> None:
        self.address = f"{config.host}:{config.port}"
        self.source = IgtlSource(config, clock)
        self.connected = threading.Event()
        self.lost = 0
        self.said = "not tried"
        self._replies = replies

    def deliver(self, message: Message, raw: bytes | memoryview | None) -> None:
        """See `nav.runtime.messages.MessageSink`."""
        if raw is not None:
            self._replies.take(raw, self.address)
        elif isinstance(message, LinkMessage):
            self.said = message.detail
            if message.state is LinkState.CONNECTED:
                self.connected.set()

    def put(self, device: str, build: Callable[[int], bytes], *, reliable: bool = False) -> int:  # noqa: ARG002
        """See `_Peer`."""
        try:
            self.source.send(build(1))
        except PeerGone:
            self.lost += 1
            return 0
        return 1


class _Server:
    """Sends to whoever has connected."""

    def __init__(self, server: IgtlServer) -> None:
        self.server = server

    def put(self, device: str, build: Callable[[int], bytes], *, reliable: bool = False) -> int:
        """See `_Peer`."""
        return self.server.publish(device, build, kind="reliable" if reliable else "stream")


def send_to(config: SourceConfig, plan: SendPlan, *, as_json: bool) -> int:
    """Send as a client; `ExitCode.CONNECTION` when a message could not be sent."""
    _check_names(plan)
    steps, clock, replies = Steps(), SystemClock(), _Replies()
    prepare(steps)
    client = _Client(config, clock, replies)
    with until_interrupted() as stop:
        client.source.start(client)
        try:
            if not _wait(client.connected.is_set, plan.wait_s, stop, clock):
                raise CommandError(
                    f"{client.address}: not connected ({client.said}); start the server, or correct host and port",
                    ExitCode.CONNECTION,
                )
            sent = _send(plan, client, clock, stop, steps)
            stop.wait(plan.replies_s)
        finally:
            client.source.stop()
    report = {"to": client.address, "clients": None, **_report(sent, client.lost, replies)}
    _show(report, as_json)
    if client.lost:
        raise CommandError(
            f"{client.address}: {client.lost} messages were not sent ({client.said})", ExitCode.CONNECTION
        )
    return ExitCode.OK


def serve_at(host: str, port: int, plan: SendPlan, *, allow: Sequence[str], as_json: bool) -> int:
    """Send as a server, from the first client on; `ExitCode.CONNECTION` when none came."""
    _check_names(plan)
    steps, clock, replies = Steps(), SystemClock(), _Replies()
    came = [0]

    def on_client(_: ClientInfo, here: bool) -> None:
        came[0] += here

    def on_message(client: ClientInfo, raw: bytes) -> None:
        replies.take(raw, client.address)

    with (
        until_interrupted() as stop,
        IgtlServer(host, port, name="igtl send", on_message=on_message, on_client=on_client, allow=allow) as server,
    ):
        address = f"{host}:{server.port}"
        steps.say(f"  serving at {address}; waiting for a client; Ctrl-C ends")
        if not _wait(lambda: came[0] > 0, plan.wait_s, stop, clock) and not stop.is_set():
            raise CommandError(f"{address}: no client came within {plan.wait_s:g} s", ExitCode.CONNECTION)
        sent = _send(plan, _Server(server), clock, stop, steps)
        stop.wait(plan.replies_s)
    _show({"to": address, "clients": came[0], **_report(sent, 0, replies)}, as_json)
    return ExitCode.OK


def _check_names(plan: SendPlan) -> None:
    """Raise `EncodeError` now, and not in the middle, for a name that cannot be sent."""
    for name in (*plan.tools, *plan.images):
        header_prefix("TRANSFORM", name)


def _wait(what: Callable[[], bool], limit_s: float | None, stop: threading.Event, clock: Clock) -> bool:
    end_ns = None if limit_s is None else clock.now_ns() + round(limit_s * 1e9)
    while not what():
        if (end_ns is not None and clock.now_ns() >= end_ns) or stop.wait(_TICK_S):
            return what()
    return True


def _send(plan: SendPlan, peer: _Peer, clock: Clock, stop: threading.Event, steps: Steps) -> Counter[str]:
    """Send everything at its time; returns messages given to a peer, by type."""
    sent: Counter[str] = Counter()
    if plan.tools or plan.images:
        steps.say(f"  {MARK}")
    begin_ns, marked_s = clock.now_ns(), -_MARK_S
    for due_s in _due(plan, clock, begin_ns, stop):
        if plan.tools or plan.images:
            if due_s - marked_s >= _MARK_S:
                sent["STATUS"] += peer.put("TestData", _mark)
                marked_s = due_s
            _send_trial(plan, peer, clock, due_s, sent)
        for raw in plan.messages:
            header = parse_header(raw)
            sent[header.type_name] += peer.put(header.device, partial(_as_it_is, raw), reliable=True)
    return sent


def _due(plan: SendPlan, clock: Clock, begin_ns: int, stop: threading.Event) -> Iterator[float]:
    """Seconds since the beginning of each round, when it is due."""
    n = 0
    while (plan.rounds is None or n < plan.rounds) and not stop.is_set():
        due_s = n / plan.rate_hz
        if plan.duration_s is not None and due_s >= plan.duration_s:
            return
        wait_s = due_s - (clock.now_ns() - begin_ns) * 1e-9
        if wait_s > 0 and stop.wait(wait_s):
            return
        yield due_s
        n += 1


def _send_trial(plan: SendPlan, peer: _Peer, clock: Clock, due_s: float, sent: Counter[str]) -> None:
    now_ns = clock.utc_ns()
    for name in plan.tools:
        sent["TRANSFORM"] += peer.put(name, partial(_pose, name, due_s, now_ns, plan.version))
    for name in plan.images:
        sent["IMAGE"] += peer.put(name, partial(_picture, name, due_s, now_ns, plan.version))


def _pose(name: str, due_s: float, now_ns: int, version: int | None, spoken: int) -> bytes:
    return encode_transform(
        name,
        trial_pose(due_s),
        sender_ns=now_ns,
        version=version or spoken,
        metadata={"TransformStatus": "OK", "TestData": MARK},
    )


def _picture(name: str, due_s: float, now_ns: int, version: int | None, spoken: int) -> bytes:
    array, matrix = trial_image(due_s)
    return encode_image(name, array, matrix, sender_ns=now_ns, version=version or spoken, metadata={"TestData": MARK})


def _as_it_is(raw: bytes, _: int) -> bytes:
    return raw


def _mark(spoken: int) -> bytes:
    return encode_status("TestData", 1, text=MARK, version=spoken)


def _report(sent: Counter[str], lost: int, replies: _Replies) -> dict[str, Any]:
    return {
        "sent": dict(sent),
        "not_sent": lost,
        "received": dict(replies.counts),
        "replies": replies.kept,
        "replies_left_out": sum(replies.counts.values()) - len(replies.kept),
    }


def _show(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    counts = ", ".join(f"{count} {kind}" for kind, count in report["sent"].items()) or "nothing"
    clients = "" if report["clients"] is None else f", {report['clients']} clients came"
    print(f"{report['to']}: sent {counts}{clients}")
    answers = ", ".join(f"{count} {kind}" for kind, count in report["received"].items()) or "nothing"
    print(f"received {answers}")
    shown: dict[tuple[str, str], dict[str, Any]] = {}
    for reply in report["replies"]:
        shown[reply["type"], reply["device"]] = reply
    for (kind, device), reply in list(shown.items())[:20]:
        content = json.dumps(reply.get("content", reply.get("error")), ensure_ascii=False, allow_nan=False)
        print(f"  {kind} {device!r}  {content if len(content) <= 160 else content[:159] + '…'}")
