"""``ablation-nav igtl bridge``: what one server sends, for any number of clients."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from drivers.openigtlink.codec import encode_status
from drivers.openigtlink.forwarding import Forwarded, Forwarding
from drivers.openigtlink.sink import ClientInfo, IgtlServer
from drivers.openigtlink.source import IgtlSource
from nav.cli.endpoints import until_interrupted
from nav.cli.errors import CommandError, ExitCode
from nav.cli.igtl_source import prepare, print_json
from nav.cli.progress import Steps
from nav.config.room import SourceConfig
from nav.runtime.clock import SystemClock
from nav.runtime.messages import LinkMessage, LinkState, Message

__all__ = ["Bridge", "bridge_from"]

_NAME = "Bridge"
#: How often clients are told that the source is still lost.
_TELL_S = 1.0
_LINE_S = 5.0
#: Changes of the link, and clients that have gone, kept for the report.
_KEPT = 64
#: Codes of STATUS.
_OK, _LOST = 1, 7


class Bridge:
    """Hands on what the source delivers, and tells the clients whether there is a source at all.

    Parameters
    ----------
    config : SourceConfig
    host, port, allow
        See `IgtlServer`.
    rules : Forwarding
    """

    def __init__(self, config: SourceConfig, host: str, port: int, allow: Sequence[str], rules: Forwarding) -> None:
        self.clock = SystemClock()
        self.rules = rules
        self.source = IgtlSource(config, self.clock)
        # No keep-alive of the server's own: it would say OK for a source that is lost.
        self.server = IgtlServer(
            host, port, name=_NAME, keep_alive_s=None, on_client=self._on_client, on_message=self._on_message,
            allow=allow,
        )  # fmt: skip
        self.received = self.forwarded = 0
        self.asked: Counter[str] = Counter()
        self.gone: deque[ClientInfo] = deque(maxlen=_KEPT)
        self.came = 0
        self.links: deque[tuple[int, LinkState, str]] = deque(maxlen=_KEPT)
        self._state: tuple[int, str, str] = (_LOST, "SourceLost", "not connected to the source yet")
        self._lock = threading.Lock()

    # -- of the source's thread ------------------------------------------------------------------------------------

    def deliver(self, message: Message, raw: bytes | memoryview | None) -> None:
        """See `nav.runtime.messages.MessageSink`."""
        if raw is None:
            if isinstance(message, LinkMessage):
                self._link(message)
            return
        self.received += 1
        for one in self.rules.messages(message, raw):
            # Counted first: whoever has got it must find it in the report.
            self.forwarded += 1
            self.server.publish(one.key, partial(_bytes_of, one), kind=one.kind, depth=one.depth)

    def _link(self, message: LinkMessage) -> None:
        self.links.append((message.arrival_ns, message.state, message.detail))
        with self._lock:
            if message.state is LinkState.CONNECTED:
                self._state = _OK, "", message.detail
            else:
                self._state = _LOST, "SourceLost", message.detail
        self.tell()

    # -- of the server's thread ------------------------------------------------------------------------------------

    def _on_client(self, client: ClientInfo, here: bool) -> None:
        if here:
            self.came += 1
            self.tell(only=client.number)
        else:
            self.gone.append(client)

    def _on_message(self, client: ClientInfo, raw: bytes) -> None:  # noqa: ARG002
        self.asked[raw[2:14].split(b"\0", 1)[0].decode("ascii", "replace")] += 1

    # -- of any thread ---------------------------------------------------------------------------------------------

    @property
    def lost(self) -> bool:
        """Whether there is no source now."""
        with self._lock:
            return self._state[0] != _OK

    def tell(self, only: int | None = None) -> None:
        """Send the state of the link to all clients, or to one."""
        with self._lock:
            code, name, text = self._state
        self.server.publish(_NAME, partial(_status, code, name, text), kind="reliable", only=only)

    def report(self, since_ns: int) -> dict[str, Any]:
        """What was done, as JSON (``docs/igtl-json.md``)."""
        statistics = self.source.statistics()
        return {
            "from": f"{self.source.config.host}:{self.source.config.port}",
            "serve": f"{self.server.host}:{self.server.port}",
            "duration_s": round((self.clock.now_ns() - since_ns) * 1e-9, 3),
            "connections": statistics.connections,
            "link": [
                {"at_s": round((at - since_ns) * 1e-9, 3), "state": s.value, "detail": d} for at, s, d in self.links
            ],
            "received": self.received,
            "forwarded": self.forwarded,
            "not_forwarded": dict(self.rules.refused),
            "dropped": sum(statistics.dropped.values()),
            "skipped": statistics.skipped,
            "clients_came": self.came,
            "clients": [_client(c, True) for c in self.server.clients] + [_client(c, False) for c in self.gone],
            "from_clients": dict(self.asked),
        }


def _bytes_of(one: Forwarded, spoken: int) -> bytes | None:
    return one.raw if spoken == 2 else one.first


def _status(code: int, name: str, text: str, spoken: int) -> bytes:
    return encode_status(_NAME, code, 0, name, text, version=spoken)


def _client(client: ClientInfo, connected: bool) -> dict[str, Any]:
    out = asdict(client)
    out["dropped"] = sum(client.dropped.values())
    return {**out, "connected": connected}


def bridge_from(
    config: SourceConfig,
    host: str,
    port: int,
    *,
    allow: Sequence[str],
    rules: Forwarding,
    duration_s: float | None,
    as_json: bool,
) -> int:
    """Forward until the time is over or Ctrl-C; `ExitCode.CONNECTION` when the source never connected."""
    steps = Steps()
    prepare(steps)
    bridge = Bridge(config, host, port, allow, rules)
    since_ns = bridge.clock.now_ns()
    with until_interrupted() as stop, bridge.server as server:
        address = f"{host}:{server.port}"
        steps.say(f"  {config.host}:{config.port} at {address}; Ctrl-C ends")
        bridge.source.start(bridge)
        try:
            _wait(bridge, stop, since_ns, duration_s, steps)
            report = bridge.report(since_ns)
        finally:
            bridge.source.stop()
    if as_json:
        print_json(report)
    else:
        print(_line(report))
    if not report["connections"]:
        raise CommandError(
            f"{report['from']}: never connected; start the server, or correct host and port", ExitCode.CONNECTION
        )
    return ExitCode.OK


def _wait(bridge: Bridge, stop: threading.Event, since_ns: int, duration_s: float | None, steps: Steps) -> None:
    said_s = told_s = 0.0
    while True:
        elapsed_s = (bridge.clock.now_ns() - since_ns) * 1e-9
        if duration_s is not None and elapsed_s >= duration_s:
            return
        if elapsed_s - told_s >= _TELL_S:
            told_s = elapsed_s
            if bridge.lost:
                bridge.tell()
        if elapsed_s - said_s >= _LINE_S:
            said_s = elapsed_s
            steps.say(f"{elapsed_s:7.1f} s  {_line(bridge.report(since_ns))}")
        left_s = _TELL_S if duration_s is None else min(_TELL_S, duration_s - elapsed_s)
        if stop.wait(max(left_s, 0.0)):
            return


def _line(report: dict[str, Any]) -> str:
    last = report["link"][-1]["detail"] if report["link"] else "connecting"
    here = [c for c in report["clients"] if c["connected"]]
    parts = [
        last,
        f"{report['received']} messages received, {report['forwarded']} forwarded",
        f"{len(here)} clients" + (f", {sum(c['dropped'] for c in here)} dropped" if here else ""),
    ]
    parts += [f"{count} {why}" for why, count in report["not_forwarded"].items()]
    if report["from_clients"]:
        parts.append(f"{sum(report['from_clients'].values())} messages of clients not passed on")
    return "; ".join(parts)
