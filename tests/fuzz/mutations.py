"""Sound messages, damaged in the ways that hit a decoder: sizes, counts, chunks, numbers, text; mostly with a good CRC.

``python -m tests.fuzz.mutations --count 1000000 --seed 1 --processes 1``. Mutation n of a seed is always the same:
``--only N`` runs it again. What fails is saved (``--out``) and named in the summary (JSON, standard output).
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import multiprocessing
import os
import random
import resource
import signal
import struct
import sys
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from drivers.openigtlink.crc64 import crc64
from drivers.openigtlink.receiver import ReceiveRing
from drivers.openigtlink.wire import Limits
from tests.fuzz import invariants
from tests.fuzz.seeds import EXTENDED_FIELDS, HEADER_FIELDS, Seed, reference_folder, seeds

__all__ = ["Mutator", "Summary", "check", "main", "run"]

#: No message of some kilobytes may take longer (a garbage collection and a busy machine included).
SLOWEST_S = 2.0
#: Most that a message may allocate: this many times its size, what its header may announce, and what stays cached.
MEMORY_FACTOR, MEMORY_BYTES = 64, 3 << 20

_INTERESTING = (0, 1, 2, 3, 7, 8, 12, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
                0xFFFFFFFF, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 3.4e38, -3.4e38, float("inf"), float("-inf"), float("nan"), 1e5,
           100_000.01, 0.5, 1.0000001, 0.999)  # fmt: skip
_TEXTS = (b"", b"\0", b"\xff\xfe", b"\xed\xa0\x80", "é".encode(), b" ", b"A" * 20, b"NeedleToTracker", b"\x80" * 12,
          b"TransformStatus", b"IGTL_DEVICE_NAME", "\N{SNOWMAN}".encode(), b"\xc3")  # fmt: skip
_CHARACTER_SETS = (0, 3, 4, 17, 18, 39, 106, 113, 114, 1013, 1014, 1018, 1019, 2025, 2252, 2258, 65535)


class Mutator:
    """Mutation ``n`` of ``seed``, always the same."""

    def __init__(self, pool: list[Seed], seed: int) -> None:
        self.pool, self.seed = pool, seed
        self._by_type: dict[str, list[Seed]] = {}
        for one in pool:
            self._by_type.setdefault(one.type_name, []).append(one)
        self._types = list(self._by_type)
        # Queries are many and small; what is in the other types is what the decoders are for.
        self._rich = [name for name in self._types if name.partition("_")[0] not in ("GET", "STP", "STT", "RTS")]
        self._poses = ("TRANSFORM", "TDATA", "QTDATA", "POSITION", "IMAGE")
        self._changes: tuple[Callable[[random.Random, Seed, bytearray], None], ...] = (
            _number, _number, _number, _number, _real, _real, _bits, _bits, _reverse, _cut, _cut, _grow, _chunk, _chunk,
            _text, _extended, _extended, _metadata, _stuff, self._splice, self._splice, self._retype,
        )  # fmt: skip

    def stream(self, n: int) -> tuple[bytes, random.Random]:
        """The bytes, and the random numbers for what is done with them."""
        rng = random.Random(self.seed << 40 | n)
        kind = rng.random()
        if kind < 0.80:
            return self._message(rng, sound=True), rng
        if kind < 0.90:
            return self._message(rng, sound=False), rng
        return self._several(rng), rng

    def _pick(self, rng: random.Random) -> Seed:
        kind = rng.random()
        if kind < 0.15:
            return rng.choice(self.pool)
        return rng.choice(self._by_type[rng.choice(self._rich if kind < 0.75 else self._poses)])

    def _message(self, rng: random.Random, *, sound: bool) -> bytes:
        """One message with a few changes; with ``sound`` its size and CRC are made right again."""
        seed = self._pick(rng)
        raw = bytearray(seed.raw)
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
            rng.choice(self._changes)(rng, seed, raw)
        if sound:
            if rng.random() < 0.1:
                _header(rng, seed, raw)
            return repaired(raw)
        if rng.random() < 0.5:
            _header(rng, seed, raw)
        if rng.random() < 0.5:  # the size is right, the CRC is that of other bytes
            raw[42:50] = max(len(raw) - 58, 0).to_bytes(8, "big")
        return bytes(raw)

    def _several(self, rng: random.Random) -> bytes:
        """Several messages, sound and damaged, and some damage to the whole."""
        parts = [
            self._pick(rng).raw if rng.random() < 0.6 else self._message(rng, sound=rng.random() < 0.8)
            for _ in range(rng.randrange(2, 6))
        ]
        stream = bytearray(b"".join(parts))
        action = rng.random()
        if action < 0.2:
            del stream[rng.randrange(len(stream)) :]
        elif action < 0.3:
            at = rng.randrange(len(stream))
            stream[at:at] = rng.randbytes(rng.choice((1, 2, 58, 100)))
        elif action < 0.4:
            at = rng.randrange(len(stream))
            del stream[at : at + rng.choice((1, 2, 58, 100))]
        elif action < 0.5:
            stream[rng.randrange(len(stream))] ^= 1 << rng.randrange(8)
        return bytes(stream)

    def _splice(self, rng: random.Random, seed: Seed, raw: bytearray) -> None:
        """The beginning of one content and the end of another."""
        other = rng.choice(self._by_type[seed.type_name]) if rng.random() < 0.6 else self._pick(rng)
        content = other.raw[other.content_at : other.content_end]
        if not content:
            return
        at = rng.randrange(seed.content_at, max(seed.content_end, seed.content_at) + 1)
        raw[min(at, len(raw)) :] = content[rng.randrange(len(content)) :]

    def _retype(self, rng: random.Random, seed: Seed, raw: bytearray) -> None:  # noqa: ARG002
        """A content under another type's name."""
        raw[2:14] = rng.choice(self._types).encode().ljust(12, b"\0")


