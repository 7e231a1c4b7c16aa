"""The server: several clients, slow ones, versions, commands, keep-alive, and life cycle."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import psutil
import pytest
from openigtlink_tools import threads_end

from drivers.openigtlink.codec import decode, encode_status, encode_string, encode_transform
from drivers.openigtlink.contents import TrackedTool
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.outgoing import Outgoing
from drivers.openigtlink.sink import AllowListError, ClientInfo, IgtlServer
from drivers.openigtlink.wire import EncodeError, pack_message
from nav.runtime.messages import ImageMessage, Message, PoseMessage, StatusMessage, TextMessage

EYE = np.eye(4)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    with threads_end():
        yield


class Client:
    """A plain blocking client."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(5)
        self.sock.connect(("127.0.0.1", port))
        self.framer = Framer()
        self.raws: list[bytes] = []

    def receive(self, count: int) -> list[Message]:
        while len(self.raws) < count:
            data = self.sock.recv(1 << 16)
            if not data:
                raise ConnectionError(f"closed after {len(self.raws)} messages")
            self.raws += self.framer.feed(data)
        return [decode(raw, source="", sequence=n, arrival_ns=0) for n, raw in enumerate(self.raws)]

    def receive_for(self, seconds: float) -> list[Message]:
        end = time.monotonic() + seconds
        self.sock.settimeout(0.05)
        while time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                self.raws += self.framer.feed(self.sock.recv(1 << 16))
        self.sock.settimeout(5)
        return self.receive(0)

    def receive_until(self, what: Callable[[list[Message]], bool], timeout_s: float = 15.0) -> list[Message]:
        """Read until ``what`` of everything received; whatever was received when the time is over."""
        end = time.monotonic() + timeout_s
        while True:
            messages = self.receive_for(0.1)
            if what(messages) or time.monotonic() > end:
                return messages

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def wait_until(what: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.005)


def test_every_kind_reaches_every_client() -> None:
    with IgtlServer() as server, Client(server.port) as a, Client(server.port) as b:
        assert server.wait_for_clients(2)
        assert server.publish_transform("NeedleToTracker", EYE, sender_ns=5) == 2
        server.publish_tdata("Tracker", [TrackedTool("Needle", EYE)])
        server.publish_position("Stylus", (1, 2, 3), (0, 0, 0, 1))
        server.publish_image("Image", np.zeros((4, 5), np.uint8), EYE)
        server.publish_status("Server", 7, text="lost")
        server.publish_string("Text", "hello")
        for client in (a, b):
            kinds = [type(m) for m in client.receive(6)]
            assert kinds == [PoseMessage, PoseMessage, PoseMessage, ImageMessage, StatusMessage, TextMessage]
            assert client.receive(6)[0].sender_ns == 5
        assert a.raws == b.raws


def test_without_clients_nothing_is_encoded_or_kept() -> None:
    with IgtlServer(keep_alive_s=None) as server:
        assert server.publish("T", lambda _: pytest.fail("encoded for nobody")) == 0
        server.publish_string("T", "old news")
        with Client(server.port) as client:
            assert server.wait_for_clients()
            server.publish_string("T", "new")
            assert [m.text for m in client.receive(1) if isinstance(m, TextMessage)] == ["new"]


def test_encoding_once_per_version() -> None:
    calls: list[int] = []

    def build(version: int) -> bytes:
        calls.append(version)
        return encode_transform("T", EYE, version=version)

    with IgtlServer(keep_alive_s=None) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server.port)) for _ in range(4)]
        assert server.wait_for_clients(4)
        for client in clients[2:]:
            client.sock.sendall(encode_status("me", version=2))
        wait_until(lambda: [c.version for c in server.clients] == [1, 1, 2, 2])
        server.publish("T", build)
        for client in clients:
            client.receive(1)
        assert sorted(calls) == [1, 2]
        assert [c.raws[0][1] for c in clients] == [1, 1, 2, 2]


def test_version_1_until_the_client_has_spoken_version_2() -> None:
    with IgtlServer(keep_alive_s=None) as server, Client(server.port) as client:
        assert server.wait_for_clients()
        lost = {"TransformStatus": "MISSING"}
        server.publish_transform("T", EYE, metadata=lost)
        assert client.receive(1)[0].metadata == {}
        client.sock.sendall(encode_status("me", version=1))
        time.sleep(0.1)
        assert server.clients[0].version == 1
        client.sock.sendall(encode_status("me", version=2))
        wait_until(lambda: server.clients[0].version == 2)
        server.publish_transform("T", EYE, metadata=lost)
        assert client.receive(2)[1].metadata == lost


