"""Warm-up: compile every kernel that a command needs, visibly and before the first live frame, then forbid any other.

A kernel that meets an argument type for the first time compiles for 68 to 369 ms; in a live thread that is a freeze in
the middle of a procedure. After `warm_up` such a call raises instead, and `compilations_since_warm_up` proves that
nothing slipped through (kernels that nobody listed, or calls from a library).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
from numba.core import config as numba_config
from numba.core import event as numba_event
from numba.np.ufunc import threading_layer

from nav.geometry.kernels import KernelSpec
from nav.runtime.clock import Clock

__all__ = ["WarmUpError", "WarmUpReport", "compilations_since_warm_up", "compiled_names", "use_one_thread", "warm_up"]


class WarmUpError(RuntimeError):
    """The kernels cannot be used safely on this machine; the message says what to install or set."""


@dataclass(frozen=True, slots=True)
class WarmUpReport:
    """What the warm-up did.

    Attributes
    ----------
    seconds : dict
        Kernel → seconds it took.
    compiled : int
        Signatures that were compiled anew; the others came from the cache on disk.
    threading_layer : str
        ``omp`` or ``tbb``; empty with the JIT off.
    warnings : tuple of str
    """

    seconds: dict[str, float]
    compiled: int
    threading_layer: str
    warnings: tuple[str, ...]


class _CompileCounter(numba_event.Listener):
    """Counts compilations in any thread of the process; loads from the cache do not count."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []

    def on_start(self, event: Any) -> None:
        self.count += 1
        if len(self.names) < 20:
            dispatcher = (event.data or {}).get("dispatcher")
            self.names.append(getattr(dispatcher, "__qualname__", repr(dispatcher)))

    def on_end(self, event: Any) -> None:
        pass


_counter: _CompileCounter | None = None
_count_at_warm_up: int | None = None


def _listen() -> _CompileCounter:
    global _counter
    if _counter is None:
        _counter = _CompileCounter()
        numba_event.register("numba:compile", _counter)  # type: ignore[no-untyped-call]
    return _counter


def _jit_off() -> bool:
    return bool(getattr(numba_config, "DISABLE_JIT", 0))


def use_one_thread() -> None:
    """Run the parallel kernels that the calling thread enters on one thread; call it at the start of each live thread.

    numba keeps this setting per thread, so the warm-up cannot do it for others.
    """
    if not _jit_off():
        numba.set_num_threads(1)


def _threading_layer() -> str:
    """Start the threading layer and name it; `WarmUpError` for one that aborts when two threads enter."""
    try:
        use_one_thread()
        layer = str(threading_layer())
    except ValueError as error:
        raise WarmUpError(
            f"numba finds no threading layer ({str(error).splitlines()[0]}); install the Debian package libgomp1"
        ) from None
    if layer == "workqueue":
        raise WarmUpError(
            "numba uses the threading layer 'workqueue', which aborts the program when two threads enter it; install "
            "the Debian package libgomp1, and unset NUMBA_THREADING_LAYER"
        )
    return layer


def warm_up(
    specs: Sequence[KernelSpec], progress: Callable[[str, int, int], None] | None = None, *, clock: Clock
) -> WarmUpReport:
    """Compile or load every kernel of ``specs`` and forbid further compilation of them.

    Parameters
    ----------
    specs : sequence of KernelSpec
        The ``KERNELS`` of all modules that the command uses; the same kernel may be listed twice.
    progress : callable or None
        Called with (kernel, number done before it, number of all), and at the end with ("", all, all).
    clock : Clock
        For the seconds reported.

    Raises
    ------
    WarmUpError
        For a threading layer that is not safe, or a kernel that does not compile (named, with the reason).
    """
    global _count_at_warm_up
    counter = _listen()
    before = counter.count
    jit_off = _jit_off()
    layer = "" if jit_off else _threading_layer()
    seconds: dict[str, float] = {}
    for done, spec in enumerate(specs):
        if progress is not None:
            progress(spec.name, done, len(specs))
        start_ns = clock.now_ns()
        try:
            spec.compile()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise WarmUpError(f"kernel {spec.name!r} does not compile: {type(error).__name__}: {reason}") from error
        seconds[spec.name] = seconds.get(spec.name, 0.0) + (clock.now_ns() - start_ns) * 1e-9
    if progress is not None:
        progress("", len(specs), len(specs))
    _count_at_warm_up = counter.count
    warnings = []
    if jit_off:
        warnings.append(
            "the JIT is switched off (NUMBA_DISABLE_JIT): kernels run as plain Python, far too slow to guide"
        )
    elif layer == "omp" and os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        warnings.append("OMP_WAIT_POLICY is not PASSIVE: idle kernel threads burn processor time")
    return WarmUpReport(seconds, counter.count - before, layer, tuple(warnings))


def compilations_since_warm_up() -> int:
    """How many signatures were compiled since `warm_up`, anywhere in the process; 0 is right.

    Raises
    ------
    RuntimeError
        Before any warm-up.
    """
    if _counter is None or _count_at_warm_up is None:
        raise RuntimeError("compilations_since_warm_up: warm_up has not been called")
    return _counter.count - _count_at_warm_up


def compiled_names() -> tuple[str, ...]:
    """Names of the first functions compiled since the counter began, for messages."""
    return () if _counter is None else tuple(_counter.names)
