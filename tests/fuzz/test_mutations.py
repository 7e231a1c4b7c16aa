"""Some thousand mutations with a fixed seed; the long runs are in docs/openigtlink-robustness.md."""

from __future__ import annotations

import random

import pytest
from numba import config as numba_config

from tests.fuzz import invariants
from tests.fuzz.mutations import Mutator, repaired, run
from tests.fuzz.seeds import all_type_names, reference_folder, seeds

pytestmark = pytest.mark.skipif(
    bool(numba_config.DISABLE_JIT), reason="the receive kernel calls the C library, which plain Python cannot do for it"
)


def test_every_type_is_among_the_seeds() -> None:
    pool = seeds(reference_folder())
    assert {*all_type_names()} <= {seed.type_name for seed in pool}
    assert {seed.version for seed in pool} == {1, 2}
    for seed in pool:  # each of them is sound
        got = invariants.check_stream(seed.raw, invariants.split(seed.raw, random.Random(1)))
        assert got.messages == [seed.raw]
        assert invariants.check_content(seed.raw).startswith(("read:", "unknown type:")), seed.name
        invariants.check_json(seed.raw)


def test_mutations_are_the_same_every_time() -> None:
    pool = seeds()
    first = [Mutator(pool, 3).stream(n)[0] for n in range(200)]
    assert first == [Mutator(pool, 3).stream(n)[0] for n in range(200)]
    assert len(set(first)) > 190


def test_repaired_messages_are_framed() -> None:
    for seed in seeds():
        raw = repaired(bytearray(seed.raw + b"xyz"))
        assert len(raw) == len(seed.raw) + 3
        assert invariants.expected_framing(raw, invariants.LIMITS).messages == [raw]


def test_some_thousand_mutations() -> None:
    summary = run(20, range(8000), watch=False)
    assert summary.failures == []
    assert summary.mutations == 8000
    # It has reached what is behind the CRC, and what is before it.
    for outcome in ("read: PoseMessage", "read: ImageMessage", "refused: UnusedMessage", "stream: WireError"):
        assert summary.outcomes[outcome] > 100, summary.outcomes


def test_a_wrong_message_is_noticed() -> None:
    """The invariants can fail: each of these is not what the reader of it does."""
    raw = next(seed.raw for seed in seeds() if seed.type_name == "TRANSFORM" and seed.version == 1)
    with pytest.raises(AssertionError, match="expected"):
        invariants._same("x", invariants.by_framer([raw[:-1]], invariants.LIMITS), invariants.expected_framing(
            raw, invariants.LIMITS))  # fmt: skip
    broken = bytearray(raw)
    broken[60] ^= 1
    got = invariants.check_stream(bytes(broken), [bytes(broken)], ring=invariants.make_ring())
    assert got.messages == []
    assert got.error.startswith("WireError: CRC")