def test_keep_alive_only_when_idle() -> None:
    with IgtlServer(name="PlusServer", keep_alive_s=0.1) as server, Client(server.port) as client:
        assert server.wait_for_clients()
        for _ in range(20):
            server.publish_transform("T", EYE)
            time.sleep(0.02)
        while_busy = client.receive_for(0.05)
        assert sum(isinstance(m, StatusMessage) for m in while_busy) <= 1
        idle = client.receive_for(0.55)[len(while_busy) :]
        statuses = [m for m in idle if isinstance(m, StatusMessage)]
        assert 3 <= len(statuses) <= 6
        assert (statuses[0].device, statuses[0].code) == ("PlusServer", 1)


def test_slow_client_loses_its_oldest_images_and_nobody_else_anything() -> None:
    image = np.zeros((512, 512), np.uint8)
    n = 60
    with (
        IgtlServer(keep_alive_s=None) as server,
        Client(server.port) as fast,
        Client(server.port, receive_buffer=4096) as slow,
    ):
        assert server.wait_for_clients(2)
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.extend(fast.raws) if fast.receive(2 * n) else None)
        reader.start()
        for k in range(n):
            image[0, 0] = k
            server.publish_image("Image", image, EYE)
            server.publish_transform("NeedleToTracker", EYE, sender_ns=k + 1)
            time.sleep(0.01)
        reader.join(5)
        assert len(received) == 2 * n, "the fast client got everything"
        info = next(c for c in server.clients if c.dropped)
        assert info.dropped["Image"] > 0
        assert info.queued <= 1 + 2 + 32  # and one of which a part was sent
        everything = slow.receive_until(lambda got: any(m.sender_ns == n for m in got))
        late = [m for m in everything if isinstance(m, PoseMessage)]
        assert late[-1].sender_ns == n, "the newest is kept, the oldest goes"
        # What arrives is in order and whole, even though something is missing in between.
        stamps = [m.sender_ns or 0 for m in late]
        assert stamps == sorted(stamps)


def test_commands_are_never_dropped() -> None:
    with IgtlServer(keep_alive_s=None) as server, Client(server.port, receive_buffer=4096) as slow:
        assert server.wait_for_clients()
        for k in range(1000):
            server.publish_string("Command", f"{k} " + "x" * 2000)
            server.publish_transform("T", EYE)
        everything = slow.receive_until(lambda got: sum(isinstance(m, TextMessage) for m in got) >= 1000)
        texts = [m for m in everything if isinstance(m, TextMessage)]
        assert [int(m.text.split()[0]) for m in texts] == list(range(1000))


def test_client_that_never_takes_its_commands_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivers.openigtlink.outgoing.RELIABLE_LIMIT", 50)
    with IgtlServer(keep_alive_s=None) as server, Client(server.port, receive_buffer=4096):
        assert server.wait_for_clients()
        for _ in range(300):
            server.publish_string("Command", "x" * 60_000)
        wait_until(lambda: not server.clients)


def test_client_that_stops_reading_is_disconnected_after_the_time_out() -> None:
    volume = np.zeros((64, 512, 512), np.uint8)
    with IgtlServer(keep_alive_s=None, send_timeout_s=0.3) as server, Client(server.port, receive_buffer=4096):
        assert server.wait_for_clients()
        server.publish_image("Volume", volume, EYE)
        wait_until(lambda: not server.clients, 3.0)


def test_messages_of_clients_are_handed_over() -> None:
    heard: list[tuple[ClientInfo, bytes]] = []
    with (
        IgtlServer(on_message=lambda c, raw: heard.append((c, raw))) as server,
        Client(server.port) as a,
        Client(server.port) as b,
    ):
        command = pack_message("COMMAND", "me", bytes(138))
        a.sock.sendall(encode_string("CMD_1", "<Command/>") + command)
        wait_until(lambda: len(heard) == 2)
        b.sock.sendall(encode_string("CMD_2", "b"))
        wait_until(lambda: len(heard) == 3)
        assert [raw for _, raw in heard] == [
            encode_string("CMD_1", "<Command/>"),
            command,
            encode_string("CMD_2", "b"),
        ]
        server.publish_string("ACK_2", "done", only=heard[2][0].number)
        (answer,) = [m for m in b.receive(1) if isinstance(m, TextMessage)]
        assert answer.text == "done"
        assert not [m for m in a.receive_for(0.2) if isinstance(m, TextMessage)]


