"""Commands from the network: read safely, only what is allowed is done, everything is answered."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from drivers.openigtlink.commands import COMMANDS, LONGEST_TEXT, CommandError, Reply, carry_out, parse_command


class Control:
    """Says what was asked of it."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self.refusal = refusal
        self.recording = "recording.mcap"

    def _call(self, what: str, value: str = "") -> str:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append((what, value))
        return value or "recording-2.mcap"

    def start_recording(self, name: str = "") -> str:
        return self._call("start", name)

    def stop_recording(self) -> str:
        return self._call("stop")

    def reconnect(self, name: str) -> None:
        self._call("reconnect", name)


def test_a_command_is_read_with_its_attributes() -> None:
    command = parse_command('<Command Name="StartRecording" OutputFilename="a&amp;b.mha" />\0', "other")
    assert (command.name, command.attributes["OutputFilename"]) == ("StartRecording", "a&b.mha")
    assert parse_command("", "RequestState").name == "RequestState"
    assert parse_command("<Command/>", "StopRecording").name == "StopRecording"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<!DOCTYPE c [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><Command Name="&b;"/>', "entity"),
        ('<!DOCTYPE c SYSTEM "file:///etc/passwd"><Command/>', "document type"),
        ("<Command Name=", "not XML"),
        ("<Command><Command></Command>", "not XML"),
        ("<Other/>", "expected <Command>"),
        ("<Command/>" + " " * LONGEST_TEXT, "limit 8192"),
        ("GET / HTTP/1.1", "not XML"),
        ("<Command Name='\x01'/>", "not XML"),
        ("&a;", "not XML"),
    ],
)
def test_what_cannot_be_read_safely_is_refused(text: str, words: str) -> None:
    with pytest.raises(CommandError, match=words):
        parse_command(text)


def test_recordings_and_sources_are_reached_and_the_file_is_named() -> None:
    control = Control()
    start = carry_out(parse_command('<Command Name="startrecording" OutputFilename="x.mha"/>'), control, None)
    stop = carry_out(parse_command('<Command Name="StopRecording"/>'), control, None)
    again = carry_out(parse_command('<Command Name="Reconnect" Source="tracker"/>'), control, None)
    assert control.calls == [("start", "x.mha"), ("stop", ""), ("reconnect", "tracker")]
    assert start == Reply(True, "recording x.mha", {"Filename": "x.mha"})
    assert stop.facts == {"Filename": "recording-2.mcap"}
    assert again.done


@pytest.mark.parametrize("error", [ValueError("no: why"), OSError("no: why"), LookupError("no: why")])
def test_refusals_go_back_as_they_are(error: Exception) -> None:
    control = Control(error)
    for name in ("StartRecording", "StopRecording", "Reconnect"):
        reply = carry_out(parse_command("", name), control, None)
        assert reply == Reply(False, "no: why")


@pytest.mark.parametrize(
    "name", ["SetPlan", "StartGuidance", "ChooseApplicator", "LoadCase", "LoadRegistration", "", "x" * 1000, "stop"]
)
def test_nothing_else_is_done(name: str) -> None:
    control = Control()
    reply = carry_out(parse_command("", name), control, None)
    assert not reply.done
    assert not control.calls
    assert all(known in reply.message for known in COMMANDS)


def test_the_reply_is_xml_whatever_was_asked() -> None:
    reply = carry_out(parse_command("", "<&\"' \x07>"), Control(), None)
    root = ElementTree.fromstring(reply.xml("<a & b>\0\x1f"))
    assert root.tag == "CommandReply"
    assert (root.attrib["Name"], root.attrib["Status"]) == ("<a & b>\ufffd\ufffd", "FAIL")
    done = ElementTree.fromstring(Reply(True, "m", {"Filename": "f"}, (("Stream", {"Name": "s"}),)).xml("N"))
    assert (done.attrib["Status"], done.attrib["Filename"], done[0].attrib) == ("SUCCESS", "f", {"Name": "s"})


def test_the_state_before_anything_is_computed() -> None:
    reply = carry_out(parse_command("", "RequestState"), Control(), None)
    assert reply.done
    assert reply.facts == {"Recording": "recording.mcap"}
