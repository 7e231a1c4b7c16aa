"""``ablation-nav igtl``: OpenIGTLink messages in files and on the wire. The table of its commands, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "bridge", "decode", "doctor", "encode", "listen", "send"]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""OpenIGTLink: see what a server really sends, send, forward, look into files.

\b
Examples:
  ablation-nav igtl listen 127.0.0.1:18944
  ablation-nav igtl doctor 127.0.0.1:18944
  ablation-nav igtl send --serve 127.0.0.1:18944 --tool NeedleToTracker
  ablation-nav igtl bridge tracker:18944 --serve 127.0.0.1:18950
  ablation-nav igtl decode MESSAGES.bin --json
  ablation-nav igtl encode SPEC.json --out MESSAGES.bin
""",
)


@app.callback()
def _group() -> None:
    """Keeps each entry a sub-command, however many there are."""


@app.command("decode")
def decode(
    file: Annotated[Path, typer.Argument(help="One or more messages, one after another.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON (docs/igtl-json.md).")] = False,
) -> int:
    """Show the messages in a file: header, metadata, content; or what is wrong, and at which byte of the file.

    A message whose CRC or content is wrong is named and the next one follows; where a header cannot be read, nothing
    can. Ends with 4 when anything was wrong.

    \b
    Examples:
      ablation-nav igtl decode MESSAGES.bin
      ablation-nav igtl decode MESSAGES.bin --json
    """
    from nav.cli.igtl_files import decode_file

    return decode_file(file, as_json)


@app.command("encode")
def encode(
    spec: Annotated[Path, typer.Argument(help="One message or a list, with the keys of decode --json.")],
    out: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
) -> int:
    """Make messages from JSON: what `decode --json` prints gives the same bytes again.

    Only "type" and "content" are needed. Sizes and CRC are computed.

    \b
    Examples:
      ablation-nav igtl encode SPEC.json --out MESSAGES.bin
    """
    from nav.cli.igtl_files import encode_file

    return encode_file(spec, out)


_Address = Annotated[str, typer.Argument(metavar="HOST:PORT", help="Address of the server.", show_default=False)]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON at the end (docs/igtl-json.md).")]
_Duration = Annotated[float | None, typer.Option(help="End after this many seconds; default: Ctrl-C.", min=0.1)]
_V2 = Annotated[bool, typer.Option("--v2", help="Speak header version 2: PLUS sends the status of tools only then.")]
_Ask = Annotated[
    list[str] | None,
    typer.Option("--client-info", metavar="NAME", help="Ask PLUS for a transform or image; repeatable."),
]
_Subscribe = Annotated[str, typer.Option(metavar="tdata|qtdata", help="Ask for tracking data (STT_TDATA, STT_QTDATA).")]
_Interval = Annotated[int, typer.Option(help="Least interval of what is asked for; 0: as fast as it can.", min=0)]
_Coordinate = Annotated[str, typer.Option(help="Coordinate system asked for; empty: the server's own.")]
_Types = Annotated[list[str] | None, typer.Option(help="Only these types, such as 'T*'; repeatable.")]
_Names = Annotated[list[str] | None, typer.Option(help="Only these device names, such as '*ToTracker'; repeatable.")]