def test_broken_handler_costs_one_client_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def handler(_client: ClientInfo, _raw: bytes) -> None:
        raise RuntimeError("cannot")

    with IgtlServer(on_message=handler) as server, Client(server.port) as bad, Client(server.port) as good:
        assert server.wait_for_clients(2)
        bad.sock.sendall(encode_string("T", "x"))
        wait_until(lambda: len(server.clients) == 1)
        server.publish_transform("T", EYE)
        good.receive(1)
    assert "could not be handled" in caplog.text


@pytest.mark.parametrize(
    "bad",
    [
        bytes(58),
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: a browser that got lost\r\n\r\n",
        struct.pack(">H12s20sIIQQ", 1, b"STRING", b"X", 0, 0, 1 << 50, 0),
        bytes([*encode_string("T", "x")[:-1], 0]),
    ],
)
def test_damage_from_a_client_disconnects_that_client_only(bad: bytes) -> None:
    with IgtlServer() as server, Client(server.port) as attacker, Client(server.port) as good:
        assert server.wait_for_clients(2)
        attacker.sock.sendall(bad)
        wait_until(lambda: len(server.clients) == 1)
        server.publish_transform("T", EYE)
        good.receive(1)


def test_closed_clients_are_noticed_at_once_and_others_may_come() -> None:
    with IgtlServer() as server:
        for _ in range(30):
            client = Client(server.port)
            assert server.wait_for_clients(1)
            client.close()
            wait_until(lambda: not server.clients, 1.0)


def test_client_limit() -> None:
    with IgtlServer(max_clients=2) as server, Client(server.port), Client(server.port):
        assert server.wait_for_clients(2)
        with Client(server.port) as third, pytest.raises(ConnectionError):
            third.receive(1)
        assert len(server.clients) == 2


def test_publishing_from_several_threads_keeps_messages_whole() -> None:
    with IgtlServer(keep_alive_s=None) as server, Client(server.port) as client:
        assert server.wait_for_clients()

        def work(name: str) -> None:
            for k in range(200):
                server.publish(name, lambda v, k=k: encode_string(name, f"{k}", version=v), kind="reliable")

        threads = [threading.Thread(target=work, args=(f"T{t}",)) for t in range(4)]
        for thread in threads:
            thread.start()
        messages = client.receive(800)
        for thread in threads:
            thread.join()
        for t in range(4):
            mine = [int(m.text) for m in messages if isinstance(m, TextMessage) and m.device == f"T{t}"]
            assert mine == list(range(200))


def test_what_cannot_be_encoded_is_the_callers_error_and_no_torn_link() -> None:
    with IgtlServer(keep_alive_s=None) as server, Client(server.port) as client:
        assert server.wait_for_clients()
        with pytest.raises(EncodeError):
            server.publish_transform("A name that is too long", EYE)
        server.publish_transform("T", EYE)
        assert isinstance(client.receive(1)[0], PoseMessage)
    with pytest.raises(EncodeError):
        IgtlServer(name="A name that is too long")


def test_life_cycle() -> None:
    server = IgtlServer()
    assert server.port == 0
    server.stop()
    server.start()
    port = server.port
    assert port > 0
    with pytest.raises(RuntimeError):
        server.start()
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        IgtlServer(port=port).start()
    with Client(port) as client:
        assert server.wait_for_clients()
        server.stop()  # raises when it takes more than 2 s
        server.stop()
        with pytest.raises(ConnectionError):
            client.receive(1)
    assert server.publish_transform("T", EYE) == 0
    again = IgtlServer(port=port).start()  # at once, although connections of the old one are in TIME_WAIT
    assert again.port == port
    again.stop()


def test_stop_while_a_client_blocks() -> None:
    server = IgtlServer(keep_alive_s=None).start()
    with Client(server.port, receive_buffer=4096):
        assert server.wait_for_clients()
        server.publish_image("Volume", np.zeros((64, 512, 512), np.uint8), EYE)
        time.sleep(0.1)
        server.stop()  # raises when it takes more than 2 s


def test_loopback_unless_told_otherwise() -> None:
    with IgtlServer() as server:
        assert server.host == "127.0.0.1"
        assert server._listener is not None
        assert server._listener.getsockname()[0] == "127.0.0.1"


