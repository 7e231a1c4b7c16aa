"""A tracker and an ultrasound scanner that misbehave by script, and keep the truth; see ``soak.py``.

``soak_server.py TRACKER_PORT ULTRASOUND_PORT SECONDS SEED``. Writes one JSON object per line to standard output: events
with their times (``CLOCK_MONOTONIC``, ns), and at the end when each pose was sent that was true, and with which stamp.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import threading
import time
from typing import Any

import numpy as np

from drivers.openigtlink.codec import encode_image, encode_status, encode_transform

#: What can happen to the tracker, and how often in comparison.
TROUBLES = {
    "close": 3, "reset": 3, "stall": 3, "stall_alive": 2, "restart": 2, "garbage": 2, "clock_step": 2,
    "lost_silent": 3, "lost_identity": 2, "lost_status": 2, "lost_frozen": 2, "half_message": 2,
}  # fmt: skip
CALM_S = (2.0, 5.0)
TROUBLE_S = (0.4, 2.5)


def now_ns() -> int:
    return time.monotonic_ns()


def say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Server:
    """Accepts one client at a time, again and again, while it is open."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.client: socket.socket | None = None
        self.lock = threading.Lock()
        self.open()

    def open(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.settimeout(2.0)
            with self.lock:
                if self.client is not None:
                    self.client.close()
                self.client = client

    def shut(self) -> None:
        """Close the listener too: nobody can connect."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.drop()

    def drop(self, reset: bool = False) -> None:
        with self.lock:
            if self.client is None:
                return
            if reset:
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.client.close()
            self.client = None

    def send(self, raw: bytes) -> bool:
        with self.lock:
            if self.client is None:
                return False
            try:
                self.client.sendall(raw)
            except OSError:
                self.client.close()
                self.client = None
                return False
            return True


def pose(t: float) -> np.ndarray[Any, Any]:
    m = np.eye(4)
    c, s = np.cos(0.3 * t), np.sin(0.3 * t)
    m[:2, :2] = [[c, -s], [s, c]]
    m[:3, 3] = [30 * np.sin(0.5 * t), 30 * np.cos(0.4 * t), 100 + 5 * np.sin(0.9 * t)]
    return m


def ultrasound(port: int, end_ns: int, rng: random.Random) -> None:
    """Images, with a connection that breaks now and then, and pauses."""
    server, n = Server(port), 0
    picture = np.random.default_rng(0).integers(0, 255, (1, 512, 512), dtype=np.uint8)
    at = now_ns()
    change_ns = at + 8_000_000_000
    while at < end_ns:
        at += 33_333_333
        time.sleep(max(0.0, (at - now_ns()) * 1e-9))
        if at > change_ns and at < end_ns - 5_000_000_000:
            change_ns = at + int(rng.uniform(5.0, 15.0) * 1e9)
            match rng.randrange(3):
                case 0:
                    server.drop()
                case 1:
                    server.drop(reset=True)
                case _:
                    at += 1_500_000_000  # silent
        picture[0, 0, 0] = n % 256
        server.send(encode_image("Image", picture, np.eye(4), sender_ns=time.time_ns()))
        n += 1


def main() -> None:
    tracker_port, ultrasound_port, seconds, seed = sys.argv[1:5]
    rng = random.Random(int(seed))
    tracker = Server(int(tracker_port))
    begin = now_ns()
    end = begin + int(float(seconds) * 1e9)
    threading.Thread(
        target=ultrasound, args=(int(ultrasound_port), end, random.Random(rng.random())), daemon=True
    ).start()
    say(event="ready", at_ns=begin)
    true_ns: list[int] = []
    stamps: list[int] = []
    trouble = ""
    change_ns = begin + 5_000_000_000
    step_ns = 0
    alive_ns = at = begin
    last = pose(0.0)
    while at < end:
        at += 16_666_667
        time.sleep(max(0.0, (at - now_ns()) * 1e-9))
        if now_ns() >= change_ns:
            if trouble:
                if trouble == "restart":
                    tracker.open()
                say(event="end", trouble=trouble, at_ns=now_ns())
                trouble = ""
                change_ns = now_ns() + int(rng.uniform(*CALM_S) * 1e9)
            else:
                trouble = rng.choices(list(TROUBLES), list(TROUBLES.values()))[0]
                change_ns = now_ns() + int(rng.uniform(*TROUBLE_S) * 1e9)
                # Said after it has been done: `at_ns` is then the latest moment at which it can have begun.
                if trouble in ("close", "reset"):
                    tracker.drop(reset=trouble == "reset")
                    change_ns = now_ns()  # the server itself is there all the time
                elif trouble == "restart":
                    tracker.shut()
                elif trouble == "garbage":
                    tracker.send(b"GET / HTTP/1.1\r\n" * 8)
                    change_ns = now_ns()
                elif trouble == "half_message":
                    tracker.send(encode_transform("NeedleToTracker", pose(0.0))[: rng.randrange(1, 105)])
                    tracker.drop()
                    change_ns = now_ns()
                elif trouble == "clock_step":
                    step_ns += int(rng.choice([-1, 1]) * rng.uniform(0.6, 30) * 1e9)
                    change_ns = now_ns()
                say(event="begin", trouble=trouble, at_ns=now_ns())
        t = (at - begin) * 1e-9
        if now_ns() - alive_ns > 250_000_000 and trouble != "stall":
            alive_ns = now_ns()
            tracker.send(encode_status("PlusServer"))
        if trouble in ("stall", "stall_alive", "restart"):
            continue
        stamp = time.time_ns() + step_ns
        tracker.send(encode_transform("ReferenceToTracker", pose(0.1 * t + 9), sender_ns=stamp))
        if trouble == "lost_silent":
            continue
        if trouble == "lost_identity":
            tracker.send(encode_transform("NeedleToTracker", np.eye(4), sender_ns=stamp))
            continue
        if trouble == "lost_status":
            status = {"TransformStatus": "OUT_OF_VIEW"}
            tracker.send(encode_transform("NeedleToTracker", pose(t), sender_ns=stamp, version=2, metadata=status))
            continue
        if trouble == "lost_frozen":
            tracker.send(encode_transform("NeedleToTracker", last, sender_ns=stamp))
            continue
        last = pose(t)
        sent_ns = now_ns()
        if tracker.send(encode_transform("NeedleToTracker", last, sender_ns=stamp)):
            true_ns.append(sent_ns)
            stamps.append(stamp)
    say(event="over", at_ns=now_ns(), true_ns=true_ns, stamps=stamps)


if __name__ == "__main__":
    main()
