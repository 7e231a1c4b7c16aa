"""Whether freshly compiled kernels give the same bits as cached ones: a pytest plugin, used by ``make bits``.

Numba optimises the code of a parallel kernel once more before it is cached, so a first run after installation executes
other code than all later ones. Under ``contract`` and ``reassoc`` they may round differently; kernels for which they do
go without. Two runs of the twins, one with an empty cache and one with the filled one, write what every kernel left in
its arrays; `main` compares.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

#: What a kernel leaves beyond its result in a larger array is whatever memory held.
NOT_ALL_WRITTEN = ("nav.imaging.contours._cut_mesh",)

_calls: dict[str, list[tuple[str, str]]] = {}
_test = ""


def _logged(kernel: Any, name: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        out = kernel(*arguments)
        told = hashlib.sha256(repr(out).encode())
        for array in arguments:
            if isinstance(array, np.ndarray):
                told.update(np.ascontiguousarray(array).tobytes())
        _calls.setdefault(_test, []).append((name, told.hexdigest()))
        return out

    call.py_func = kernel.py_func  # type: ignore[attr-defined]
    return call


def pytest_configure() -> None:
    import nav

    for found in pkgutil.walk_packages(nav.__path__, "nav."):
        if found.name.startswith("nav.hud") or "cuda" in found.name:
            continue
        for spec in getattr(importlib.import_module(found.name), "KERNELS", ()):
            function = getattr(spec.dispatcher, "py_func", None)
            home = sys.modules.get(getattr(function, "__module__", ""))
            name = getattr(function, "__name__", "")
            if getattr(home, name, None) is spec.dispatcher:
                setattr(home, name, _logged(spec.dispatcher, f"{function.__module__}.{name}"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    global _test
    _test = item.nodeid


def pytest_unconfigure() -> None:
    Path(os.environ["KERNEL_BITS"]).write_text(json.dumps(_calls))


def main(cold: str, warm: str) -> int:
    """Name the kernels whose results differ between two runs; 1 if there are any."""
    one, two = (json.loads(Path(path).read_text()) for path in (cold, warm))
    pairs = [pair for test in one for pair in zip(one[test], two.get(test, []), strict=False)]
    other = {a[0] for a, b in pairs if a != b and a[0] not in NOT_ALL_WRITTEN}
    print(f"{len(pairs)} calls of {len({a[0] for a, _ in pairs})} kernels")
    for name in sorted(other):
        print(f"{name}: not the same bits when compiled and when loaded; leave out contract and reassoc")
    return 1 if other or not pairs else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
