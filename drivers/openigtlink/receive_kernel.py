"""Receiving without the interpreter: read the socket, frame, check the CRC, stamp, and put into a ring.

Nothing that other Python threads do can delay this: the kernel holds no GIL from its entry until the connection ends,
and calls the C library itself. `Framer` is its plain twin: the same bytes give the same messages, in any split, and end
in the same error.

Two threads share the work as leader and follower. The *leader* is in `receive_kernel`. When messages are complete and
nobody delivers, it gives the lead up, inside the kernel, and goes to deliver them itself, which saves a change of
threads; the *follower*, who waits for the lead in its own call of the kernel, takes over the socket at that moment.
However long the interpreter then keeps the delivering thread waiting, the other one receives and stamps. When messages
are complete while the other thread delivers, the leader goes on receiving: the deliverer finds them before it ends.

Between the two stand, all under one mutex of the C library that is held for some hundred nanoseconds:

* ``descriptors``: a ring of messages in the order of their arrival;
* ``ring``: the bytes of small messages, one behind the other. When it is full, the socket is not read: nothing is lost;
* ``slots``: buffers for large messages, each handed over whole to whoever takes it. When all are full, the oldest
  image that waits is given up for the new one (a descriptor without bytes remains, so that it is counted); messages of
  other types wait, like small ones.

The CRC of a large body is formed piece by piece, each while it is still in the cache and the peer sends the next.
Linux only: ``recv``, ``setsockopt``, ``clock_gettime``, ``poll`` and ``pthread_mutex_*`` are resolved by
name in the process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core import config as numba_config
from numba.extending import intrinsic

from nav.geometry.kernels import KernelSpec

__all__ = [
    "KERNELS",
    "claim_kernel",
    "crc64_kernel",
    "post_kernel",
    "put_slot_kernel",
    "receive_kernel",
    "resign_kernel",
    "take_kernel",
]

# --------------------------------------------------------------------------------------------------- control words
# One int64 array; the indices are constants of the code, never parameters.
STOP = 0  # set to 1 by the owner: return soon
HEAD, TAIL = 1, 2  # descriptors put, and taken
RING_HEAD, RING_TAIL = 3, 4  # bytes of ``ring`` given out, and freed
NEED, NEED_SLOT = 5, 6  # NEED_BUFFER: bytes wanted in which slot
SILENT_NS, STALL_NS = 7, 8  # limits; 0: none
KEPT, SKIPPED = 9, 10  # size limits of types without one of their own
SOCKET = 11  # of the connection; below 0: there is none
FOUND_CRC = 12  # of the message that failed
RECEIVED = 13  # messages completed on this connection
WAITS = 14  # times that the socket was not read because there was no room
LAST_NS = 16  # of the last byte
DELIVERING = 17  # 1 while a thread delivers
# The state of framing, kept over returns.
PHASE, HAVE, TOTAL, ADDRESS, SLOT, RING_END, CRC, BEGAN_NS = 18, 19, 20, 21, 22, 23, 24, 25
STAGE_AT, STAGE_END, LEFT, DONE_NS = 26, 27, 28, 29
CONTROL_WORDS = 32

# Phases.
IN_HEADER, IN_BODY, SKIPPING, WANTS_ROOM, WHOLE, PASSED = 0, 1, 2, 3, 4, 5

# What the kernel returns.
STOPPED, PEER_CLOSED, RECEIVE_FAILED = 0, 1, 2
BAD_HEADER, BAD_SIZE, BAD_CRC = 3, 4, 5
NEED_BUFFER, SILENT, STALLED = 6, 7, 8
NO_CONNECTION, DELIVER = 9, 10

# Kinds of descriptors, and their columns.
SMALL, LARGE, DROPPED_IMAGE, PASSED_OVER, NOTE = 1, 2, 3, 4, 5
KIND, WHERE, LENGTH, ARRIVAL_NS, FREE_TO = 0, 1, 2, 3, 4
DESCRIPTOR_WORDS = 8

# Columns of ``slots``, and their states.
SLOT_ADDRESS, SLOT_SIZE, SLOT_STATE, SLOT_DESCRIPTOR = 0, 1, 2, 3
FREE, FILLING, WAITING, TAKEN = 0, 1, 2, 3

HEADER_BYTES = 58
#: Bytes of each of the two lanes of the CRC.
LANE_BYTES = 1024
#: Where the type's name without padding stands in ``head``.
CLEAN_TYPE, HEAD_BYTES = 64, 80
#: Messages up to this size, header included, go through ``ring``.
SMALL_BYTES = 1 << 16
#: The rest of a body is read in pieces of at most this size, each checked while it is in the cache.
_PIECE_BYTES = 1 << 18

_CLOCK_MONOTONIC = 1
_IPPROTO_TCP, _TCP_QUICKACK = 6, 12
_EINTR, _EAGAIN = 4, 11

# ------------------------------------------------------------------------------------------------------ C library

_recv: Any = types.ExternalFunction("recv", types.int64(types.int32, types.uint64, types.uint64, types.int32))
_setsockopt: Any = types.ExternalFunction(
    "setsockopt", types.int32(types.int32, types.int32, types.int32, types.uint64, types.uint32)
)
_clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.uint64))
_poll: Any = types.ExternalFunction("poll", types.int32(types.uint64, types.uint64, types.int32))
_errno_location: Any = types.ExternalFunction("__errno_location", types.uint64())
_lock: Any = types.ExternalFunction("pthread_mutex_lock", types.int32(types.uint64))
_unlock: Any = types.ExternalFunction("pthread_mutex_unlock", types.int32(types.uint64))


@intrinsic
def _address_to_pointer(typingctx: Any, address: Any) -> Any:  # noqa: ARG001 (numba's convention)
    """An address as a pointer that `carray` takes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.uint64), codegen


