"""One end of a connection to be measured, ours or pyigtl's, in a process of its own; see ``run.py``.

``endpoint.py send|receive ours|pyigtl PORT RATE COUNT WIDTH HEIGHT DEPTH SCALAR [busy]``. Messages carry their number
and the moment of sending as ``cpp/sender.cxx`` says. A receiver prints ``number sent_ns received_ns delivered_ns
whole`` for each, then ``cpu SECONDS``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import numpy as np

EYE = np.eye(4)
DTYPES = {3: np.dtype("u1"), 4: np.dtype("<i2")}


def now_ns() -> int:
    return time.monotonic_ns()


def sleep_until(ns: int) -> None:
    left = ns - now_ns()
    if left > 0:
        time.sleep(left * 1e-9)


class Case:
    """What is sent."""

    def __init__(self, rate: str, count: str, *image: str) -> None:
        self.rate, self.count = float(rate), int(count)
        self.width, self.height, self.depth, self.scalar = map(int, image[:4])
        self.shape = (self.depth, self.height, self.width)

    def picture(self, number: int) -> Any:
        pixels = np.full(self.shape, 0, DTYPES[self.scalar])
        flat = pixels.reshape(-1).view(np.uint8)
        flat[:] = 37 * number % 251
        flat[:4] = np.frombuffer(np.int32(number).tobytes(), np.uint8)
        return pixels


def is_whole(pixels: Any) -> tuple[int, bool]:
    """Number of an image, and whether all of its bytes are its own."""
    flat = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)
    number = int(flat[:4].view(np.int32)[0])
    return number, bool((flat[4:] == 37 * number % 251).all())


def paced(case: Case, send: Any) -> None:
    next_ns = now_ns()
    for number in range(case.count):
        picture = case.picture(number) if case.width else None
        if case.rate:
            next_ns += int(1e9 / case.rate)
            sleep_until(next_ns)
        send(number, picture)
    time.sleep(0.5)


def send_ours(port: int, case: Case) -> None:
    from drivers.openigtlink.codec import KERNELS, encode_image, encode_transform
    from drivers.openigtlink.sink import IgtlServer

    for spec in KERNELS:
        spec.compile()
    matrix = np.eye(4)
    with IgtlServer(port=port, keep_alive_s=None) as server:
        print("ready", flush=True)
        server.wait_for_clients(1, 30)
        time.sleep(0.5)

        def send(number: int, picture: Any) -> None:
            if picture is None:
                matrix[0, 3] = number
                sent = now_ns()
                server.publish("T", lambda v: encode_transform("NeedleToTracker", matrix, sender_ns=sent, version=v))
            else:
                sent = now_ns()
                server.publish(
                    "I", lambda v: encode_image("Image", picture, EYE, sender_ns=sent, version=v), depth=case.count
                )

        paced(case, send)
        print("cpu", time.process_time(), flush=True)


def send_pyigtl(port: int, case: Case) -> None:
    import pyigtl

    server = pyigtl.OpenIGTLinkServer(port=port, local_server=True)
    print("ready", flush=True)
    while not server.is_connected():
        time.sleep(0.01)
    time.sleep(0.5)
    matrix = np.eye(4)

    def send(number: int, picture: Any) -> None:
        sent = now_ns()
        if picture is None:
            matrix[0, 3] = number
            message = pyigtl.TransformMessage(matrix.copy(), device_name="NeedleToTracker", timestamp=sent * 1e-9)
        else:
            message = pyigtl.ImageMessage(picture, device_name="Image", timestamp=sent * 1e-9)
        server.send_message(message, wait=False)

    paced(case, send)
    os._exit(0)


def receive_ours(port: int, case: Case, busy: bool) -> None:
    from drivers.openigtlink.source import IgtlSource
    from nav.config.room import SourceConfig
    from nav.runtime.memory import keep_freed_memory
    from nav.runtime.messages import ImageMessage, PoseMessage

    keep_freed_memory()
    sys.setswitchinterval(0.0005)  # both as the program does while guiding
    rows: list[tuple[int, int, int, int, bool]] = []
    done = threading.Event()

    class Sink:
        def deliver(self, message: Any, raw: Any) -> None:  # noqa: ARG002
            delivered = now_ns()
            if isinstance(message, PoseMessage):
                number, whole = int(message.tools[0].matrix[0, 3]), True
            elif isinstance(message, ImageMessage):
                number, whole = is_whole(message.array)
            else:
                return
            rows.append((number, message.sender_ns or 0, message.arrival_ns, delivered, whole))
            if len(rows) == case.count:
                done.set()

    tools = [{"device": "NeedleToTracker", "transform": "NeedleToTracker", "identity_is_lost": False}]
    source = IgtlSource(SourceConfig.model_validate({"name": "bench", "port": port, "tools": tools}))
    source.start(Sink())
    stop = threading.Event()
    if busy:
        threading.Thread(target=_spin, args=(stop,), daemon=True).start()
    cpu = time.process_time()
    done.wait(case.count / (case.rate or 50.0) + 10)
    cpu = time.process_time() - cpu
    stop.set()
    source.stop()
    for row in rows:
        print(*row[:4], int(row[4]))
    print("cpu", cpu)


def _spin(stop: threading.Event) -> None:
    count = 0
    while not stop.is_set():
        count += 1


def receive_pyigtl(port: int, case: Case) -> None:
    import pyigtl

    rows = []
    done = threading.Event()

    class Arrivals(dict):  # type: ignore[type-arg]
        """Called in the thread that receives, once a message is unpacked: pyigtl has no other hook."""

        def __setitem__(self, key: Any, message: Any) -> None:
            received = now_ns()
            sent = round(message.timestamp * 1e9)
            number, whole = (int(message.matrix[0, 3]), True) if not case.width else is_whole(message.image)
            rows.append((number, sent, received, received, whole))
            if len(rows) >= case.count:
                done.set()

    client = pyigtl.OpenIGTLinkClient("127.0.0.1", port)
    client.incoming_messages = Arrivals()
    done.wait(case.count / (case.rate or 50.0) + 5)
    for row in rows:
        print(*row[:4], int(row[4]))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    role, kind, port_text, *rest = sys.argv[1:]
    the_case = Case(*rest[:6])
    if role == "send":
        (send_ours if kind == "ours" else send_pyigtl)(int(port_text), the_case)
    elif kind == "ours":
        receive_ours(int(port_text), the_case, "busy" in rest)
    else:
        receive_pyigtl(int(port_text), the_case)
