"""What must hold of the sender-time mapping whatever the network does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nav.runtime.sender_time import MAX_DRIFT_PPM, SenderTimeMapper

MS = 1_000_000
S = 1_000_000_000


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int]]]:
    """(clock offset, fixed delay, [(true acquisition, arrival)]): an ordered transport with jitter and stalls."""
    offset = draw(st.integers(-(10**18), 10**18))
    base = draw(st.integers(0, 100)) * MS
    steps = draw(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 400)), min_size=2, max_size=120))
    acquired, arrival = 10**18 + S, 0
    samples = []
    for step_ms, jitter_ms in steps:
        acquired += step_ms * MS
        arrival = max(arrival, acquired + base + jitter_ms * MS)
        samples.append((acquired, arrival))
    return offset, base, samples


@given(streams())
@settings(max_examples=200, deadline=None)
def test_never_in_the_future_never_out_of_order_and_off_by_no_more_than_the_smallest_jitter(
    stream: tuple[int, int, list[tuple[int, int]]],
) -> None:
    offset, base, samples = stream
    mapper = SenderTimeMapper(10 * S, base)
    mapped = [mapper.acquired_ns(acquired + offset, arrival, "d") for acquired, arrival in samples]
    assert mapper.steps == 0
    for (_, arrival), got in zip(samples, mapped, strict=True):
        assert got <= arrival
    # A faster message lowers the offset for those after it; their times never fall behind those before.
    assert mapped == sorted(mapped)
    # The error is the smallest extra delay seen in the window, plus what a clock might have drifted: never early.
    for n in range(1, len(samples)):
        acquired, arrival = samples[n]
        seen = [a - t - base for t, a in samples[: n + 1] if a >= arrival - 10 * S]
        error = mapped[n] - acquired
        assert error >= 0
        assert error <= min(seen)
        every = [a - t - base for t, a in samples[: n + 1]]
        assert error <= min(every) + (arrival - samples[0][1]) * MAX_DRIFT_PPM * 1e-6 + 1


@given(streams())
@settings(max_examples=50, deadline=None)
def test_the_same_calls_give_the_same_times(stream: tuple[int, int, list[tuple[int, int]]]) -> None:
    offset, base, samples = stream
    one, two = SenderTimeMapper(5 * S, base), SenderTimeMapper(5 * S, base)
    for acquired, arrival in samples:
        assert one.acquired_ns(acquired + offset, arrival) == two.acquired_ns(acquired + offset, arrival)
    assert (one.jitter_ms, one.drift_ppm, one.shift_ms) == (two.jitter_ms, two.drift_ppm, two.shift_ms)
