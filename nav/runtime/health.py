"""Health of one stream, from its samples, its link and a clock reading: waiting, live, stale, lost or link lost.

Pure bookkeeping: nothing here reads a clock, so a replay that makes the same calls gets the same states. Ages count
from acquisition (`nav.runtime.sender_time`): a stream that arrives punctually with old data is old.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from nav.config.room import ImageStreamConfig, ToolStreamConfig
from nav.geometry.poses import PoseStatus
from nav.guidance.health import StreamClock, StreamFinding, StreamHealth
from nav.runtime.distribution import Distribution
from nav.runtime.messages import LinkState
from nav.runtime.pose_checks import HeldWatch, RepeatWatch, ScaleWatch, StampWatch
from nav.runtime.server_status import ServerStatus

__all__ = ["StreamMonitor"]

#: The same bits for longer than this, while the stamps move on: marked. Of a stream known to have noise
#: (`nav.runtime.pose_checks.RepeatWatch`) they are taken away, as old as their first one, at the limit of its age.
FROZEN_AFTER_NS = 500_000_000
#: The rate shown is counted over this span, or over this many periods of a slower stream.
RATE_SPAN_NS = 1_000_000_000
RATE_SPAN_PERIODS = 5.0


class StreamMonitor:
    """Follows one tool or one image device. Not thread-safe: it lives on the compute thread.

    Parameters
    ----------
    name : str
        As shown: the transform of a tool (``NeedleToTracker``), the name of an image stream.
    kind : str
        ``tool`` or ``image``.
    config : ToolStreamConfig or ImageStreamConfig
        Nominal rate and limits.
    silent_after_ns : int
        No message of any kind on the link for this long: the link is called silent.
    reconnects : bool
        False: a lost connection waits for the operator.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        config: ToolStreamConfig | ImageStreamConfig,
        silent_after_ns: int = 1_000_000_000,
        *,
        reconnects: bool = True,
    ) -> None:
        self.name = name
        self.kind = kind
        self._nominal_hz = config.nominal_hz
        self._gap_ns = round(config.gap_limit_ms * 1e6)
        self._stale_ns = round(config.stale_limit_ms * 1e6)
        self._lost_ns = round(config.lost_limit_ms * 1e6)
        self._hold_last = isinstance(config, ToolStreamConfig) and config.hold_last
        self._silent_after_ns = silent_after_ns
        self._reconnects = reconnects
        self._rate_span_ns = max(RATE_SPAN_NS, round(RATE_SPAN_PERIODS * 1e9 / config.nominal_hz))

        self._received = 0
        self._dropped = 0
        self._gaps = 0
        self._first_arrival_ns = 0
        self._last_arrival_ns = 0
        self._acquired_ns: int | None = None
        self._arrivals: deque[int] = deque()
        self._rejected = 0
        self._refused = 0
        self._repeats = RepeatWatch()
        self._scale = ScaleWatch()
        self._held = HeldWatch()
        self._stamps = StampWatch()
        self._image_findings: tuple[StreamFinding, ...] = ()
        self._on_every: set[str] | None = None  # codes that every image so far has had
        self._server: ServerStatus | None = None
        self._server_is_own = False
        self._server_withholds = False
        self._lost_status: PoseStatus | None = None
        self._lost_problem = ""
        self._lost_since_ns = 0
        self._link: LinkState | None = None
        self._link_detail = ""
        self._heard_ns: int | None = None
        self._ages_ms = Distribution()

    # -- what happens on the stream ------------------------------------------------------------------------------

    def on_sample(
        self,
        acquired_ns: int,
        arrival_ns: int,
        content: bytes = b"",
        *,
        used: bool = True,
        findings: tuple[StreamFinding, ...] = (),
    ) -> None:
        """A valid pose or an image.

        Parameters
        ----------
        acquired_ns, arrival_ns : int
            Local monotonic clock.
        content : bytes
            The matrix's bits, to notice a sender that repeats itself; empty: not checked.
        used : bool
            False for an image that a newer one superseded before it was used: received, but dropped.
        findings : tuple of StreamFinding
            What looks wrong in this image.
        """
        if self._received == 0:
            self._first_arrival_ns = arrival_ns
        self._received += 1
        if not used:
            self._dropped += 1
        self._last_arrival_ns = max(self._last_arrival_ns, arrival_ns)
        self._arrivals.append(arrival_ns)
        while self._arrivals[0] < arrival_ns - self._rate_span_ns:
            self._arrivals.popleft()
        self.on_any_message(arrival_ns)
        if self._acquired_ns is not None and acquired_ns - self._acquired_ns > self._gap_ns and not self._hold_last:
            self._gaps += 1
        self._repeats.take(content, acquired_ns)
        if self._hold_last:
            self._held.take(arrival_ns)
        if findings or self._on_every is None or self._on_every:
            here = {f.code for f in findings if f.by_every_item}
            self._on_every = here if self._on_every is None else self._on_every & here
            findings = tuple(f for f in findings if not f.by_every_item or f.code in self._on_every)
        self._image_findings = findings
        self._server_withholds = self._server is not None and self._server.failed
        if self._acquired_ns is None or acquired_ns > self._acquired_ns:
            self._acquired_ns = acquired_ns
        self._lost_status = None

    def on_lost(self, status: PoseStatus, arrival_ns: int, problem: str = "") -> None:
        """The tracker reports that it does not see the tool, or (``problem``) what it sent is no pose."""
        if self._lost_status is None:
            self._lost_since_ns = arrival_ns
        self._lost_status, self._lost_problem = status, problem
        if problem:
            self._refused += 1
        self.on_any_message(arrival_ns)

    def on_rejected(self, acquired_ns: int, arrival_ns: int, content: bytes = b"") -> None:
        """A pose whose time is not after that of the one before: not used, and the stream ages."""
        self._rejected += 1
        self._repeats.refuse(content, acquired_ns)
        self.on_any_message(arrival_ns)

    def on_stamp(self, sender_ns: int | None, arrival_ns: int) -> None:
        """The stamp of a message, where the source is said to stamp."""
        self._stamps.take(sender_ns, arrival_ns)

    def on_matrix(self, matrix: NDArray[np.float64]) -> None:
        """A valid pose, (4, 4) mm."""
        self._scale.take(matrix)

    def on_status(self, status: ServerStatus, *, own: bool = False) -> None:
        """The server said how it is, or (``own``) how this device is: a general keep-alive does not undo that."""
        self.on_any_message(status.arrival_ns)
        if self._server is not None and self._server_is_own and not own and not status.failed:
            return
        self._server, self._server_is_own = (None if status.is_ok else status), own
        self._server_withholds = status.failed or status.without_data

    def is_frozen(self, content: bytes, acquired_ns: int) -> bool:
        """Would a pose with these bits only repeat what a noisy stream has been sending for longer than its limit?"""
        return (
            not self._hold_last
            and self._repeats.has_noise
            and self._repeats.run_ns(content, acquired_ns) > self._lost_ns
        )

    def on_link(self, state: LinkState, arrival_ns: int, detail: str = "") -> None:
        """The connection changed."""
        self._link, self._link_detail = state, detail
        if state is LinkState.CONNECTED:
            self._heard_ns = arrival_ns
            self._server, self._server_withholds = None, False

    def on_any_message(self, arrival_ns: int) -> None:
        """The link speaks: any message of the source, such as a keep-alive STATUS."""
        self._heard_ns = arrival_ns if self._heard_ns is None else max(self._heard_ns, arrival_ns)

    def on_drop(self, count: int = 1) -> None:
        """Images that were pushed out unseen before a tick (`Batch.overflowed`): received and dropped."""
        self._received += count
        self._dropped += count

    # -- what is made of it --------------------------------------------------------------------------------------

    def age_ns(self, now_ns: int) -> int | None:
        """Age of the newest data at ``now_ns``, from acquisition; None before the first sample.

        Of a stream that is sent only on change, the age of the last sign of life of its link.
        """
        if self._acquired_ns is None:
            return None
        if self._hold_last and self._heard_ns is not None:
            return now_ns - max(self._acquired_ns, self._heard_ns)
        return now_ns - self._acquired_ns

    def health(
        self, now_ns: int, clock: StreamClock | None = None, clock_findings: tuple[StreamFinding, ...] = ()
    ) -> StreamHealth:
        """The state at ``now_ns``; changes nothing. ``age_ms`` is infinite before the first sample.

        ``clock`` and what looks wrong with it are passed on: they are found where the sender's clock is followed.
        """
        age_ns = self.age_ns(now_ns)
        state, detail = self._state(now_ns, age_ns)
        return StreamHealth(
            name=self.name,
            kind=self.kind,
            state=state,
            rate_hz=self._rate_hz(now_ns),
            nominal_hz=self._nominal_hz,
            age_ms=math.inf if age_ns is None else age_ns * 1e-6,
            received=self._received,
            dropped=self._dropped,
            gaps=self._gaps,
            stale_ms=self._stale_ns * 1e-6,
            lost_ms=self._lost_ns * 1e-6,
            detail=detail,
            rejected=self._rejected,
            refused=self._refused,
            clock=clock,
            findings=(*self._findings(now_ns), *clock_findings),
            reconnects=self._reconnects,
        )

    def _findings(self, now_ns: int) -> list[StreamFinding]:
        if self._received == 0 and self._server is None:
            return []
        found = [*self._image_findings, *self._stamps.findings(now_ns)]
        found += [f for f in (self._scale.finding(), self._held.finding()) if f is not None]
        if self._server is not None and self._server.stands(now_ns):
            found.append(self._server.finding())
        return found

    def _state(self, now_ns: int, age_ns: int | None) -> tuple[str, str]:
        if self._link in (LinkState.CLOSED, LinkState.FAILED):
            what = "connection closed" if self._link is LinkState.CLOSED else "no connection"
            return "link_lost", f"{what}: {self._link_detail}" if self._link_detail else what
        if self._link is LinkState.CONNECTING and self._received:
            return "link_lost", "reconnecting"
        if self._heard_ns is None:
            return "waiting", "connecting" if self._link is LinkState.CONNECTING else "no connection yet"
        silence_ns = now_ns - self._heard_ns
        if silence_ns > self._silent_after_ns:
            return "link_lost", f"link silent for {silence_ns * 1e-9:.1f} s"
        said = ""
        if self._server is not None and self._server.stands(now_ns):
            said = f"; {self._server.describe()}"
        if self._server is not None and self._server_withholds and self._received:
            return "lost", self._server.describe()
        if self._lost_status is not None:
            since = f"{self._lost_status.value} for {max(now_ns - self._lost_since_ns, 0) * 1e-9:.1f} s"
            return "lost", f"{since}: {self._lost_problem}{said}" if self._lost_problem else since + said
        if age_ns is None:
            return "waiting", f"connected, no {'pose' if self.kind == 'tool' else 'image'} yet{said}"
        if age_ns > self._lost_ns:
            return "lost", f"no {'pose' if self.kind == 'tool' else 'image'} for {age_ns * 1e-9:.1f} s{said}"
        if not self._hold_last and self._repeats.has_noise and now_ns - self._repeats.since_ns > self._lost_ns:
            # A pose that repeats itself is as old as its first appearance.
            return "lost", f"frozen: the same pose bit for bit for {self._repeats.length_ns * 1e-9:.1f} s"
        if age_ns > self._stale_ns:
            return "stale", f"{age_ns * 1e-6:.0f} ms old"
        if not self._hold_last:
            frozen_ns = self._repeats.length_ns
            if frozen_ns > FROZEN_AFTER_NS:
                return "stale", f"frozen: the same pose bit for bit for {frozen_ns * 1e-9:.1f} s"
        return "live", ""

    def _rate_hz(self, now_ns: int) -> float:
        start = now_ns - self._rate_span_ns
        count = sum(1 for arrival in self._arrivals if arrival > start)
        span_ns = min(self._rate_span_ns, now_ns - self._first_arrival_ns)
        if count < 2 or span_ns <= 0:
            return 0.0
        # Running for less than the span: count intervals, so that the first second does not read high.
        return (count - 1 if span_ns < self._rate_span_ns else count) * 1e9 / span_ns

    def sample_age(self, now_ns: int) -> None:
        """Keep the age at this tick for `summary`."""
        age_ns = self.age_ns(now_ns)
        if age_ns is not None:
            self._ages_ms.add(age_ns * 1e-6)

    def summary(self) -> dict[str, object]:
        """``received, dropped, gaps, rejected, refused, rate_hz, age_ms{p50, p95, max}``.

        Ages in ms over the ticks, None without any. What the sender's clock does is added by `StreamSet.summary`.
        """
        span_ns = self._last_arrival_ns - self._first_arrival_ns
        return {
            "received": self._received,
            "dropped": self._dropped,
            "gaps": self._gaps,
            "rejected": self._rejected,
            "refused": self._refused,
            "rate_hz": (self._received - 1) * 1e9 / span_ns if span_ns > 0 else 0.0,
            "age_ms": self._ages_ms.numbers("p50", "p95", "max"),
        }
