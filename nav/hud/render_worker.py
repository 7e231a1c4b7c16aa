"""The thread that makes the pictures, so that neither the compute thread nor the Qt thread waits for them. No Qt.

Pacing, for 60 poses a second on part of one core: the tip panes with every new pose, the other planes by turns, the 3-D
view at most 30 times a second. A snapshot that shows nothing new (it was computed because some other message came) is
not drawn: the next pose would wait for it. A change of the view or of the case renders every visible pane at once. The
tip panes are handed over first, for they carry the numbers' age.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from nav.hud.pane_frame import PaneFrame, ViewState
from nav.hud.panes import RenderCache, SceneModel, render_panes, tip_panes
from nav.runtime.clock import Clock
from nav.runtime.snapshot import NavigationSnapshot

__all__ = ["PanePacer", "RenderWorker"]

#: Shortest time between two pictures of the 3-D view.
MIN_3D_INTERVAL_NS = 33_000_000
#: Slack of that limit, so that a 60 Hz source gets every second tick and not every third.
_3D_SLACK_NS = 4_000_000
#: Beside a pose, a new image is drawn at once where it is the picture, and this much later where it is an overlay.
IMAGE_WAIT_NS = 30_000_000
#: Shortest time between two pictures of the ultrasound plane: poses and images come at their own rates.
MIN_FUSED_INTERVAL_NS = 13_000_000
#: Something is drawn at least this often, so that a picture never rests on a very old snapshot.
LONGEST_WAIT_NS = 100_000_000
#: How long the thread sleeps when nobody wakes it, s.
POLL_S = 0.004


def _content(snapshot: NavigationSnapshot) -> tuple[object, ...]:
    """What a picture shows of a snapshot, images apart: two snapshots with equal content give equal pictures."""
    return (
        snapshot.needle.acquired_ns,
        tuple((name, tool.acquired_ns) for name, tool in snapshot.tools.items())
        if snapshot.needle.pose is None
        else (),
        snapshot.gate.state,
        snapshot.case_generation,
        snapshot.applicator,
        None if snapshot.registration is None else snapshot.registration.generation,
        snapshot.setup.active_landmark,
        id(snapshot.setup.landmarks),
        id(snapshot.target_ras),
        id(snapshot.entry_ras),
    )


def _images(snapshot: NavigationSnapshot) -> tuple[object, ...]:
    """Which images a picture shows."""
    return tuple(None if i is None else (i.device, i.sequence) for i in (snapshot.image, snapshot.fluoro))


def _visible(view: ViewState) -> frozenset[str]:
    return frozenset({view.maximised}) if view.maximised else frozenset(view.sizes)


class PanePacer:
    """Which panes are due: a plain state machine, without a thread or a clock of its own."""

    def __init__(self) -> None:
        self._content: tuple[object, ...] = ()
        self._images: tuple[object, ...] = ()
        self._last_ns = -LONGEST_WAIT_NS
        self._view: ViewState | None = None
        self._scene: SceneModel | None = None
        self._last_3d_ns = -MIN_3D_INTERVAL_NS
        self._turn = 0

    def due(
        self, scene: SceneModel, snapshot: NavigationSnapshot, view: ViewState, now_ns: int
    ) -> tuple[frozenset[str], frozenset[str]]:
        """The panes to render first (tip panes) and after them; both empty when nothing is due.

        While ``view.frozen``, only a change of the view makes pictures due (of the frozen snapshot).
        """
        visible = _visible(view)
        # Views are compared by identity first: the Qt thread replaces the whole value when something changes.
        changed = scene is not self._scene or (view is not self._view and view != self._view)
        if not changed and (view.frozen or not self._fresh(snapshot, view, now_ns)):
            return frozenset(), frozenset()
        self._scene, self._view, self._last_ns = scene, view, now_ns
        self._content, self._images = _content(snapshot), _images(snapshot)
        first = tip_panes(view) & visible
        rest = visible - first
        if not changed:
            planes = sorted(rest - {"D"})
            due = set(planes)
            if first and planes:  # beside a tip pane: one plane at a time, none more often than every second snapshot
                turn = self._turn % max(2, len(planes))
                due = set(planes[turn : turn + 1])
                self._turn += 1
            if "D" in rest and now_ns - self._last_3d_ns >= MIN_3D_INTERVAL_NS - _3D_SLACK_NS:
                due.add("D")
            rest = frozenset(due)
        if "D" in rest:
            self._last_3d_ns = now_ns
        return first, rest

    def _fresh(self, snapshot: NavigationSnapshot, view: ViewState, now_ns: int) -> bool:
        waited_ns = now_ns - self._last_ns
        fused = view.layout == "ultrasound"
        if fused and waited_ns < MIN_FUSED_INTERVAL_NS:
            return False  # found again at the next wake-up
        if _content(snapshot) != self._content:
            return True
        if _images(snapshot) != self._images:
            return fused or waited_ns >= IMAGE_WAIT_NS
        return waited_ns >= LONGEST_WAIT_NS


class RenderWorker:
    """One render thread.

    Parameters
    ----------
    get_snapshot : callable
        The newest snapshot, or None before the first.
    get_view : callable
        What the person has set.
    publish : callable
        Takes the finished pictures, keyed by pane; called from the render thread, must return at once. Pictures are
        never written again; panes that are not in a call keep their last picture.
    clock : Clock
    on_fault : callable
        Takes one sentence when the thread ends by an error. The thread then stays ended: the HUD blanks its panes
        (their pictures stop), it never shows a frozen one as live.
    """

    def __init__(
        self,
        get_snapshot: Callable[[], NavigationSnapshot | None],
        get_view: Callable[[], ViewState],
        publish: Callable[[dict[str, PaneFrame]], None],
        clock: Clock,
        on_fault: Callable[[str], None],
        scene: SceneModel | None = None,
    ) -> None:
        self._get_snapshot = get_snapshot
        self._get_view = get_view
        self._publish = publish
        self._clock = clock
        self._on_fault = on_fault
        self._scene = scene
        self._wake = threading.Event()
        self._stop = False
        self._thread: threading.Thread | None = None
        self._frozen_on: NavigationSnapshot | None = None
        self._pacer = PanePacer()
        self._owed: tuple[str, ...] = ()
        self._cache = RenderCache()

    def set_scene(self, scene: SceneModel | None) -> None:
        """Show another case (None: none). Until its first snapshot arrives nothing is rendered."""
        self._scene = scene
        self._wake.set()

    def notify(self) -> None:
        """A new snapshot or view is there; without this it is found within `POLL_S`."""
        self._wake.set()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread. `RuntimeError` when it was started before."""
        if self._thread is not None:
            raise RuntimeError("the render worker was started already")
        self._thread = threading.Thread(target=self._run, name="render", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop and join the thread (bounded: 2 s). Safe to call twice."""
        self._stop = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)

    def render_due(self) -> bool:
        """Render and publish the tip panes that are due and one other; False when nothing was due. The loop's body."""
        scene, view, snapshot = self._scene, self._get_view(), self._get_snapshot()
        if scene is None or snapshot is None:
            return False
        if view.frozen:
            held = self._frozen_on
            if held is None or held.case_generation != snapshot.case_generation:
                held = snapshot
            self._frozen_on = snapshot = held
        else:
            self._frozen_on = None
        if not scene.belongs_to(snapshot):
            return False  # the case is changing: its scene or its first snapshot is still to come
        first, rest = self._pacer.due(scene, snapshot, view, self._clock.now_ns())
        if first:
            self._publish(render_panes(scene, snapshot, view, first, self._cache))
        # One of the others at a time: a pose that arrives meanwhile waits for one pane and not for all of them. That
        # which waits longest comes first: where pictures take long, others are due again before the last had its turn.
        visible = _visible(view)
        owed = [pane for pane in (*self._owed, *sorted(rest - set(self._owed))) if pane in visible]
        self._owed = tuple(owed[1:])
        if owed:
            pane = owed[0]
            self._publish(render_panes(scene, snapshot, view, frozenset({pane}), self._cache))
            return True
        return bool(first)

    def _run(self) -> None:
        try:
            while not self._stop:
                self._wake.clear()
                if not self.render_due():
                    self._wake.wait(POLL_S)
        except Exception as error:  # whatever it was: say it, and end, so that the HUD blanks
            self._on_fault(f"rendering stopped: {type(error).__name__}: {error}; restart the program")
