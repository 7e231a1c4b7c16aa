"""Warm-up: what is listed is compiled and then fixed; what slips through is counted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest
from numba.core import config as numba_config

from nav.geometry.kernels import KernelSpec
from nav.runtime.clock import SystemClock
from nav.runtime.warmup import WarmUpError, compilations_since_warm_up, use_one_thread, warm_up

jit = pytest.mark.skipif(bool(numba_config.DISABLE_JIT), reason="nothing is compiled with NUMBA_DISABLE_JIT=1")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
    )


@jit
def test_listed_kernels_are_compiled_then_fixed_and_others_are_counted() -> None:
    @numba.njit
    def twice(a):  # type: ignore[no-untyped-def]
        return 2.0 * a[0]

    @numba.njit
    def unlisted(x):  # type: ignore[no-untyped-def]
        return x + 1

    spec = KernelSpec("twice", twice, ("float64[::1]",))
    seen: list[tuple[str, int, int]] = []
    report = warm_up((spec, spec), lambda *step: seen.append(step), clock=SystemClock())
    assert report.compiled == 1
    assert report.threading_layer in ("omp", "tbb")
    assert set(report.seconds) == {"twice"}
    assert report.seconds["twice"] > 0.0
    assert seen == [("twice", 0, 2), ("twice", 1, 2), ("", 2, 2)]
    assert twice(np.array([1.5])) == 3.0
    assert compilations_since_warm_up() == 0
    with pytest.raises(TypeError):
        twice(np.array([1, 2]))  # an integer array was not listed: refused, not compiled in a live frame
    assert compilations_since_warm_up() == 0
    assert unlisted(1) == 2
    assert compilations_since_warm_up() == 1
    assert warm_up((spec,), clock=SystemClock()).compiled == 0  # a second warm-up in one process is harmless
    assert compilations_since_warm_up() == 0


@jit
def test_a_kernel_that_does_not_compile_is_named() -> None:
    @numba.njit
    def broken(a):  # type: ignore[no-untyped-def]
        return a.no_such_attribute

    with pytest.raises(WarmUpError, match="kernel 'the broken one' does not compile: TypingError"):
        warm_up((KernelSpec("the broken one", broken, ("float64",)),), clock=SystemClock())


@jit
def test_one_thread_is_a_setting_of_the_calling_thread() -> None:
    counts: list[int] = []

    def live() -> None:
        use_one_thread()
        counts.append(numba.get_num_threads())

    thread = threading.Thread(target=live)
    thread.start()
    thread.join()
    assert counts == [1]


def test_the_workqueue_layer_is_refused_with_what_to_do() -> None:
    code = "from nav.runtime.warmup import *; from nav.runtime.clock import *; warm_up((), clock=SystemClock())"
    done = run(code, NUMBA_THREADING_LAYER="workqueue", NUMBA_DISABLE_JIT="0")
    assert done.returncode != 0
    assert "'workqueue'" in done.stderr
    assert "libgomp1" in done.stderr


def test_asking_before_the_warm_up_is_an_error_and_jit_off_is_a_warning() -> None:
    code = (
        "from nav.runtime.warmup import *; from nav.runtime.clock import *\n"
        "try: compilations_since_warm_up()\n"
        "except RuntimeError as error: print(error)\n"
        "print(warm_up((), clock=SystemClock()).warnings[0])"
    )
    done = run(code, NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0, done.stderr
    assert "warm_up has not been called" in done.stdout
    assert "NUMBA_DISABLE_JIT" in done.stdout