def test_a_client_that_reads_in_crumbs_gets_whole_messages_only() -> None:
    """Every size of message and of read: what arrives is always whole, in order, and nothing stands in its middle."""
    rng = np.random.default_rng(3)
    volume = rng.integers(0, 255, (4, 256, 256), dtype=np.uint8)
    ended = threading.Event()
    with (
        IgtlServer(keep_alive_s=0.01) as server,
        Client(server.port, receive_buffer=2048) as slow,
    ):
        assert server.wait_for_clients()

        def publish() -> None:
            k = 0
            while not ended.is_set():
                k += 1
                volume[0, 0, 0] = k % 256
                server.publish_image("Volume", volume, EYE, sender_ns=k)
                for _ in range(20):
                    server.publish_transform("T", EYE, sender_ns=k)
                server.publish_string("Text", f"{k} " + "x" * (k % 3000))
                time.sleep(0.001)

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            # The framer checks every CRC and raises at the first byte out of step.
            while len(slow.raws) < 400 or server.clients[0].dropped.get("Volume", 0) < 3:
                data = slow.sock.recv(int(rng.integers(1, 9000)))
                assert data
                slow.raws += slow.framer.feed(data)
        finally:
            ended.set()
            thread.join()
        messages = slow.receive(0)
        images = [m.sender_ns or 0 for m in messages if isinstance(m, ImageMessage)]
        texts = [int(m.text.split()[0]) for m in messages if isinstance(m, TextMessage)]
        assert len(images) >= 2
        assert images == sorted(set(images))
        assert texts == list(range(1, len(texts) + 1)), "no text is ever dropped"


def test_a_message_that_was_begun_is_never_dropped_for_a_newer_one() -> None:
    volume = np.zeros((40, 512, 512), np.uint8)
    with IgtlServer(keep_alive_s=None) as server, Client(server.port, receive_buffer=4096) as slow:
        assert server.wait_for_clients()
        for k in range(5):
            volume[0, 0, 0] = k
            server.publish_image("Volume", volume, EYE, sender_ns=k + 1, depth=1)
        assert server.clients[0].dropped == {"Volume": 3}
        got = [m.sender_ns for m in slow.receive(2)]
        assert got == [1, 5], "the one that was begun, and the newest"


def test_bytes_that_wait_are_bounded() -> None:
    image = np.zeros((1, 1024, 1024), np.uint8)
    with (
        IgtlServer(keep_alive_s=None, max_queued_bytes=4 << 20) as server,
        Client(server.port, receive_buffer=4096) as slow,
    ):
        assert server.wait_for_clients()
        for k in range(40):
            server.publish_image(f"Image{k % 20}", image, EYE, sender_ns=k + 1, depth=32)
            info = server.clients[0]
            assert info.queued_bytes <= (4 << 20) + image.nbytes + 200
        assert sum(info.dropped.values()) >= 20
        stamps = [m.sender_ns or 0 for m in slow.receive_until(lambda got: any(m.sender_ns == 40 for m in got))]
        assert stamps == sorted(stamps)
        assert stamps[-1] == 40, "the oldest go, the newest stays"


