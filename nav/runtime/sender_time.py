"""From a sender's time stamps to local acquisition times: the smallest observed offset in a window.

A message stamped ``sender`` arrives ``arrival − sender = clock offset + transport delay`` later. The delay is never
negative, so the smallest difference seen is the offset plus the smallest delay; jitter of the transport falls out
(a simulated 60 Hz stream with spikes and drift: 0.03 ms standard deviation instead of 9.3 ms for arrival stamps). The
smallest delay itself cannot be seen from one side: it comes from temporal calibration (``fixed_delay``). Before
a window has filled, the smallest difference is only an upper bound, so acquisition times err towards arrival, by
at most the delay's jitter.

Two things may look like a growing delay and must not be taken for one another: the sender's clock was set back, or
data really comes later (a queue builds up). Forgetting the old minimum too fast would call late data fresh. So the
offset follows downwards at once but upwards no faster than a clock can drift (`MAX_DRIFT_PPM`, the limit of NTP
slewing). A clock that was set back is known by stamps that run backwards, which an ordered transport cannot cause;
after a reconnect the caller calls `reset`. A clock that was set forward by less than `STEP_FORWARD_NS` needs no notice:
the smaller difference is followed at once, and no age is wrong for it.

The devices of one sender share its clock, but each has its own least delay (an image is ready later than a pose). The
offset of the sender is the least of all; beside it every device is followed by itself, to say how late and how
regularly it comes (`SenderTimeMapper.device`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

__all__ = ["DeviceTiming", "SenderTimeMapper"]

#: A difference that falls by more than this is a clock that was set forward, not a faster message.
STEP_FORWARD_NS = 500_000_000
#: Stamps of one device that run back by more than this: the clock was set back.
STEP_BACK_NS = 50_000_000
#: Largest rate at which two clocks part: crystals stay below 100 ppm, NTP slews by at most 500 ppm.
MAX_DRIFT_PPM = 500.0
#: Samples behind `SenderTimeMapper.jitter_ms`.
JITTER_SAMPLES = 512
#: One minimum per this span goes into the drift estimate, over at most `DRIFT_BINS` spans.
DRIFT_BIN_NS = 1_000_000_000
DRIFT_BINS = 600
DRIFT_MIN_BINS = 10
#: Devices followed one by one; a sender that invents names must not fill the memory.
DEVICES = 256


@dataclass(frozen=True, slots=True)
class DeviceTiming:
    """Timing of one device's messages; ns and ms of the local clock.

    ``offset_ns``: local minus sender clock, the device's smallest delay included. ``lag_ms``: that delay above the
    smallest of the whole sender. The others as the properties of `SenderTimeMapper`, for this device alone.
    """

    offset_ns: int
    lag_ms: float
    jitter_ms: float
    drift_ppm: float | None
    shift_ms: float


class _OffsetFollower:
    """Smallest difference arrival − stamp in a window; rises no faster than clocks part."""

    __slots__ = ("_arrival_ns", "_bins", "_excess_ns", "_minima", "_window_ns", "offset_ns")

    def __init__(self, window_ns: int) -> None:
        self._window_ns = window_ns
        self._minima: deque[tuple[int, int]] = deque()  # (arrival, difference), differences increasing
        self.offset_ns: int | None = None
        self._arrival_ns = 0
        self._excess_ns: deque[int] = deque(maxlen=JITTER_SAMPLES)
        self._bins: deque[list[int]] = deque(maxlen=DRIFT_BINS)  # [bin number, arrival, smallest difference]

    def take(self, arrival_ns: int, difference: int) -> int:
        """Take one message in; returns the offset in use."""
        minima = self._minima
        while minima and minima[-1][1] >= difference:
            minima.pop()
        minima.append((arrival_ns, difference))
        while minima[0][0] < arrival_ns - self._window_ns:
            minima.popleft()
        smallest = minima[0][1]
        if self.offset_ns is not None:
            rise = int((arrival_ns - self._arrival_ns) * (MAX_DRIFT_PPM * 1e-6))
            smallest = min(smallest, self.offset_ns + max(rise, 0))
        # Rises shorter than one nanosecond would be lost one by one: the reference moves only when the offset does.
        if smallest != self.offset_ns:
            self.offset_ns, self._arrival_ns = smallest, arrival_ns
        elif minima[0][1] <= smallest:
            self._arrival_ns = arrival_ns
        self._excess_ns.append(difference - smallest)
        number = arrival_ns // DRIFT_BIN_NS
        if not self._bins or self._bins[-1][0] != number:
            self._bins.append([number, arrival_ns, difference])
        elif difference < self._bins[-1][2]:
            self._bins[-1][1:] = [arrival_ns, difference]
        return smallest

    @property
    def jitter_ms(self) -> float | None:
        if not self._excess_ns:
            return None
        return float(np.percentile(np.array(self._excess_ns, dtype=np.float64), 95.0)) * 1e-6

    @property
    def drift_ppm(self) -> float | None:
        if len(self._bins) < DRIFT_MIN_BINS:
            return None
        bins = np.array([(b[1] - self._bins[0][1], b[2] - self._bins[0][2]) for b in self._bins], dtype=np.float64)
        slope = float(np.polyfit(bins[:, 0], bins[:, 1], 1)[0])
        return -slope * 1e6

    @property
    def shift_ms(self) -> float | None:
        if self.offset_ns is None:
            return None
        return (self._minima[0][1] - self.offset_ns) * 1e-6


class SenderTimeMapper:
    """Maps stamps of one sender's clock. Deterministic: depends only on the calls made, in order. Not thread-safe.

    Parameters
    ----------
    window_ns : int
        How long a smallest offset is remembered (local time).
    fixed_delay_ns : int
        The smallest transport delay, from temporal calibration; may be negative.
    use_sender : bool
        False: the stamps are not used, acquisition is arrival minus the fixed delay.
    """

    def __init__(self, window_ns: int, fixed_delay_ns: int = 0, *, use_sender: bool = True) -> None:
        if window_ns <= 0:
            raise ValueError(f"window_ns {window_ns}: must be positive")
        self._window_ns = window_ns
        self._fixed_delay_ns = fixed_delay_ns
        self._use_sender = use_sender
        self._steps = 0
        self._clear()

    def _clear(self) -> None:
        self._all = _OffsetFollower(self._window_ns)
        self._of_device: dict[str, _OffsetFollower] = {}
        self._first_sender_ns: int | None = None
        self._moves = False
        self._last_of_device: dict[str, int] = {}

    def reset(self) -> None:
        """Forget the offset: the connection is new, and so may be the clock behind it. `steps` goes on counting."""
        self._clear()

    def acquired_ns(self, sender_ns: int | None, arrival_ns: int, device: str = "") -> int:
        """Local time at which the data was acquired.

        Parameters
        ----------
        sender_ns : int or None
            The stamp as received (any epoch); None or 0 when the sender stamps nothing.
        arrival_ns : int
            Local arrival; not before that of the call before.
        device : str
            Whose stamps must not run backwards. Devices of one sender share its clock but may lag one another.

        Returns
        -------
        int
            Never later than ``arrival_ns``. Arrival minus the fixed delay for a sender that stamps nothing or
            whose stamp has never moved. A stamp that moved once and then stands still is believed: that data is old.
        """
        by_arrival = min(arrival_ns, arrival_ns - self._fixed_delay_ns)
        if not self._use_sender or not sender_ns:
            return by_arrival
        difference = arrival_ns - sender_ns
        last, offset = self._last_of_device.get(device), self._all.offset_ns
        stepped_back = last is not None and sender_ns < last - STEP_BACK_NS
        stepped_forward = offset is not None and difference < offset - STEP_FORWARD_NS
        if stepped_back or stepped_forward:
            self._steps += 1
            moved = self._moves
            self._clear()
            self._moves = moved
        if last is not None or len(self._last_of_device) < DEVICES:
            self._last_of_device[device] = sender_ns
        if self._first_sender_ns is None:
            self._first_sender_ns = sender_ns
        elif sender_ns != self._first_sender_ns:
            self._moves = True
        offset = self._all.take(arrival_ns, difference)
        follower = self._of_device.get(device)
        if follower is None and len(self._of_device) < DEVICES:
            follower = self._of_device[device] = _OffsetFollower(self._window_ns)
        if follower is not None:
            follower.take(arrival_ns, difference)
        if not self._moves:
            return by_arrival
        return min(arrival_ns, sender_ns + offset - self._fixed_delay_ns)

    def device(self, device: str) -> DeviceTiming | None:
        """Timing of one device; None before its first stamp."""
        own = self._of_device.get(device)
        if own is None or own.offset_ns is None or self._all.offset_ns is None:
            return None
        jitter, shift = own.jitter_ms, own.shift_ms
        assert jitter is not None
        assert shift is not None
        lag_ms = (own.offset_ns - self._all.offset_ns) * 1e-6
        return DeviceTiming(own.offset_ns, lag_ms, jitter, own.drift_ppm, shift)

    @property
    def offset_ns(self) -> int | None:
        """Local minus sender clock, smallest delay included; None before the first stamp."""
        return self._all.offset_ns

    @property
    def jitter_ms(self) -> float | None:
        """95th percentile of the delay above the smallest one, over the last messages; None before the first."""
        return self._all.jitter_ms

    @property
    def drift_ppm(self) -> float | None:
        """How much faster the sender's clock runs, from a line through the minima of each second; None before 10 s."""
        return self._all.drift_ppm

    @property
    def shift_ms(self) -> float | None:
        """How far the smallest delay of the window lies above the offset in use: late data, or a clock set back.

        Near zero in health; None before the first stamp.
        """
        return self._all.shift_ms

    @property
    def steps(self) -> int:
        """How often the sender's clock was found to have been set."""
        return self._steps

    @property
    def moves(self) -> bool:
        """Has a stamp ever differed from the first one?"""
        return self._moves
