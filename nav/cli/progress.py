"""Shows every wait: one line per step on stderr, with time and, where it is known, the share done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from nav.geometry.kernels import KernelSpec
from nav.runtime.clock import SystemClock
from nav.runtime.warmup import warm_up

__all__ = ["Steps", "live_kernels", "warm_up_visibly"]


class Steps:
    """Progress of a command's start-up."""

    def __init__(self) -> None:
        # Off a terminal nothing is redrawn, and long lines (paths) must not be wrapped.
        self._live = sys.stderr.isatty()
        self._console = Console(file=sys.stderr, soft_wrap=not self._live)

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, highlight=False)

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[float, str], None]]:
        """A step with a moving bar; yields ``update(share, text)`` (share below 0: unknown)."""
        start = time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        if not self._live:
            self.say(f"{title} ...")
        with Progress(*columns, console=self._console, transient=True, disable=not self._live) as bar:
            task = bar.add_task(title, total=None)

            def update(share: float, text: str = "") -> None:
                bar.update(
                    task,
                    description=f"{title}: {text}" if text else title,
                    total=None if share < 0 else 1.0,
                    completed=max(share, 0.0),
                )

            yield update
        self.say(f"  {title}: {time.monotonic() - start:.1f} s")


def live_kernels() -> tuple[KernelSpec, ...]:
    """Every kernel of the live path."""
    from drivers.openigtlink import receiver
    from nav.ablation import margin, tumour
    from nav.hud import panes

    return (*receiver.KERNELS, *tumour.KERNELS, *margin.KERNELS, *panes.KERNELS)


def warm_up_visibly(steps: Steps) -> None:
    """Compile (or load) the kernels of the live path before the first live frame."""
    with steps.step("Preparing kernels") as update:
        report = warm_up(live_kernels(), lambda name, n, of: update(n / max(of, 1), name), clock=SystemClock())
    for warning in report.warnings:
        steps.say(f"  warning: {warning}")