def repaired(raw: bytearray) -> bytes:
    """The message with the size and CRC of its body."""
    if len(raw) < 58:
        raw += bytes(58 - len(raw))
    struct.pack_into(">QQ", raw, 42, len(raw) - 58, crc64(memoryview(raw)[58:]))
    return bytes(raw)


def _field(rng: random.Random, seed: Seed, raw: bytearray) -> tuple[int, int]:
    """Offset and size of a field of the content, or of any one; within ``raw``."""
    at, size = rng.choice(seed.fields) if seed.fields and rng.random() < 0.85 else (
        rng.randrange(58, max(len(raw), 60)), rng.choice((1, 2, 4, 8)),
    )  # fmt: skip
    size = min(size, 8)
    return at, max(0, min(size, len(raw) - at))


def _number(rng: random.Random, seed: Seed, raw: bytearray) -> None:
    at, size = _field(rng, seed, raw)
    now = int.from_bytes(raw[at : at + size], "big")
    rest = len(raw) - at - size
    value = rng.choice((rng.choice(_INTERESTING), now + 1, now - 1, now * 2, now ^ (1 << rng.randrange(8 * size or 1)),
                        rest, rest + 1, rest - 1, rest // 4, len(raw) - 58, rng.choice(_CHARACTER_SETS)))  # fmt: skip
    raw[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "big")


def _real(rng: random.Random, seed: Seed, raw: bytearray) -> None:
    at, size = _field(rng, seed, raw)
    value = rng.choice(_FLOATS)
    if size == 8:
        struct.pack_into(">d", raw, at, value)
    elif at + 4 <= len(raw):
        struct.pack_into(">f", raw, at, value)


def _bits(rng: random.Random, seed: Seed, raw: bytearray) -> None:  # noqa: ARG001
    for _ in range(rng.choice((1, 1, 2, 8)) if len(raw) > 58 else 0):
        raw[rng.randrange(58, len(raw))] ^= 1 << rng.randrange(8)


def _reverse(rng: random.Random, seed: Seed, raw: bytearray) -> None:
    at, size = _field(rng, seed, raw)
    raw[at : at + size] = raw[at : at + size][::-1]


def _cut(rng: random.Random, seed: Seed, raw: bytearray) -> None:
    if len(raw) <= 58:
        return
    if seed.fields and rng.random() < 0.5:
        del raw[max(58, rng.choice(seed.fields)[0]) :]
    else:
        del raw[rng.randrange(58, len(raw)) :]


def _grow(rng: random.Random, seed: Seed, raw: bytearray) -> None:  # noqa: ARG001
    raw += rng.choice((b"\0", b"\0\0", bytes(8), b"\xff" * 4, rng.randbytes(rng.choice((1, 20, 70, 300)))))


def _chunk(rng: random.Random, seed: Seed, raw: bytearray) -> None:
    """A piece is doubled, removed, moved, or two change places."""
    if len(raw) <= 59:
        return
    a = rng.choice(seed.fields)[0] if seed.fields and rng.random() < 0.5 else rng.randrange(58, len(raw))
    a = min(a, len(raw))
    piece = raw[a : a + rng.choice((1, 2, 4, 8, 12, 20, 50, 70))]
    action = rng.randrange(3)
    if action:
        del raw[a : a + len(piece)]
    if action != 1:
        at = rng.randrange(58, len(raw) + 1)
        raw[at:at] = piece * rng.choice((1, 1, 2, 5))


def _text(rng: random.Random, seed: Seed, raw: bytearray) -> None:
    at, _ = _field(rng, seed, raw)
    if rng.random() < 0.2:
        at = rng.choice((2, 14, 14, 20))
    piece = rng.choice(_TEXTS)[: max(0, len(raw) - at)]
    raw[at : at + len(piece)] = piece


def _header(rng: random.Random, seed: Seed, raw: bytearray) -> None:
    """A field of the header; the size and the CRC may be made right again by the caller."""
    del seed
    at, size = rng.choice(HEADER_FIELDS)
    if at + size > len(raw):
        return
    if size > 8:
        raw[at : at + size] = rng.choice((rng.choice(_TEXTS)[:size].ljust(size, b"\0"), rng.randbytes(size)))
        return
    now = int.from_bytes(raw[at : at + size], "big")
    value = rng.choice((*_INTERESTING, now + 1, now - 1, now ^ (1 << rng.randrange(8 * size)), len(raw), 1 << 18))
    raw[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "big")


def _extended(rng: random.Random, seed: Seed, raw: bytearray) -> None:  # noqa: ARG001
    """The version, or a size in the extended header."""
    if rng.random() < 0.3:
        raw[1] ^= 3
        return
    at, size = rng.choice(EXTENDED_FIELDS)
    if raw[1] != 2 or at + size > len(raw):
        return
    now = int.from_bytes(raw[at : at + size], "big")
    body = len(raw) - 58
    value = rng.choice((*_INTERESTING, now + 1, now - 1, body, body - 12, body - 11, body - now, now + 8, now - 8, 10))
    raw[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "big")


def _metadata(rng: random.Random, seed: Seed, raw: bytearray) -> None:
    """Sound metadata of any texts, character sets and keys behind a content of version 2; one size of it may lie."""
    if seed.version != 2 or len(raw) < 70:
        return
    index, body = [], []
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        key, value = rng.choice(_TEXTS), rng.choice((*_TEXTS, b"OK", b"MISSING", rng.randbytes(7)))
        index.append(struct.pack(">HHI", len(key), rng.choice(_CHARACTER_SETS), len(value)))
        body += [key, value]
    head = len(index).to_bytes(2, "big") + b"".join(index)
    tail = b"".join(body)
    old = int.from_bytes(raw[60:62], "big") + int.from_bytes(raw[62:66], "big")
    if 0 < old <= len(raw) - 70:
        del raw[len(raw) - old :]
    if rng.random() < 0.2 and len(head) > 2:
        at = rng.randrange(len(head))
        head = head[:at] + bytes([head[at] ^ 1 << rng.randrange(8)]) + head[at + 1 :]
    struct.pack_into(">HI", raw, 60, len(head), len(tail))
    raw += head + tail


def _stuff(rng: random.Random, seed: Seed, raw: bytearray) -> None:
    """The whole content is noise of a likely size."""
    size = rng.choice((0, 1, 2, 7, 8, 9, 12, 24, 28, 30, 36, 48, 72, 138, 140, 136, 150, 70, 50, len(seed.raw)))
    raw[58 if raw[1] == 1 else 70 :] = rng.randbytes(size)


# ---------------------------------------------------------------------------------------------------------- running


@dataclass
class Summary:
    """What came of a run. Times in seconds, memory in bytes."""

    seed: int
    mutations: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    slowest_s: float = 0.0
    slowest: int = -1
    largest_allocation: int = 0
    peak_growth: int = 0
    failures: list[dict[str, object]] = field(default_factory=list)
    failed: int = 0

    def add(self, other: Summary) -> None:
        """Put a further process' figures to these."""
        self.mutations += other.mutations
        self.seconds = max(self.seconds, other.seconds)
        self.outcomes += other.outcomes
        self.messages += other.messages
        if other.slowest_s > self.slowest_s:
            self.slowest_s, self.slowest = other.slowest_s, other.slowest
        self.largest_allocation = max(self.largest_allocation, other.largest_allocation)
        self.peak_growth = max(self.peak_growth, other.peak_growth)
        self.failures += other.failures
        self.failed += other.failed

    def as_json(self) -> dict[str, object]:
        """For people and programs."""
        out = asdict(self)
        out["outcomes"] = dict(sorted(self.outcomes.items()))
        out["per_second"] = round(self.mutations / self.seconds) if self.seconds else 0
        return out


class HangError(BaseException):
    """A message took longer than it may; not an `Exception`, so that nothing on the way keeps it."""


def check(stream: bytes, rng: random.Random, ring: ReceiveRing | None) -> tuple[list[str], int]:
    """All invariants for one stream; what became of it, and its messages."""
    limits = invariants.LIMITS
    if rng.random() < 0.02:  # the real ones: an announced size costs memory
        limits, ring = Limits(), None
    # A good part goes in one piece: the many splits are of no use to what comes behind the framing.
    pieces = invariants.split(stream, rng) if stream and rng.random() < 0.25 else [stream] if stream else []
    if ring is not None and rng.random() < 0.5:
        ring = None
    got = invariants.check_stream(stream, pieces, limits, ring)
    outcomes = [invariants.check_content(raw, rng.choice(invariants.OPTIONS)) for raw in got.messages]
    if got.messages and rng.random() < 0.15:
        for raw in got.messages:
            invariants.check_json(raw)
    if got.error:
        outcomes.append(f"stream: {got.error.partition(':')[0]}")
    return outcomes, len(got.messages)


@contextlib.contextmanager
def _watched(active: bool) -> Iterator[Callable[[], None]]:
    """An alarm that ends a message that takes too long; call what this gives before each."""
    if not active:
        yield lambda: None
        return

    def late(_signal: int, _frame: object) -> None:
        raise HangError(f"longer than {SLOWEST_S:g} s")

    before = signal.signal(signal.SIGALRM, late)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_REAL, SLOWEST_S) and None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(
    seed: int, numbers: range, *, out: Path | None = None, watch: bool = True, progress: Path | None = None
) -> Summary:
    """Run the mutations ``numbers``; at most 50 failures are described, all are counted.

    Parameters
    ----------
    out : Path or None
        Where the bytes of failures are kept.
    watch : bool
        Use the alarm (the main thread's) against messages that take for ever.
    progress : Path or None
        File that says how far it has come, for runs that end badly.
    """
    invariants.compiled()
    mutator = Mutator(seeds(reference_folder()), seed)
    ring = invariants.make_ring()
    summary = Summary(seed)
    for n in numbers[:200]:  # caches and first calls
        stream, rng = mutator.stream(n)
        with contextlib.suppress(Exception):
            check(stream, rng, ring)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    if watch:
        faulthandler.dump_traceback_later(60, exit=True)  # a kernel that hangs takes no signal
    with _watched(watch) as wind_up:
        for n in numbers:
            stream, rng = mutator.stream(n)
            if n % 10_000 == 0:
                if watch:
                    faulthandler.dump_traceback_later(60, exit=True)
                if progress is not None:
                    progress.write_text(json.dumps({"at": n} | summary.as_json(), default=str))
            traced = n % 2000 == 0
            if traced:
                tracemalloc.start()
            wind_up()
            start = time.perf_counter()
            try:
                outcomes, messages = check(stream, rng, ring)
                summary.outcomes.update(outcomes)
                summary.messages += messages
            except (Exception, HangError) as error:
                _failed(summary, n, stream, error, out)
                ring = invariants.make_ring()
            took = time.perf_counter() - start
            if traced:
                _, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                summary.largest_allocation = max(summary.largest_allocation, peak)
                if peak > MEMORY_FACTOR * len(stream) + MEMORY_BYTES and not _announces(stream):
                    _failed(summary, n, stream, MemoryError(f"{peak} bytes for a stream of {len(stream)}"), out)
            elif took > summary.slowest_s:
                summary.slowest_s, summary.slowest = took, n
            summary.mutations += 1
    if watch:
        faulthandler.cancel_dump_traceback_later()
    summary.seconds = time.perf_counter() - began
    summary.peak_growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return summary


def _announces(stream: bytes) -> bool:
    """Whether a header announces more than the fuzzing limits, which the real limits may rightly make room for."""
    framed = invariants.expected_framing(stream, Limits())
    at = sum(map(len, framed.messages))
    return len(stream) >= at + 58 and int.from_bytes(stream[at + 42 : at + 50], "big") > len(stream)


def _failed(summary: Summary, n: int, stream: bytes, error: BaseException, out: Path | None) -> None:
    summary.failed += 1
    where = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    place = f"{Path(where.filename).name}:{where.lineno}" if where else ""
    same = sum(1 for one in summary.failures if one["where"] == place)
    if len(summary.failures) >= 50 or same >= 5:
        return
    summary.failures.append(
        {"mutation": n, "where": place, "error": f"{type(error).__name__}: {error}"[:300], "bytes": len(stream)}
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{summary.seed}-{n}.bin").write_bytes(stream)
        (out / f"{summary.seed}-{n}.txt").write_text("".join(traceback.format_exception(error)))


def main() -> int:
    """Run from the command line; 0 when nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int, help="this mutation alone, with its error")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    if options.only is not None:
        stream, rng = Mutator(seeds(reference_folder()), options.seed).stream(options.only)
        sys.stdout.write(f"{len(stream)} bytes: {stream[:4096].hex()}\n{check(stream, rng, invariants.make_ring())}\n")
        return 0
    total = Summary(options.seed)
    share = -(-options.count // options.processes)
    ranges = [
        range(at, min(at + share, options.first + options.count))
        for at in range(options.first, options.first + options.count, share)
    ]
    if options.processes == 1:
        total.add(run(options.seed, ranges[0], out=options.out))
    else:
        with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            for part in [pool.apply_async(run, (options.seed, r), {"out": options.out}) for r in ranges]:
                total.add(part.get())
    json.dump(total.as_json(), sys.stdout, indent=1)
    sys.stdout.write("\n")
    return 1 if total.failed else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