_pointer: Any = _address_to_pointer


@intrinsic
def _fold_words(typingctx: Any, high: Any, low: Any, by_high: Any, by_low: Any) -> Any:  # noqa: ARG001
    """``high * by_high + low * by_low`` over GF(2), as (high, low) word of 128 bits: two carry-less products."""
    two: Any = types.UniTuple(types.uint64, 2)  # type: ignore[no-untyped-call]
    signature = two(types.uint64, types.uint64, types.uint64, types.uint64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pair, byte = ir.VectorType(ir.IntType(64), 2), ir.IntType(8)
        first, second = ir.Constant(ir.IntType(32), 0), ir.Constant(ir.IntType(32), 1)
        name = "llvm.x86.pclmulqdq"
        multiply = builder.module.globals.get(name)
        if multiply is None:
            multiply = ir.Function(builder.module, ir.FunctionType(pair, [pair, pair, byte]), name)

        def join(high: Any, low: Any) -> Any:
            empty = ir.Constant(pair, ir.Undefined)
            return builder.insert_element(builder.insert_element(empty, low, first), high, second)

        a, b = join(args[0], args[1]), join(args[2], args[3])
        upper, lower = builder.call(multiply, [a, b, byte(0x11)]), builder.call(multiply, [a, b, byte(0x00)])
        both = builder.xor(upper, lower)
        words = [builder.extract_element(both, second), builder.extract_element(both, first)]
        return context.make_tuple(builder, signature.return_type, words)

    return signature, codegen


_fold: Any = _fold_words


# ---------------------------------------------------------------------------------------------------------- kernels


@njit(nogil=True, cache=True)
def _word(data: Any, at: Any) -> Any:
    """Eight bytes, the first one highest."""
    word = np.uint64(0)
    for b in range(8):
        word = (word << np.uint64(8)) | np.uint64(data[at + b])
    return word


@njit(nogil=True, cache=True)
def _sixteen(tables: Any, high: Any, low: Any) -> Any:
    """The CRC of sixteen bytes, given as two words."""
    byte = np.uint64(0xFF)
    crc = tables[15, high >> np.uint64(56)]
    crc ^= tables[14, (high >> np.uint64(48)) & byte]
    crc ^= tables[13, (high >> np.uint64(40)) & byte]
    crc ^= tables[12, (high >> np.uint64(32)) & byte]
    crc ^= tables[11, (high >> np.uint64(24)) & byte]
    crc ^= tables[10, (high >> np.uint64(16)) & byte]
    crc ^= tables[9, (high >> np.uint64(8)) & byte]
    crc ^= tables[8, high & byte]
    crc ^= tables[7, low >> np.uint64(56)]
    crc ^= tables[6, (low >> np.uint64(48)) & byte]
    crc ^= tables[5, (low >> np.uint64(40)) & byte]
    crc ^= tables[4, (low >> np.uint64(32)) & byte]
    crc ^= tables[3, (low >> np.uint64(24)) & byte]
    crc ^= tables[2, (low >> np.uint64(16)) & byte]
    crc ^= tables[1, (low >> np.uint64(8)) & byte]
    crc ^= tables[0, low & byte]
    return crc


@njit(nogil=True, cache=True)
def _crc64_lanes(data: Any, tables: Any, seed: Any) -> Any:
    """Sixteen bytes per step, by tables."""
    crc, at, n = seed, 0, data.shape[0]
    # Two lanes side by side, since each step of one waits for the step before; the first is then moved on by the length
    # of the second.
    while at + 2 * LANE_BYTES <= n:
        other = np.uint64(0)
        for k in range(at, at + LANE_BYTES, 16):
            crc = _sixteen(tables, crc ^ _word(data, k), _word(data, k + 8))
            other = _sixteen(tables, other ^ _word(data, k + LANE_BYTES), _word(data, k + LANE_BYTES + 8))
        for b in range(8):
            other ^= tables[16 + b, (crc >> np.uint64(8 * b)) & np.uint64(0xFF)]
        crc = other
        at += 2 * LANE_BYTES
    while at + 16 <= n:
        crc = _sixteen(tables, crc ^ _word(data, at), _word(data, at + 8))
        at += 16
    while at < n:
        crc = (crc << np.uint64(8)) ^ tables[0, (crc >> np.uint64(56)) ^ np.uint64(data[at])]
        at += 1
    return crc


@njit(nogil=True, cache=True)
def _crc64_folding(data: Any, tables: Any, seed: Any) -> Any:
    """Sixty-four bytes per step, by carry-less multiplication: four times as fast where the processor has it."""
    n = data.shape[0]
    if n < 128:
        return _crc64_lanes(data, tables, seed)
    far_high, far_low, near_high, near_low = tables[24, 0], tables[24, 1], tables[24, 2], tables[24, 3]
    # What was read so far is, modulo the polynomial, four words of 128 bits; each is moved on by 512 bits and added to
    # the word that stands there.
    a, b = _word(data, 0) ^ seed, _word(data, 8)
    c, d = _word(data, 16), _word(data, 24)
    e, f = _word(data, 32), _word(data, 40)
    g, h = _word(data, 48), _word(data, 56)
    at = 64
    while at + 64 <= n:
        x, y = _fold(a, b, far_high, far_low)
        a, b = x ^ _word(data, at), y ^ _word(data, at + 8)
        x, y = _fold(c, d, far_high, far_low)
        c, d = x ^ _word(data, at + 16), y ^ _word(data, at + 24)
        x, y = _fold(e, f, far_high, far_low)
        e, f = x ^ _word(data, at + 32), y ^ _word(data, at + 40)
        x, y = _fold(g, h, far_high, far_low)
        g, h = x ^ _word(data, at + 48), y ^ _word(data, at + 56)
        at += 64
    x, y = _fold(a, b, near_high, near_low)
    x, y = _fold(x ^ c, y ^ d, near_high, near_low)
    x, y = _fold(x ^ e, y ^ f, near_high, near_low)
    return _crc64_lanes(data[at:], tables, _sixteen(tables, x ^ g, y ^ h))


def _has_carryless_multiplication() -> bool:
    """Whether the code that numba makes here may use PCLMULQDQ (x86-64 since about 2010)."""
    settings: Any = numba_config
    if settings.DISABLE_JIT:
        return False
    if settings.CPU_FEATURES is not None:
        return "+pclmul" in settings.CPU_FEATURES.split(",")
    return settings.CPU_NAME is None and bool(binding.get_host_cpu_features().get("pclmul"))


_crc64 = _crc64_folding if _has_carryless_multiplication() else _crc64_lanes


@njit(nogil=True, cache=True)
def crc64_kernel(data: Any, tables: Any, seed: Any) -> Any:
    """Continue the CRC ``seed`` over ``data``.

    Parameters
    ----------
    data : (n,) uint8, C-contiguous
    tables : (25, 256) uint64 of `drivers.openigtlink.crc64.make_tables`
    seed : uint64
        CRC of everything before ``data``; 0 at the start.

    Returns
    -------
    uint64
    """
    return _crc64(data, tables, seed)


@njit(nogil=True, cache=True)
def _now_ns(timespec: Any) -> Any:
    _clock_gettime(np.int32(_CLOCK_MONOTONIC), np.uint64(timespec.ctypes.data))
    return timespec[0] * 1_000_000_000 + timespec[1]


@njit(nogil=True, cache=True)
def _pause(scratch: Any) -> Any:
    """Wait a millisecond for room."""
    _poll(np.uint64(scratch.ctypes.data), np.uint64(0), np.int32(1))


@njit(nogil=True, cache=True)
def _matches(head: Any, name: Any) -> Any:
    for b in range(12):  # noqa: SIM110 (numba compiles no generator expression)
        if head[CLEAN_TYPE + b] != name[b]:
            return False
    return True


@njit(nogil=True, cache=True)
def _is_image(head: Any, type_names: Any, type_limits: Any) -> Any:
    """Whether a newer message of this type replaces one that waits."""
    for t in range(type_names.shape[0]):  # noqa: SIM110 (numba compiles no generator expression)
        if type_limits[t, 1] == 1 and _matches(head, type_names[t]):
            return True
    return False


@njit(nogil=True, cache=True)
def _clean_type(head: Any) -> Any:
    """Write the type's name without what follows it (NUL or blanks, by sender) behind the header; False when it is no
    printable name."""
    end = 0
    while end < 12 and head[2 + end] != 0:
        end += 1
    while end > 0 and head[2 + end - 1] == 0x20:
        end -= 1
    if end == 0:
        return False
    for b in range(12):
        head[CLEAN_TYPE + b] = head[2 + b] if b < end else np.uint8(0)
        if b < end and (head[2 + b] < 0x21 or head[2 + b] > 0x7E):
            return False
    return True


@njit(nogil=True, cache=True)
def _put(control: Any, descriptors: Any, headers: Any, mutex: Any, head: Any, words: Any) -> Any:
    """Put one descriptor; False when there is no room."""
    address = np.uint64(mutex.ctypes.data)
    n = descriptors.shape[0]
    _lock(address)
    room = control[HEAD] - control[TAIL] < n
    if room:
        at = control[HEAD] % n
        for w in range(5):
            descriptors[at, w] = words[w]
        for b in range(HEADER_BYTES):
            headers[at, b] = head[b]
        control[HEAD] += 1
    _unlock(address)
    return room


@njit(nogil=True, cache=True)
def _claim(control: Any, mutex: Any) -> Any:
    """Become the one who delivers, if something is there and nobody does."""
    address = np.uint64(mutex.ctypes.data)
    _lock(address)
    mine = control[DELIVERING] == 0 and control[HEAD] > control[TAIL]
    if mine:
        control[DELIVERING] = 1
    _unlock(address)
    return mine


@njit(nogil=True, cache=True)
def _find_slot(control: Any, descriptors: Any, headers: Any, slots: Any, mutex: Any, head: Any, image: Any) -> Any:
    """A slot for a message of ``control[TOTAL]`` bytes, now FILLING; -1 when all are in use and nothing may go."""
    address = np.uint64(mutex.ctypes.data)
    n = descriptors.shape[0]
    total = control[TOTAL]
    _lock(address)
    best = -1
    for s in range(slots.shape[0]):
        if slots[s, SLOT_STATE] == FREE:
            if slots[s, SLOT_SIZE] >= total:
                if best < 0 or slots[best, SLOT_SIZE] < total or slots[s, SLOT_SIZE] < slots[best, SLOT_SIZE]:
                    best = s
            elif best < 0:
                best = s
    if best < 0 and image:
        # The oldest waiting image of this very stream; failing that, the oldest of any.
        for own in range(2):
            oldest = np.int64(-1)
            for s in range(slots.shape[0]):
                if slots[s, SLOT_STATE] != WAITING:
                    continue
                at = slots[s, SLOT_DESCRIPTOR] % n
                if descriptors[at, FREE_TO] != 1:  # not an image
                    continue
                same = True
                if own == 0:
                    for b in range(2, 34):
                        if headers[at, b] != head[b]:
                            same = False
                            break
                if same and (oldest < 0 or slots[s, SLOT_DESCRIPTOR] < oldest):
                    oldest = slots[s, SLOT_DESCRIPTOR]
                    best = s
            if best >= 0:
                break
        if best >= 0:
            descriptors[slots[best, SLOT_DESCRIPTOR] % n, KIND] = DROPPED_IMAGE
    if best >= 0:
        slots[best, SLOT_STATE] = FILLING
    _unlock(address)
    return best


@njit(nogil=True, cache=True)
def _lead(
    control: Any,
    head: Any,
    staging: Any,
    ring: Any,
    descriptors: Any,
    headers: Any,
    slots: Any,
    mutex: Any,
    type_names: Any,
    type_limits: Any,
    tables: Any,
    scratch: Any,
) -> Any:
    """`receive_kernel` while leading; returns DELIVER still in the lead."""
    words = np.zeros(5, np.int64)
    one = np.ones(1, np.int32)
    staging_address = np.uint64(staging.ctypes.data)
    ring_size = ring.shape[0]
    while True:
        # ---------------------------------------------------------------------------- take apart what is there
        while True:
            phase = control[PHASE]
            there = control[STAGE_END] - control[STAGE_AT]
            if phase == IN_HEADER:
                if there == 0:
                    break
                step = min(HEADER_BYTES - control[HAVE], there)
                for b in range(step):
                    head[control[HAVE] + b] = staging[control[STAGE_AT] + b]
                control[HAVE] += step
                control[STAGE_AT] += step
                if control[HAVE] < HEADER_BYTES:
                    break
                version = (np.int64(head[0]) << 8) | np.int64(head[1])
                if (version != 1 and version != 2) or not _clean_type(head):
                    return BAD_HEADER
                size = np.uint64(0)
                for b in range(8):
                    size = (size << np.uint64(8)) | np.uint64(head[42 + b])
                limit, known = control[SKIPPED], False
                for t in range(type_names.shape[0]):
                    if _matches(head, type_names[t]):
                        limit, known = type_limits[t, 0], True
                        break
                if size > np.uint64(limit):
                    return BAD_SIZE
                if not known and size > np.uint64(control[KEPT]):
                    control[PHASE], control[LEFT] = SKIPPING, np.int64(size)
                else:
                    control[TOTAL] = HEADER_BYTES + np.int64(size)
                    control[PHASE] = WANTS_ROOM
            elif phase == WANTS_ROOM:
                total = control[TOTAL]
                if total <= SMALL_BYTES:
                    begin = control[RING_HEAD]
                    if ring_size - begin % ring_size < total:
                        begin += ring_size - begin % ring_size
                    while begin + total - control[RING_TAIL] > ring_size:
                        if control[STOP] != 0:
                            return STOPPED
                        if _claim(control, mutex):
                            return DELIVER
                        control[WAITS] += 1
                        _pause(scratch)
                    control[RING_HEAD] = control[RING_END] = begin + total
                    control[SLOT] = -1
                    control[ADDRESS] = np.int64(ring.ctypes.data) + begin % ring_size
                else:
                    slot = control[SLOT] if control[NEED] != 0 else -1
                    while slot < 0:
                        image = _is_image(head, type_names, type_limits)
                        slot = _find_slot(control, descriptors, headers, slots, mutex, head, image)
                        if slot < 0:
                            if control[STOP] != 0:
                                return STOPPED
                            if _claim(control, mutex):
                                return DELIVER
                            control[WAITS] += 1
                            _pause(scratch)
                    control[SLOT] = slot
                    if slots[slot, SLOT_SIZE] < total:
                        control[NEED], control[NEED_SLOT] = total, slot
                        return NEED_BUFFER
                    control[NEED] = 0
                    control[ADDRESS] = slots[slot, SLOT_ADDRESS]
                message = carray(_pointer(np.uint64(control[ADDRESS])), (HEADER_BYTES,), np.uint8)
                for b in range(HEADER_BYTES):
                    message[b] = head[b]
                control[HAVE], control[CRC] = HEADER_BYTES, 0
                control[PHASE] = IN_BODY
            elif phase == IN_BODY:
                step = min(control[TOTAL] - control[HAVE], there)
                if step > 0:
                    piece = carray(_pointer(np.uint64(control[ADDRESS] + control[HAVE])), (step,), np.uint8)
                    piece[:] = staging[control[STAGE_AT] : control[STAGE_AT] + step]
                    control[CRC] = np.int64(_crc64(piece, tables, np.uint64(control[CRC])))
                    control[HAVE] += step
                    control[STAGE_AT] += step
                if control[HAVE] < control[TOTAL]:
                    break
                stated = np.uint64(0)
                for b in range(8):
                    stated = (stated << np.uint64(8)) | np.uint64(head[50 + b])
                if stated != np.uint64(control[CRC]):
                    control[FOUND_CRC] = control[CRC]
                    return BAD_CRC
                control[DONE_NS] = _now_ns(scratch)
                control[RECEIVED] += 1
                control[PHASE] = WHOLE
            elif phase == SKIPPING:
                step = min(control[LEFT], there)
                control[LEFT] -= step
                control[STAGE_AT] += step
                if control[LEFT] > 0:
                    break
                control[DONE_NS] = _now_ns(scratch)
                control[PHASE] = PASSED
            else:  # WHOLE or PASSED: put it
                words[ARRIVAL_NS] = control[DONE_NS]
                if phase == PASSED:
                    words[KIND], words[WHERE], words[LENGTH], words[FREE_TO] = PASSED_OVER, 0, HEADER_BYTES, 0
                elif control[SLOT] < 0:
                    words[KIND], words[LENGTH] = SMALL, control[TOTAL]
                    words[WHERE] = (control[RING_END] - control[TOTAL]) % ring_size
                    words[FREE_TO] = control[RING_END]
                else:
                    words[KIND], words[LENGTH], words[WHERE] = LARGE, control[TOTAL], control[SLOT]
                    words[FREE_TO] = 1 if _is_image(head, type_names, type_limits) else 0
                    # Before it is put: who takes it finds the slot waiting.
                    slots[control[SLOT], SLOT_DESCRIPTOR] = control[HEAD]
                    slots[control[SLOT], SLOT_STATE] = WAITING
                while not _put(control, descriptors, headers, mutex, head, words):
                    if control[STOP] != 0:
                        return STOPPED
                    if _claim(control, mutex):
                        return DELIVER
                    control[WAITS] += 1
                    _pause(scratch)
                control[PHASE], control[HAVE], control[BEGAN_NS] = IN_HEADER, 0, control[LAST_NS]
        if _claim(control, mutex):
            return DELIVER
        # ------------------------------------------------------------------------------------------- and receive
        if control[STOP] != 0:
            return STOPPED
        fd = np.int32(control[SOCKET])
        # Re-armed for each read: cures 40 ms pauses of senders that leave Nagle's algorithm on.
        _setsockopt(fd, np.int32(_IPPROTO_TCP), np.int32(_TCP_QUICKACK), np.uint64(one.ctypes.data), np.uint32(4))
        direct = control[PHASE] == IN_BODY and control[TOTAL] - control[HAVE] > staging.shape[0]
        if direct:
            # Straight into its place, and never beyond this message.
            address = np.uint64(control[ADDRESS] + control[HAVE])
            room = min(control[TOTAL] - control[HAVE], np.int64(_PIECE_BYTES))
        else:
            address, room = staging_address, np.int64(staging.shape[0])
        count = _recv(fd, address, np.uint64(room), np.int32(0))
        if count < 0:
            code = carray(_pointer(_errno_location()), (1,), np.int32)[0]
            if code != _EAGAIN and code != _EINTR:
                scratch[3] = code
                return RECEIVE_FAILED
        elif count == 0:
            return PEER_CLOSED
        now = _now_ns(scratch)
        pending = control[PHASE] != IN_HEADER or control[HAVE] > 0
        if not pending and count > 0:
            control[BEGAN_NS] = now
        if count > 0:
            control[LAST_NS] = now
            if direct:
                piece = carray(_pointer(address), (count,), np.uint8)
                control[CRC] = np.int64(_crc64(piece, tables, np.uint64(control[CRC])))
                control[HAVE] += count
            else:
                control[STAGE_AT], control[STAGE_END] = 0, count
        elif control[SILENT_NS] > 0 and now - control[LAST_NS] > control[SILENT_NS]:
            return SILENT
        if pending and control[STALL_NS] > 0:
            expected = np.int64(HEADER_BYTES)
            if control[PHASE] == IN_BODY:
                expected = control[TOTAL]
            elif control[PHASE] == SKIPPING:
                expected = control[LEFT] + HEADER_BYTES
            # A second per megabyte on top.
            if now - control[BEGAN_NS] > control[STALL_NS] + 1000 * expected:
                return STALLED


@njit(nogil=True, cache=True)
def receive_kernel(
    leads: Any,
    control: Any,
    head: Any,
    staging: Any,
    ring: Any,
    descriptors: Any,
    headers: Any,
    slots: Any,
    mutex: Any,
    lead: Any,
    type_names: Any,
    type_limits: Any,
    tables: Any,
    scratch: Any,
) -> Any:
    """Wait for the lead, then receive until something happens that Python has to do.

    Parameters
    ----------
    leads : bool
        The calling thread has the lead already (it was kept by the last call).
    control : (32,) int64
        Control words and the state of framing. Its socket is a blocking one with a receive time-out (about 0.1 s),
        after which limits and the stop flag are looked at.
    head : (80,) uint8
        The header being received (after BAD_* the one concerned), and from 64 on its type without padding.
    staging : (m,) uint8
        Where small pieces are received.
    ring : (r,) uint8
        At least twice the largest small message.
    descriptors, headers : (d, 8) int64, (d, 64) uint8
    slots : (s, 4) int64
        Address, size, state, descriptor.
    mutex, lead : (8,) uint64
        A ``pthread_mutex_t`` each, all zero when made: over the memory, and of the lead.
    type_names, type_limits : (t, 12) uint8, (t, 2) int64
        Types with a size limit of their own: limit, and 1 where a newer message replaces an older one (images).
    tables : (25, 256) uint64
        Of the CRC.
    scratch : (4,) int64
        Used by the leader only.

    Returns
    -------
    int64
        DELIVER: this thread now delivers, and the lead was given up. In all other cases it is kept (`resign_kernel`):
        STOPPED, NO_CONNECTION, PEER_CLOSED, RECEIVE_FAILED (errno in ``scratch[3]``), BAD_HEADER, BAD_SIZE, BAD_CRC,
        NEED_BUFFER (call again once the slot has it), SILENT, STALLED.
    """
    if not leads:
        _lock(np.uint64(lead.ctypes.data))
    if control[STOP] != 0:
        return STOPPED
    if control[SOCKET] < 0:
        return NO_CONNECTION
    code = _lead(
        control, head, staging, ring, descriptors, headers, slots, mutex, type_names, type_limits, tables, scratch
    )
    if code == DELIVER:
        _unlock(np.uint64(lead.ctypes.data))
    return code


@njit(cache=True)
def resign_kernel(lead: Any) -> Any:
    """Give up the lead; by the thread that has it."""
    _unlock(np.uint64(lead.ctypes.data))


@njit(cache=True)
def claim_kernel(control: Any, mutex: Any) -> Any:
    """Become the one who delivers, if something is there and nobody does."""
    return _claim(control, mutex)


@njit(cache=True)
def post_kernel(control: Any, descriptors: Any, headers: Any, mutex: Any, words: Any) -> Any:
    """Put a note (kind NOTE) in the order of the messages; False when there is no room."""
    return _put(control, descriptors, headers, mutex, np.zeros(HEADER_BYTES, np.uint8), words)


@njit(cache=True)
def take_kernel(
    control: Any, descriptors: Any, headers: Any, slots: Any, mutex: Any, out: Any, header: Any, free: Any
) -> Any:
    """Take the next descriptor into ``out`` (8,) int64 and its header into ``header`` (64,) uint8.

    False: there is none, and the calling thread delivers no longer. ``free``: `FREE_TO` of the small message taken
    before, whose bytes have been copied; 0: none. The GIL is kept: the mutex is never held longer than it takes to copy
    a descriptor.
    """
    address = np.uint64(mutex.ctypes.data)
    _lock(address)
    if free > 0:
        control[RING_TAIL] = free
    there = control[HEAD] > control[TAIL]
    if there:
        at = control[TAIL] % descriptors.shape[0]
        for w in range(5):
            out[w] = descriptors[at, w]
        for b in range(HEADER_BYTES):
            header[b] = headers[at, b]
        if out[KIND] == LARGE:
            slots[out[WHERE], SLOT_STATE] = TAKEN
        control[TAIL] += 1
    else:
        control[DELIVERING] = 0
    _unlock(address)
    return there


@njit(cache=True)
def put_slot_kernel(slots: Any, mutex: Any, slot: Any, address: Any, size: Any, state: Any) -> Any:
    """Give a slot its buffer."""
    lock = np.uint64(mutex.ctypes.data)
    _lock(lock)
    slots[slot, SLOT_ADDRESS] = address
    slots[slot, SLOT_SIZE] = size
    slots[slot, SLOT_STATE] = state
    _unlock(lock)


_BYTES, _WORDS = "Array(uint8, 1, 'C')", "Array(int64, 1, 'C')"
_BYTES2, _WORDS2 = "Array(uint8, 2, 'C')", "Array(int64, 2, 'C')"
_MUTEX = "Array(uint64, 1, 'C')"
_TABLES = "Array(uint64, 2, 'C', readonly=True)"
_NAMES, _LIMITS = "Array(uint8, 2, 'C', readonly=True)", "Array(int64, 2, 'C', readonly=True)"

KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        "openigtlink receive",
        receive_kernel,
        (
            f"boolean, {_WORDS}, {_BYTES}, {_BYTES}, {_BYTES}, {_WORDS2}, {_BYTES2}, {_WORDS2}, {_MUTEX}, {_MUTEX}, "
            f"{_NAMES}, {_LIMITS}, {_TABLES}, {_WORDS}",
        ),
    ),
    KernelSpec("openigtlink resign", resign_kernel, (_MUTEX,)),
    KernelSpec("openigtlink claim", claim_kernel, (f"{_WORDS}, {_MUTEX}",)),
    KernelSpec("openigtlink post", post_kernel, (f"{_WORDS}, {_WORDS2}, {_BYTES2}, {_MUTEX}, {_WORDS}",)),
    KernelSpec(
        "openigtlink take",
        take_kernel,
        (f"{_WORDS}, {_WORDS2}, {_BYTES2}, {_WORDS2}, {_MUTEX}, {_WORDS}, {_BYTES}, int64",),
    ),
    KernelSpec("openigtlink slot", put_slot_kernel, (f"{_WORDS2}, {_MUTEX}, int64, int64, int64, int64",)),
)