def test_the_publisher_sends_itself_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that the socket takes leaves from the thread that published it, before `publish` returns."""
    senders: list[str] = []
    original = Outgoing._send

    def watched(self: Outgoing, view: memoryview) -> int:
        senders.append(threading.current_thread().name)
        return original(self, view)

    monkeypatch.setattr(Outgoing, "_send", watched)
    with IgtlServer(keep_alive_s=None) as server, Client(server.port) as client:
        assert server.wait_for_clients()
        for k in range(100):
            server.publish_transform("T", EYE, sender_ns=k + 1)
            assert server.clients[0].sent == k + 1
        assert [m.sender_ns for m in client.receive(100)] == list(range(1, 101))
    assert set(senders) == {threading.current_thread().name}


def test_only_named_clients_get_a_message_and_a_version_may_be_left_out() -> None:
    with IgtlServer(keep_alive_s=None) as server, Client(server.port) as a, Client(server.port) as b:
        assert server.wait_for_clients(2)
        b.sock.sendall(encode_status("me", version=2))
        wait_until(lambda: [c.version for c in server.clients] == [1, 2])
        assert server.publish("T", lambda v: encode_status("T", version=v) if v == 2 else None) == 1
        assert server.publish("T", lambda v: encode_status("T", 5, version=v), only=[0]) == 1
        assert server.publish("T", lambda v: encode_status("T", 6, version=v), only=()) == 0
        assert [m.code for m in b.receive(1) if isinstance(m, StatusMessage)] == [1]
        assert [m.code for m in a.receive(1) if isinstance(m, StatusMessage)] == [5]


def test_coming_and_going_is_told() -> None:
    told: list[tuple[int, bool]] = []
    with IgtlServer(on_client=lambda client, here: told.append((client.number, here))) as server:
        first = Client(server.port)
        wait_until(lambda: told == [(0, True)])
        first.close()
        wait_until(lambda: told == [(0, True), (0, False)])
        with Client(server.port):
            wait_until(lambda: len(told) == 3)
    assert told == [(0, True), (0, False), (1, True), (1, False)]


def test_connections_come_and_go_without_leaving_anything_behind() -> None:
    process = psutil.Process()
    with IgtlServer(max_clients=8) as server:
        with Client(server.port):
            assert server.wait_for_clients()
        wait_until(lambda: not server.clients)
        files, threads = process.num_fds(), threading.active_count()
        for k in range(1000):
            sock = socket.create_connection(("127.0.0.1", server.port))
            if k % 3 == 0:
                sock.sendall(encode_string("T", "x")[: 1 + k % 60])
            if k % 5 == 0:  # a reset instead of an orderly end
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        # No client may be left; those that still stand in the backlog are let in and go at once.
        wait_until(lambda: not server.clients and process.num_fds() <= files, 15.0)
        assert threading.active_count() == threads


def test_a_flooding_client_is_slowed_down_and_delays_nobody() -> None:
    heard: Counter[int] = Counter()
    ended = threading.Event()
    status = encode_status("flood") * 500

    def flood(client: Client) -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                client.sock.sendall(status)

    def hear(client: ClientInfo, _raw: bytes) -> None:
        heard[client.number] += 1

    with (
        IgtlServer(on_message=hear, keep_alive_s=None) as server,
        Client(server.port) as bad,
        Client(server.port) as good,
    ):
        assert server.wait_for_clients(2)
        began = time.monotonic()
        thread = threading.Thread(target=flood, args=(bad,))
        thread.start()
        try:
            for k in range(50):
                good.sock.sendall(encode_status("good"))
                wait_until(lambda k=k: heard[1] == k + 1)  # type: ignore[misc]
                server.publish_transform("T", EYE, sender_ns=k + 1)
            assert len(good.receive(50)) == 50
            wait_until(lambda: heard[0] > 9000)
            seconds = time.monotonic() - began
            assert heard[0] <= 8000 + 4000 * seconds + 200, "a burst, and then its share"
        finally:
            ended.set()
            bad.sock.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_message_that_is_never_completed_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivers.openigtlink.sink._MESSAGE_S", 0.2)
    raw = encode_string("T", "x" * 100)
    with IgtlServer() as server, Client(server.port) as crumbs, Client(server.port) as good:
        assert server.wait_for_clients(2)
        with contextlib.suppress(OSError):
            for k in range(100):  # a byte now and then is no progress that counts
                crumbs.sock.sendall(raw[k : k + 1])
                time.sleep(0.01)
                if len(server.clients) == 1:
                    break
        wait_until(lambda: [c.number for c in server.clients] == [1])
        server.publish_transform("T", EYE)
        good.receive(1)


def test_a_client_that_says_nothing_may_stay_and_half_open_ones_are_found() -> None:
    with IgtlServer(keep_alive_s=0.05, send_timeout_s=7.0) as server, Client(server.port) as silent:
        assert server.wait_for_clients()
        assert len(silent.receive(3)) == 3
        sock = server._roster[0].sock
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 7
        assert server.clients[0].connected_utc_ns <= time.time_ns()


# ------------------------------------------------------------------------------------------------- who may connect


def lan_address() -> str:
    """An address of this computer that is not loopback; skips where there is none."""
    for addresses in psutil.net_if_addrs().values():
        for entry in addresses:
            if entry.family == socket.AF_INET and not entry.address.startswith("127."):
                return str(entry.address)
    pytest.skip("this computer has no network address beside loopback")


def test_an_open_address_needs_a_list_of_who_may_connect() -> None:
    for host in ("0.0.0.0", "::"):
        with pytest.raises(AllowListError, match=r"can be reached from the network.*allow = \["):
            IgtlServer(host).start()
    with pytest.raises(AllowListError, match=r"'10.0.0.1/8'.*192.0.2.0/24"):
        IgtlServer("0.0.0.0", allow=["10.0.0.1/8"])


def test_only_allowed_networks_and_this_computer_get_in() -> None:
    address = lan_address()
    others = next(n for n in ("198.51.100.0/24", "203.0.113.0/24") if not address.startswith(n[:8]))
    with IgtlServer("0.0.0.0", allow=[others]) as server, Client(server.port):
        assert server.wait_for_clients()
        stranger = socket.create_connection((address, server.port), timeout=5)
        with stranger:
            assert stranger.getsockname()[0] == address
            assert stranger.recv(1) == b"", "closed at once"
        assert [c.address.split(":")[0] for c in server.clients] == ["127.0.0.1"]
    with (
        IgtlServer("0.0.0.0", allow=[address]) as server,
        socket.create_connection((address, server.port), timeout=5),
    ):
        assert server.wait_for_clients()
        assert server.clients[0].address.startswith(address)