@app.command("listen")
def listen(
    address: _Address,
    duration: _Duration = None,
    as_json: _AsJson = False,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="A line of JSON every second, and at the end.")
    ] = False,
    v2: _V2 = False,
    client_info: _Ask = None,
    subscribe: _Subscribe = "",
    interval_ms: _Interval = 20,
    coordinate: _Coordinate = "",
    types: _Types = None,
    names: _Names = None,
    save: Annotated[Path | None, typer.Option(help="Keep the messages as received, for igtl decode.")] = None,
    reconnect: Annotated[bool, typer.Option(help="Connect again when the connection is lost.")] = True,
) -> int:
    """See what a server really sends: every stream with its rate, age, gaps, clock, newest value, and what looks wrong.

    A table on a terminal, a line every second elsewhere. Ends after --duration, with Ctrl-C, or with --no-reconnect at
    the end of the connection; with 5 when it never connected.

    \b
    Examples:
      ablation-nav igtl listen 127.0.0.1:18944
      ablation-nav igtl listen tracker:18944 --duration 10 --json
      ablation-nav igtl listen tracker:18944 --subscribe tdata --interval-ms 20
      ablation-nav igtl listen plus:18944 --client-info NeedleToReference --client-info Image_Reference
    """
    from drivers.openigtlink.selection import Filter
    from nav.cli.endpoints import endpoint
    from nav.cli.igtl_listen import listen_to
    from nav.cli.igtl_source import source_config

    host, port = endpoint(address, "HOST:PORT")
    return listen_to(
        source_config(
            host,
            port,
            name="listen",
            v2=v2,
            ask=client_info or (),
            subscribe=subscribe,
            interval_ms=interval_ms,
            coordinate=coordinate,
            reconnect=reconnect,
        ),
        duration_s=duration,
        as_json=as_json,
        as_lines=json_lines,
        wanted=Filter(tuple(types or ()), tuple(names or ())),
        save=save,
    )


_Serve = Annotated[str, typer.Option(metavar="HOST:PORT", help="Be a server at this address (port 0: any free one).")]
_Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="NETWORK", help="Who may connect from the network, 192.0.2.0/24; repeatable."),
]


@app.command("send")
def send(
    address: Annotated[str, typer.Argument(metavar="[HOST:PORT]", help="Server to send to.", show_default=False)] = "",
    serve: _Serve = "",
    messages: Annotated[
        list[Path] | None, typer.Option(help="Messages as bytes, or .json as for igtl encode; repeatable.")
    ] = None,
    tool: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A test pose that goes round in a circle; repeatable.")
    ] = None,
    image: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A test picture; repeatable.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Rounds per second; default: 60 tools, 10 pictures, 1 message.", min=0.01, max=10000),
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Rounds; default: 1 of messages, no end of test data.", min=1)
    ] = None,
    duration: _Duration = None,
    v2: Annotated[
        bool, typer.Option("--v2", help="Test data in header version 2 whatever the peer has spoken.")
    ] = False,
    wait: Annotated[
        float | None,
        typer.Option(help="Seconds to wait for the peer; default: 5 for a server, no end for a client.", min=0),
    ] = None,
    replies: Annotated[float, typer.Option(help="Seconds to listen for replies after the last message.", min=0)] = 1.0,
    allow: _Allow = None,
    as_json: _AsJson = False,
) -> int:
    """Send messages or test data, to a server or as one, and show what comes back.

    Messages are sent as they are, wrong ones too. Test data is marked: by a STATUS every second, and in the metadata of
    header version 2.

    \b
    Examples:
      ablation-nav igtl send --serve 127.0.0.1:18944 --tool NeedleToTracker --rate 60
      ablation-nav igtl send 127.0.0.1:18944 --messages SPEC.json
      ablation-nav igtl send 127.0.0.1:18944 --image Image --duration 10 --json
    """
    from nav.cli.endpoints import endpoint
    from nav.cli.errors import CommandError, ExitCode
    from nav.cli.igtl_send import SendPlan, messages_in, send_to, serve_at
    from nav.cli.igtl_source import source_config

    if bool(address) == bool(serve):
        raise CommandError("give one of HOST:PORT and --serve HOST:PORT", ExitCode.USAGE)
    if not (messages or tool or image):
        raise CommandError("nothing to send: give --messages, --tool or --image", ExitCode.USAGE)
    if allow and not serve:
        raise CommandError("--allow belongs to --serve", ExitCode.USAGE)
    plan = SendPlan(
        tuple(raw for path in messages or () for raw in messages_in(path)),
        tuple(tool or ()),
        tuple(image or ()),
        rate_hz=rate or (60.0 if tool else 10.0 if image else 1.0),
        rounds=count or (None if tool or image or duration else 1),
        duration_s=duration,
        version=2 if v2 else None,
        wait_s=wait if wait is not None or serve else 5.0,
        replies_s=replies,
    )
    if serve:
        host, port = endpoint(serve, "--serve", listening=True)
        return serve_at(host, port, plan, allow=allow or (), as_json=as_json)
    host, port = endpoint(address, "HOST:PORT")
    return send_to(source_config(host, port, name="send"), plan, as_json=as_json)


