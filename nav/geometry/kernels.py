"""How kernels are declared: signatures as data, compiled in one visible warm-up step, never by a live frame.

A kernel is written ``@njit(nogil=True, cache=True)`` (plus ``parallel``/``error_model`` where measured) *without* a
signature, so importing its module compiles nothing. Its module lists it in ``KERNELS``; `nav.runtime.warmup` compiles
the list a command needs and then disables further compilation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["KernelSpec"]


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """One kernel and the argument types it is used with.

    Attributes
    ----------
    name : str
        Shown during warm-up.
    dispatcher : numba dispatcher (a plain function when ``NUMBA_DISABLE_JIT=1``)
    signatures : tuple of str
        Numba signature strings of the arguments. Read-only C-contiguous arrays (what frozen results hold) are spelled
        ``Array(float64, 2, 'C', readonly=True)``; `compile` evaluates them in the namespace of ``numba.types``.
    """

    name: str
    dispatcher: Any
    signatures: tuple[str, ...]

    def compile(self) -> None:
        """Compile every signature (from the cache on disk when it is there) and forbid any other."""
        if not hasattr(self.dispatcher, "compile"):
            return
        from numba import types

        namespace = {name: getattr(types, name) for name in dir(types) if not name.startswith("_")}
        self.dispatcher.disable_compile(False)  # a second warm-up in one process finds the same signatures there
        for signature in self.signatures:
            self.dispatcher.compile(eval(f"({signature},)", {"__builtins__": {}}, namespace))
        self.dispatcher.disable_compile()
