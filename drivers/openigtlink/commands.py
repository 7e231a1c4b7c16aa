"""COMMANDs from the network: what a client may ask this program to do, read safely, and the answer.

The content is XML, ``<Command Name="StartRecording" OutputFilename="x.mcap"/>``, as PLUS and Slicer send it. Only what
stands in `COMMANDS` is done; nothing that touches the guidance is among it. A document type (and with it every entity)
is refused before the text is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from xml.etree import ElementTree

from nav.runtime.snapshot import NavigationSnapshot

__all__ = ["COMMANDS", "Command", "CommandError", "NavigationControl", "Reply", "carry_out", "parse_command"]

#: What a client may ask for. ``RequestState`` changes nothing.
COMMANDS = ("StartRecording", "StopRecording", "Reconnect", "RequestState")
#: Longest command text, characters.
LONGEST_TEXT = 8192
_NO_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


class CommandError(ValueError):
    """A command that is not carried out; the text goes back to the client."""


class NavigationControl(Protocol):
    """What a client may do to a session. Called from a thread of the publisher; may take seconds.

    Refusals are `ValueError`, `LookupError` or `OSError` with a text for the client.
    """

    @property
    def recording(self) -> str:
        """Name of the file that is being recorded; empty when none is."""

    def start_recording(self, name: str = "") -> str:
        """Begin a recording; returns the file's name."""

    def stop_recording(self) -> str:
        """Finish the recording; returns the file's name."""

    def reconnect(self, name: str) -> None:
        """Let a source connect anew."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command as sent: its name and its attributes."""

    name: str
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer: whether it was done, a sentence, and further facts (attributes, and rows of child elements)."""

    done: bool
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[tuple[str, Mapping[str, str]], ...] = ()

    def xml(self, name: str) -> str:
        """``<CommandReply Name= Status="SUCCESS|FAIL" Message= .../>``."""
        status = "SUCCESS" if self.done else "FAIL"
        root = ElementTree.Element("CommandReply", {"Name": name, "Status": status, "Message": self.message})
        root.attrib.update(self.facts)
        for tag, facts in self.rows:
            ElementTree.SubElement(root, tag, dict(facts))
        # A name may hold any byte; XML has no place for control characters, not even escaped.
        return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", ElementTree.tostring(root, encoding="unicode"))


def parse_command(text: str, name: str = "") -> Command:
    """Read ``<Command Name= .../>``; an empty text is the command called ``name`` (the name field of COMMAND).

    Raises
    ------
    CommandError
    """
    if not text.strip("\0 \r\n\t"):
        return Command(name, {})
    if len(text) > LONGEST_TEXT:
        raise CommandError(f"the command has {len(text)} characters, limit {LONGEST_TEXT}")
    if "<!" in text:
        raise CommandError("the command holds a document type, an entity or a comment ('<!'): not accepted")
    try:
        root = ElementTree.fromstring(text.rstrip("\0"))
    except (ElementTree.ParseError, ValueError) as error:
        raise CommandError(f'the command is not XML ({error}); expected <Command Name="..."/>') from None
    if root.tag != "Command":
        raise CommandError(f"the command's element is <{root.tag[:40]}>, expected <Command>")
    return Command(root.attrib.get("Name") or name, dict(root.attrib))


def carry_out(command: Command, control: NavigationControl, snapshot: NavigationSnapshot | None) -> Reply:
    """Do what ``command`` asks for, if it is among `COMMANDS`; whatever goes wrong is said in the reply."""
    known = next((kind for kind in COMMANDS if kind.lower() == command.name.lower()), None)
    if known is None:
        return Reply(False, f"command {command.name[:40]!r} is not known; known: {', '.join(COMMANDS)}")
    try:
        match known:
            case "StartRecording":
                file = control.start_recording(command.attributes.get("OutputFilename", ""))
                return Reply(True, f"recording {file}", {"Filename": file})
            case "StopRecording":
                file = control.stop_recording()
                return Reply(True, f"finished {file}", {"Filename": file})
            case "Reconnect":
                source = command.attributes.get("Source", "")
                control.reconnect(source)
                return Reply(True, f"{source} connects anew")
            case _:
                return _state(control, snapshot)
    except (ValueError, LookupError, OSError) as error:
        return Reply(False, str(error.args[0] if isinstance(error, LookupError) and error.args else error))


def _state(control: NavigationControl, snapshot: NavigationSnapshot | None) -> Reply:
    facts = {"Recording": control.recording}
    if snapshot is None:
        return Reply(True, "nothing has been computed yet", facts)
    facts |= {
        "Gate": snapshot.gate.state.name,
        "Step": snapshot.setup.step,
        "Registration": "" if snapshot.registration is None else snapshot.registration.method,
        "Applicator": snapshot.applicator,
    }
    rows: list[tuple[str, Mapping[str, str]]] = [
        ("Reason", {"Code": r.code, "Level": r.level.name, "Text": r.text}) for r in snapshot.gate.reasons
    ]
    rows += [("Stream", {"Name": s.name, "State": s.state}) for s in snapshot.streams]
    return Reply(True, f"gate {snapshot.gate.state.name}", facts, tuple(rows))