@app.command("bridge")
def bridge(
    address: _Address,
    serve: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address for the clients.", show_default=False)],
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="Another device name, 20 bytes at most; repeatable.")
    ] = None,
    types: _Types = None,
    names: _Names = None,
    split: Annotated[bool, typer.Option("--split", help="Each tool of TDATA and QTDATA as a TRANSFORM.")] = False,
    v1: Annotated[
        bool, typer.Option("--v1", help="Version 1 for clients that have not spoken version 2, lost tools left out.")
    ] = False,
    v2: _V2 = False,
    client_info: _Ask = None,
    subscribe: _Subscribe = "",
    interval_ms: _Interval = 20,
    coordinate: _Coordinate = "",
    allow: _Allow = None,
    duration: _Duration = None,
    as_json: _AsJson = False,
) -> int:
    """Forward what a server sends to any number of clients, as received: the same bytes, the same stamps.

    While the source is lost, the clients get nothing but a STATUS "timed out or connection lost" (code 7) every second.
    Messages of clients are counted and go nowhere. Ends with 5 when the source never connected.

    \b
    Examples:
      ablation-nav igtl bridge tracker:18944 --serve 127.0.0.1:18950
      ablation-nav igtl bridge tracker:18944 --serve 127.0.0.1:18950 --rename Tool1=NeedleToTracker --types TRANSFORM
      ablation-nav igtl bridge tracker:18944 --serve 0.0.0.0:18950 --allow 192.0.2.0/24 --subscribe tdata --split
    """
    from drivers.openigtlink.forwarding import Forwarding, renames
    from drivers.openigtlink.selection import Filter
    from nav.cli.endpoints import endpoint
    from nav.cli.igtl_bridge import bridge_from
    from nav.cli.igtl_source import source_config

    host, port = endpoint(address, "HOST:PORT")
    serve_host, serve_port = endpoint(serve, "--serve", listening=True)
    config = source_config(
        host,
        port,
        name="bridge",
        v2=v2,
        ask=client_info or (),
        subscribe=subscribe,
        interval_ms=interval_ms,
        coordinate=coordinate,
    )
    wanted = Filter(tuple(types or ()), tuple(names or ()))
    rules = Forwarding(wanted, renames(rename or ()), split=split, downgrade=v1)
    return bridge_from(
        config, serve_host, serve_port, allow=allow or (), rules=rules, duration_s=duration, as_json=as_json
    )


@app.command("doctor")
def doctor(
    address: _Address,
    seconds: Annotated[float, typer.Option(help="To listen in each way of asking.", min=0.5, max=600)] = 3.0,
    once: Annotated[
        bool,
        typer.Option("--once", help="Connect once, in version 1: for servers that ask a person at every connection."),
    ] = False,
    client_info: _Ask = None,
    name: Annotated[str, typer.Option(help="Name of the source in the configuration.")] = "tracker",
    as_json: _AsJson = False,
) -> int:
    """Say what is wrong with a server and what to do, and print its entry for the room's configuration.

    Connects as any client in version 1, asks for tracking data where none came, then speaks version 2, and asks with
    CLIENTINFO where that is answered. Ends with 6 when something is seriously wrong, with 5 when it never connected.

    \b
    Examples:
      ablation-nav igtl doctor 127.0.0.1:18944
      ablation-nav igtl doctor tracker:18944 --seconds 10 --json
    """
    from nav.cli.endpoints import endpoint
    from nav.cli.igtl_doctor import examine

    host, port = endpoint(address, "HOST:PORT")
    return examine(host, port, name=name, seconds=seconds, once=once, ask=client_info or (), as_json=as_json)
