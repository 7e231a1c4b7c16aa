"""``ablation-nav igtl listen|send|bridge|doctor`` over real sockets: servers, scripted peers, the C++ examples."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.openigtlink.codec import decode, encode_status, encode_string, encode_tdata, encode_transform
from drivers.openigtlink.contents import TrackedTool
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.sink import ClientInfo, IgtlServer
from drivers.openigtlink.wire import parse_header, parse_message
from nav.cli.errors import ExitCode
from nav.cli.igtl_source import Listener, source_config
from nav.cli.main import main
from nav.config.room import RoomConfig
from tests.system.openigtlink_examples import build, free_port, running
from tests.system.openigtlink_tools import ScriptedServer, hold, threads_end

LISTEN_KEYS = {
    "address", "asked", "duration_s", "connected", "connections", "link", "link_left_out", "received", "bytes",
    "clock_steps", "streams", "frames", "skipped", "findings",
}  # fmt: skip


def pose(name: str = "NeedleToTracker", **options: Any) -> bytes:
    matrix = np.eye(4)
    matrix[:3, 3] = np.random.default_rng().normal([100.0, -40.0, -900.0])
    return encode_transform(name, matrix, sender_ns=time.time_ns(), **options)


@contextlib.contextmanager
def tracker(
    publish: Callable[[IgtlServer], None] | None = None, interval_s: float = 0.01, **options: Any
) -> Iterator[IgtlServer]:
    """A server that publishes on and on."""
    stop = threading.Event()

    def two_tools(server: IgtlServer) -> None:
        for name in ("NeedleToTracker", "ReferenceToTracker"):
            server.publish(name, lambda v, name=name: pose(name, version=v, metadata={"TransformStatus": "OK"}))

    def run() -> None:
        while not stop.wait(interval_s):
            (publish or two_tools)(server)

    with IgtlServer(**options) as server:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server
        finally:
            stop.set()
            thread.join()


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with threads_end():
        code = main(["igtl", *arguments])
    out, err = capfd.readouterr()
    return code, out, err


def listen(capfd: pytest.CaptureFixture[str], port: int, *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = run(capfd, "listen", f"127.0.0.1:{port}", "--json", *arguments)
    return code, json.loads(out)


# -- listen ----------------------------------------------------------------------------------------------------------


def test_listen_reports_every_stream(capfd: pytest.CaptureFixture[str]) -> None:
    with tracker() as server:
        code, report = listen(capfd, server.port, "--duration", "1")
    assert code == ExitCode.OK
    assert set(report) == LISTEN_KEYS
    assert report["connected"]
    assert [entry["state"] for entry in report["link"]] == ["connecting", "connected"]
    needle, reference = report["streams"]
    assert (needle["type"], needle["device"], needle["versions"]) == ("TRANSFORM", "NeedleToTracker", [1])
    assert needle["count"] > 20
    assert needle["statuses"] == {"(none stated)": needle["count"]}
    assert abs(needle["stamps"]["offset_ms"]) < 1000.0
    assert reference["count"] > 20
    assert report["frames"]["groups"] == [["Needle", "Reference", "Tracker"]]
    assert report["frames"]["missing"] == []
    assert {f["code"] for f in report["findings"]} >= {"status_missing_v1"}


def test_listen_in_version_2_hears_the_status(capfd: pytest.CaptureFixture[str]) -> None:
    with tracker() as server:
        _, report = listen(capfd, server.port, "--duration", "1", "--v2")
    assert report["asked"] == {"header_version": 2, "client_info": [], "subscribe": []}
    assert report["streams"][0]["statuses"]["OK"] > 20
    assert "status_missing_v1" not in {f["code"] for f in report["findings"]}


def test_listen_filters_and_saves_what_decode_reads(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "messages.bin"
    with tracker() as server:
        code, report = listen(
            capfd, server.port, "--duration", "0.6", "--names", "Needle*", "--types", "TRANSFORM", "--save", str(file)
        )
    assert code == ExitCode.OK
    assert [s["device"] for s in report["streams"]] == ["NeedleToTracker"]
    code, out, _ = run(capfd, "decode", str(file), "--json")
    assert code == ExitCode.OK
    messages = json.loads(out)
    assert len(messages) == report["received"]
    assert {m["device"] for m in messages} == {"NeedleToTracker"}


def test_listener_reports_what_the_file_holds(tmp_path: Path) -> None:
    config, file = source_config("127.0.0.1", 1, name="looks"), tmp_path / "messages.bin"
    raw = pose()
    with Listener(config, save=file) as listener:
        for number in range(3):
            if number == 2:
                listener.end()
            listener.deliver(decode(raw, source="looks", sequence=number, arrival_ns=listener.clock.now_ns()), raw)
        assert listener.report()["received"] == listener.saved == 2
    assert file.read_bytes() == 2 * raw


def test_listen_asks_for_tracking_data(capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[bytes] = []
    with tracker(on_message=lambda _client, raw: asked.append(raw)) as server:
        listen(
            capfd,
            server.port,
            "--duration",
            "0.5",
            "--subscribe",
            "tdata",
            "--interval-ms",
            "40",
            "--coordinate",
            "Pat",
        )
    (raw,) = asked
    assert parse_header(raw).type_name == "STT_TDATA"
    assert raw[58:62] == (40).to_bytes(4, "big")
    assert raw[62:66] == b"Pat\0"


def test_listen_asks_plus_for_names(capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[bytes] = []
    with tracker(on_message=lambda _client, raw: asked.append(raw)) as server:
        _, report = listen(
            capfd,
            server.port,
            "--duration",
            "0.5",
            "--client-info",
            "NeedleToReference",
            "--client-info",
            "Image_Image",
        )
    assert report["asked"]["client_info"] == ["NeedleToReference", "Image_Image"]
    (raw,) = asked
    assert parse_header(raw).type_name == "CLIENTINFO"
    assert b'<Transform Name="NeedleToReference"' in raw
    assert b'<Image Name="Image"' in raw


def test_listen_in_lines_ends_with_the_report(capfd: pytest.CaptureFixture[str]) -> None:
    with tracker() as server:
        code, out, _ = run(capfd, "listen", f"127.0.0.1:{server.port}", "--duration", "2.5", "--json-lines")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == ExitCode.OK
    assert [line["kind"] for line in lines] == ["second", "second", "report"]
    assert set(lines[-1]) == LISTEN_KEYS | {"kind"}


def test_listen_without_json_shows_a_table(capfd: pytest.CaptureFixture[str]) -> None:
    with tracker() as server:
        code, out, err = run(capfd, "listen", f"127.0.0.1:{server.port}", "--duration", "1.5")
    assert code == ExitCode.OK
    assert "rate/s" in out
    assert "NeedleToTracker" in out
    assert "frames: Needle, Reference, Tracker" in out
    assert "TRANSFORM NeedleToTracker" in err  # a line every second, where nothing can be redrawn


def test_listen_to_nobody_ends_with_5(capfd: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    code, out, err = run(capfd, "listen", f"127.0.0.1:{port}", "--duration", "0.5", "--json")
    assert code == ExitCode.CONNECTION
    assert f"127.0.0.1:{port}: never connected" in err
    report = json.loads(out)
    assert report["connections"] == 0
    assert report["link"][-1]["state"] == "failed"


def test_listen_to_a_server_that_closes(capfd: pytest.CaptureFixture[str]) -> None:
    def script(sock: socket.socket, _: int) -> None:
        sock.sendall(pose() * 5)

    with ScriptedServer(script) as server:
        code, report = listen(capfd, server.port, "--no-reconnect")
        assert len(server.accepted) == 1
    assert code == ExitCode.OK
    assert report["received"] == 5
    assert not report["connected"]
    assert report["link"][-1]["state"] == "closed"
    assert "closed the connection" in report["link"][-1]["detail"]


def test_listen_to_a_server_that_closes_again_and_again(capfd: pytest.CaptureFixture[str]) -> None:
    def script(sock: socket.socket, _: int) -> None:
        sock.sendall(pose() * 5)

    with ScriptedServer(script) as server:
        _, report = listen(capfd, server.port, "--duration", "1")
    assert report["connections"] >= 2
    # The time may end in the last connection.
    assert 5 * (report["connections"] - 1) <= report["received"] <= 5 * report["connections"]


def test_listen_to_garbage_names_the_byte(capfd: pytest.CaptureFixture[str]) -> None:
    def script(sock: socket.socket, _: int) -> None:
        sock.sendall(pose() + b"GET / HTTP/1.1\r\nHost: tracker\r\n" + b"x" * 100)
        hold(sock)

    with ScriptedServer(script) as server:
        code, report = listen(capfd, server.port, "--duration", "0.6")
    assert code == ExitCode.OK
    finding = next(f for f in report["findings"] if f["code"] == "framing")
    assert "header version: 18245 at byte 0" in finding["value"]
    assert report["streams"][0]["device"] == "NeedleToTracker"


def test_listen_to_a_wrong_crc_names_it(capfd: pytest.CaptureFixture[str]) -> None:
    def script(sock: socket.socket, _: int) -> None:
        raw = bytearray(pose())
        raw[-1] ^= 1
        sock.sendall(bytes(raw))
        hold(sock)

    with ScriptedServer(script) as server:
        _, report = listen(capfd, server.port, "--duration", "0.6")
    finding = next(f for f in report["findings"] if f["code"] == "framing")
    assert "CRC of TRANSFORM 'NeedleToTracker'" in finding["value"]
    assert report["received"] == 0


def test_listen_to_silence_is_a_connection_without_messages(capfd: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer(lambda sock, _: hold(sock)) as server:
        code, report = listen(capfd, server.port, "--duration", "0.5")
    assert code == ExitCode.OK
    assert report["connected"]
    assert (report["received"], report["streams"]) == (0, [])


def test_listen_ends_properly_with_ctrl_c() -> None:
    with tracker() as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "nav.cli.main", "igtl", "listen", f"127.0.0.1:{server.port}", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            assert process.stderr is not None
            while b"TRANSFORM NeedleToTracker" not in process.stderr.readline():
                pass
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0, err
    assert json.loads(out)["received"] > 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["listen", "nowhere"], "expected HOST:PORT"),
        (["listen", "127.0.0.1:99999"], "port 1 to 65535"),
        (["listen", "127.0.0.1:1", "--subscribe", "everything"], "subscribe"),
        (["send"], "one of HOST:PORT and --serve"),
        (["send", "127.0.0.1:1"], "nothing to send"),
        (["send", "127.0.0.1:1", "--tool", "A", "--allow", "192.0.2.0/24"], "--allow belongs to --serve"),
        (["bridge", "127.0.0.1:1", "--serve", "127.0.0.1:0", "--rename", "A=StylusTipToReference2"], "limit 20 bytes"),
        (["bridge", "127.0.0.1:1", "--serve", "x"], "--serve 'x'"),
        (["doctor", "127.0.0.1"], "expected HOST:PORT"),
    ],
)
def test_wrong_use_ends_with_2(capfd: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    code, _, err = run(capfd, *arguments)
    assert code == ExitCode.USAGE
    assert words in err
    assert "Traceback" not in err


# -- send ------------------------------------------------------------------------------------------------------------


def test_send_gives_messages_as_they_are_and_shows_the_replies(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps([{"type": "GET_CAPABIL", "device": "us", "content": {}}]))
    raw = tmp_path / "raw.bin"
    wrong = bytearray(encode_string("Text", "hello"))
    wrong[50] ^= 0xFF  # a wrong CRC is sent as it is
    raw.write_bytes(encode_status("One") + bytes(wrong))
    got = bytearray()
    done = threading.Event()

    def script(sock: socket.socket, _: int) -> None:
        sock.settimeout(5)
        while len(got) < 58 + len(raw.read_bytes()):
            got.extend(sock.recv(4096))
        sock.sendall(encode_string("Answer", "here"))
        done.set()
        hold(sock)

    with ScriptedServer(script) as server:
        code, out, _ = run(
            capfd, "send", f"127.0.0.1:{server.port}", "--messages", str(spec), "--messages", str(raw), "--json"
        )
    assert done.is_set()
    assert code == ExitCode.OK
    assert parse_header(got).type_name == "GET_CAPABIL"
    assert bytes(got[58:]) == raw.read_bytes()
    report = json.loads(out)
    assert report["sent"] == {"GET_CAPABIL": 1, "STATUS": 1, "STRING": 1}
    assert report["received"] == {"STRING": 1}
    assert report["replies"][0]["content"]["text"] == "here"


def test_send_as_a_server_marks_its_test_data(capfd: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    received: list[bytes] = []

    def client() -> None:
        sock = connect(port)
        with sock:
            framer = Framer()
            sock.sendall(encode_status("me", version=2))
            while data := sock.recv(1 << 16):
                received.extend(framer.feed(data))

    thread = threading.Thread(target=client)
    thread.start()
    code, out, _ = run(
        capfd, "send", "--serve", f"127.0.0.1:{port}", "--tool", "PenToTracker", "--image", "Image", "--rate", "50",
        "--duration", "1", "--replies", "0", "--json",
    )  # fmt: skip
    thread.join(5)
    assert code == ExitCode.OK
    report = json.loads(out)
    assert report["clients"] == 1
    assert report["sent"]["TRANSFORM"] == 50
    assert report["sent"]["IMAGE"] == 50
    poses = [parse_message(raw) for raw in received if parse_header(raw).type_name == "TRANSFORM"]
    assert len(poses) == 50
    assert "computed, no real device" in poses[-1].metadata["TestData"]
    assert "computed, no real device" in next(raw for raw in received if raw[2:8] == b"STATUS").decode("latin-1")


def connect(port: int, timeout_s: float = 20.0) -> socket.socket:
    end = time.monotonic() + timeout_s
    while True:
        try:
            sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return sock


def test_send_to_nobody_and_for_nobody_end_with_5(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capfd, "send", f"127.0.0.1:{free_port()}", "--tool", "PenToTracker", "--wait", "0.3")
    assert code == ExitCode.CONNECTION
    assert "not connected (cannot connect" in err
    code, _, err = run(capfd, "send", "--serve", "127.0.0.1:0", "--tool", "PenToTracker", "--wait", "0.3")
    assert code == ExitCode.CONNECTION
    assert "no client came within 0.3 s" in err


def test_send_says_what_it_could_not_send(capfd: pytest.CaptureFixture[str]) -> None:
    def script(sock: socket.socket, number: int) -> None:
        if number == 0:
            sock.recv(4096)

    with ScriptedServer(script) as server:
        code, out, err = run(
            capfd, "send", f"127.0.0.1:{server.port}", "--tool", "PenToTracker", "--rate", "100", "--duration", "0.5",
            "--json",
        )  # fmt: skip
    assert code == ExitCode.CONNECTION
    assert json.loads(out)["not_sent"] > 0
    assert "messages were not sent" in err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.bin", b"", "holds no message"),
        ("cut.bin", encode_string("S", "hello")[:-2], "ends at"),
        ("garbage.bin", encode_string("S", "hello") + b"x" * 58, "message 1: header version"),
        ("spec.json", b"{", "message 0"),
        ("spec.json", b'[{"type": "STATUS", "content": {"text": 5}}]', "text"),
    ],
)
def test_send_refuses_files_without_messages(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    code, _, err = run(capfd, "send", "127.0.0.1:1", "--messages", str(file))
    assert code == ExitCode.INPUT
    assert words in err


def test_send_refuses_a_name_before_it_connects(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capfd, "send", "127.0.0.1:1", "--tool", "StylusTipToReference2")
    assert code == ExitCode.INPUT
    assert "limit 20 bytes" in err


# -- bridge ----------------------------------------------------------------------------------------------------------


class BridgeRun:
    """A bridge in a process of its own."""

    def __init__(self, source: int, *arguments: str) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "nav.cli.main", "igtl", "bridge", f"127.0.0.1:{source}", "--serve",
                f"127.0.0.1:{self.port}", "--json", *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> BridgeRun:
        return self

    def end(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, err
        report: dict[str, Any] = json.loads(out)
        return report

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class Client(contextlib.AbstractContextManager["Client"]):
    """Reads whole messages from a port."""

    def __init__(self, port: int, *, v2: bool = False) -> None:
        self.sock = connect(port)
        self.sock.settimeout(10)
        if v2:
            self.sock.sendall(encode_status("me", version=2))
        self._framer = Framer()
        self._waiting: list[bytes] = []

    def next(self, type_name: str) -> bytes:
        while True:
            while self._waiting:
                raw = self._waiting.pop(0)
                if parse_header(raw).type_name == type_name:
                    return raw
            data = self.sock.recv(1 << 16)
            assert data, "the connection was closed"
            self._waiting += self._framer.feed(data)

    def status(self) -> tuple[int, str]:
        content = bytes(parse_message(self.next("STATUS")).content)
        return int.from_bytes(content[:2], "big"), content[30:].split(b"\0")[0].decode()

    def wait_status(self, code: int) -> None:
        while self.status()[0] != code:
            pass

    def types_for(self, seconds: float) -> set[str]:
        """The types of all that comes within this time."""
        seen = set()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            while self._waiting:
                seen.add(parse_header(self._waiting.pop(0)).type_name)
            with contextlib.suppress(TimeoutError):
                self.sock.settimeout(0.1)
                self._waiting += self._framer.feed(self.sock.recv(1 << 16))
        self.sock.settimeout(10)
        return seen

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def test_bridge_hands_on_the_same_bytes_to_every_client() -> None:
    sent: list[bytes] = []

    def publish(server: IgtlServer) -> None:
        raw = pose(version=2, metadata={"TransformStatus": "OK", "Note": "kept"})
        sent.append(raw)
        server.publish("NeedleToTracker", lambda _: raw)

    with (
        tracker(publish) as server,
        BridgeRun(server.port) as bridge,
        Client(bridge.port) as one,
        Client(bridge.port) as two,
        Client(bridge.port) as three,
    ):
        for client in (one, two, three):
            for _ in range(20):
                assert client.next("TRANSFORM") in sent
        report = bridge.end()
    assert report["clients_came"] == 3
    assert report["forwarded"] == report["received"] >= 20
    assert report["connections"] == 1


def test_bridge_says_that_the_source_is_lost_and_never_sends_a_pose_again() -> None:
    go = threading.Event()

    def three_poses(sock: socket.socket, _: int) -> None:
        sock.sendall(pose() * 3)
        go.wait(10)

    def one_pose(sock: socket.socket, _: int) -> None:
        sock.sendall(pose())
        hold(sock)

    with ScriptedServer(three_poses) as server, BridgeRun(server.port) as bridge, Client(bridge.port) as client:
        client.wait_status(1)
        go.set()
        server.close()
        client.wait_status(7)
        code, text = client.status()  # told every second ...
        assert code == 7
        assert "cannot connect" in text
        with Client(bridge.port) as late:  # ... and at once to who comes later
            assert late.status()[0] == 7
            assert "TRANSFORM" not in late.types_for(1.5)
        with ScriptedServer(one_pose, server.port):
            client.wait_status(1)
            client.next("TRANSFORM")
            report = bridge.end()
    assert report["connections"] == 2
    assert report["forwarded"] == report["received"] == 4


def test_bridge_renames_splits_and_speaks_version_1() -> None:
    def publish(server: IgtlServer) -> None:
        tools = [TrackedTool("Tool1", np.eye(4)), TrackedTool("ProbeToTracker", np.eye(4))]
        metadata = {"Tool1Status": "OK", "ProbeToTrackerStatus": "MISSING"}
        server.publish_tdata("TDATA", tools, sender_ns=77 * 10**9, metadata=metadata)
        server.publish_string("Note", "unwanted")

    with (
        tracker(publish) as server,
        BridgeRun(server.port, "--v2", "--split", "--rename", "Tool1=NeedleToTracker", "--types", "TDATA") as bridge,
        Client(bridge.port) as old,
        Client(bridge.port, v2=True) as new,
    ):
        for _ in range(10):
            message = parse_message(old.next("TRANSFORM"))
            assert message.version == 1
            assert message.sender_ns == 77 * 10**9
        statuses: dict[str, str] = {}
        while len(statuses) < 2:
            message = parse_message(new.next("TRANSFORM"))
            if message.version == 2:
                statuses[message.device] = message.metadata["TransformStatus"]
        assert statuses == {"NeedleToTracker": "OK", "ProbeToTracker": "MISSING"}
        report = bridge.end()
    assert report["not_forwarded"]["not asked for"] > 0
    assert report["not_forwarded"]["lost tools, for version 1"] > 0
    assert report["from_clients"] == {"STATUS": 1}


def test_bridge_open_to_a_network_needs_to_know_to_which(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capfd, "bridge", "127.0.0.1:1", "--serve", f"0.0.0.0:{free_port()}", "--duration", "0.2")
    assert code == ExitCode.CONFIGURATION
    assert "which networks may connect" in err


def test_bridge_from_nobody_ends_with_5(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capfd, "bridge", f"127.0.0.1:{free_port()}", "--serve", "127.0.0.1:0", "--duration", "0.3", "--json"
    )
    assert code == ExitCode.CONNECTION
    assert "never connected" in err
    assert json.loads(out)["received"] == 0


# -- doctor ----------------------------------------------------------------------------------------------------------


def examine(capfd: pytest.CaptureFixture[str], port: int, *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = run(capfd, "doctor", f"127.0.0.1:{port}", "--json", "--seconds", "0.6", *arguments)
    report = json.loads(out)
    assert set(report) == {"address", "status", "checks", "source_toml", "open_questions", "phases"}
    for check in report["checks"]:
        assert set(check) == {"id", "status", "what", "todo"}
        assert bool(check["todo"]) or check["status"] == "ok"
    RoomConfig.model_validate(tomllib.loads(report["source_toml"]))
    return code, report


def by_id(report: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {check["id"]: check for check in report["checks"]}


def test_doctor_of_a_good_server_asks_for_version_2_and_writes_the_entry(capfd: pytest.CaptureFixture[str]) -> None:
    with tracker() as server:
        port = server.port
        code, report = examine(capfd, port, "--name", "polaris")
    assert code == ExitCode.OK
    checks = by_id(report)
    assert checks["version"]["todo"].startswith("set header_version = 2")
    assert checks["frames"]["status"] == "ok"
    source = RoomConfig.model_validate(tomllib.loads(report["source_toml"])).sources[0]
    assert (source.name, source.port, source.header_version) == ("polaris", port, 2)
    assert [t.transform for t in source.tools] == ["NeedleToTracker", "ReferenceToTracker"]
    assert report["open_questions"] == []
    assert [phase["asked"]["header_version"] for phase in report["phases"]] == [1, 2, 2]


def test_doctor_once_connects_once(capfd: pytest.CaptureFixture[str]) -> None:
    accepted: list[int] = []
    with tracker(on_client=lambda client, here: accepted.append(client.number) if here else None) as server:
        _, report = examine(capfd, server.port, "--once")
    assert len(accepted) == 1
    assert len(report["phases"]) == 1


def test_doctor_finds_metres_and_mirrors_and_ends_with_6(capfd: pytest.CaptureFixture[str]) -> None:
    mirrored = np.diag([0.2, -0.2, 1.0, 1.0])
    mirrored[:3, 3] = [3.0, 8.0, 5.0]
    rng = np.random.default_rng(5)

    def publish(server: IgtlServer) -> None:
        matrix = np.eye(4)
        matrix[:3, 3] = rng.normal([0.1, -0.04, -0.9], 0.001)
        server.publish_transform("NeedleToTracker", matrix, sender_ns=time.time_ns())
        server.publish_image("Image", np.zeros((1, 8, 8), np.uint8), mirrored, sender_ns=time.time_ns())

    with tracker(publish, interval_s=0.005) as server:
        code, report = examine(capfd, server.port)
    assert code == ExitCode.ENVIRONMENT
    assert report["status"] == "fail"
    checks = by_id(report)
    assert checks["pose_metres"]["status"] == "fail"
    assert checks["image_mirrored"]["status"] == "fail"
    assert "left_handed" in checks["image_mirrored"]["todo"]


def test_doctor_asks_for_tracking_data_where_none_comes(capfd: pytest.CaptureFixture[str]) -> None:
    wanted = threading.Event()

    def on_message(_: ClientInfo, raw: bytes) -> None:
        if parse_header(raw).type_name == "STT_QTDATA":
            wanted.set()

    def publish(server: IgtlServer) -> None:
        if wanted.is_set():
            server.publish("T", lambda _: encode_tdata("T", [TrackedTool("Channel 0", np.diag([1.0, 1, 1, 1]))]))

    with tracker(publish, on_message=on_message, on_client=lambda *_: wanted.clear()) as server:
        code, report = examine(capfd, server.port)
    assert code == ExitCode.OK
    checks = by_id(report)
    assert "STT_QTDATA" in checks["subscription"]["what"]
    source = RoomConfig.model_validate(tomllib.loads(report["source_toml"])).sources[0]
    assert source.subscribe[0].kind == "qtdata"
    assert source.stamps == "arrival"
    assert [t.device for t in source.tools] == ["Channel 0"]


def test_doctor_of_garbage_ends_with_6(capfd: pytest.CaptureFixture[str]) -> None:
    def script(sock: socket.socket, _: int) -> None:
        sock.sendall(b"SSH-2.0-OpenSSH_9.2" + b"\0" * 80)
        hold(sock)

    with ScriptedServer(script) as server:
        code, report = examine(capfd, server.port, "--once")
    assert code == ExitCode.ENVIRONMENT
    assert by_id(report)["framing"]["status"] == "fail"


def test_doctor_of_a_silent_server_ends_with_6(capfd: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer(lambda sock, _: hold(sock)) as server:
        code, report = examine(capfd, server.port)
    assert code == ExitCode.ENVIRONMENT
    assert "sends nothing" in by_id(report)["data"]["what"]
    assert len(report["phases"]) == 4


def test_doctor_of_nobody_ends_with_5(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capfd, "doctor", f"127.0.0.1:{free_port()}", "--seconds", "0.5")
    assert code == ExitCode.CONNECTION
    assert "never connected" in err


def test_doctor_for_a_person_ends_with_the_entry_to_paste(capfd: pytest.CaptureFixture[str]) -> None:
    def publish(server: IgtlServer) -> None:
        server.publish("Tool 1", lambda v: pose("Tool 1", version=v))

    with tracker(publish) as server:
        code, out, _ = run(capfd, "doctor", f"127.0.0.1:{server.port}", "--seconds", "0.6")
    assert code == ExitCode.OK
    assert '{ device = "Tool 1", transform = "Tool1ToTracker"' in out
    assert "To be decided: which transform 'Tool 1' carries" in out


# -- the C++ examples ------------------------------------------------------------------------------------------------


def test_doctor_of_the_cpp_tracking_data_server(capfd: pytest.CaptureFixture[str], examples: Path) -> None:
    program, port = build("TrackingDataServer", examples), free_port()
    with running(program, port):
        connect(port).close()
        code, _ = examine(capfd, port, "--once")
        assert code == ExitCode.ENVIRONMENT  # it sends nothing unasked
        code, listened = listen(capfd, port, "--duration", "3", "--subscribe", "tdata")
    assert code == ExitCode.OK
    (stream,) = listened["streams"]
    assert stream["type"] == "TDATA"
    assert set(stream["tools"]) == {"Channel 0", "Channel 1", "Channel 2"}


def test_listen_to_the_cpp_tracker_server(capfd: pytest.CaptureFixture[str], examples: Path) -> None:
    program, port = build("TrackerServer", examples), free_port()
    with running(program, port, 50):
        code, report = listen(capfd, port, "--duration", "3")
    assert code == ExitCode.OK
    stream = report["streams"][0]
    assert (stream["type"], stream["device"], stream["stamps"]["stamped"]) == ("TRANSFORM", "Tracker", 0)
    assert stream["count"] >= 50
    assert {"stamp_missing", "status_missing_v1"} <= {f["code"] for f in report["findings"]}
    assert report["frames"]["names_without_frames"] == ["Tracker"]
