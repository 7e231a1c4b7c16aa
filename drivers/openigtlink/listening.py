"""Opening a server's socket, and who may connect to it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

__all__ = ["AllowList", "AllowListError", "Network", "listen", "set_connection_options"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Unsent bytes that the operating system may hold for a client: what lies there cannot be replaced by newer data.
_UNSENT_BYTES = 1 << 18


class AllowListError(ValueError):
    """A server that is open to a network without saying to whom, or an allowed network that is none."""


class AllowList:
    """The networks whose clients are taken; those of this computer always are.

    Raises
    ------
    AllowListError
        When an entry is no network (``192.0.2.0/24``) and no address.
    """

    def __init__(self, entries: Sequence[str | Network] = ()) -> None:
        self.networks: tuple[Network, ...] = tuple(_network(entry) for entry in entries)

    def __contains__(self, address: str) -> bool:
        ip = _ip(address)
        return ip.is_loopback or any(ip in network for network in self.networks)

    def __str__(self) -> str:
        return ", ".join(map(str, self.networks)) or "this computer alone"


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(address.partition("%")[0])


def _network(entry: str | Network) -> Network:
    try:
        return ipaddress.ip_network(entry) if isinstance(entry, str) else entry
    except ValueError as error:
        raise AllowListError(
            f"allowed network {entry!r}: {error}; expected such as 192.0.2.0/24 or 192.0.2.7"
        ) from None


def listen(host: str, port: int, allow: AllowList) -> socket.socket:
    """A listening, non-blocking socket.

    Raises
    ------
    AllowListError
        When the address can be reached from a network and ``allow`` names none.
    OSError
        When the address cannot be bound (it is named).
    """
    place = f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {place}: {error.strerror}") from None
    # Where a name has both kinds of address, IPv4 is what the programs of the field connect to.
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    if not allow.networks and str(address[0]) not in allow:
        raise AllowListError(
            f"{place} can be reached from the network: say with 'allow' which networks may connect "
            '(such as allow = ["192.0.2.0/24"]), or listen on 127.0.0.1'
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {place}: {error.strerror}") from None
    return listener


def set_connection_options(sock: socket.socket, limit_s: float) -> None:
    """Make an accepted connection non-blocking, without delay, and found out within ``limit_s`` when its peer is gone.

    A peer that vanished without a word (cable, power) is noticed whether data is on its way to it or not.
    """
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = max(round(limit_s), 3)
    for option, value in (
        ("TCP_KEEPIDLE", seconds // 3),
        ("TCP_KEEPINTVL", seconds // 3),
        ("TCP_KEEPCNT", 2),
        ("TCP_USER_TIMEOUT", seconds * 1000),
        ("TCP_NOTSENT_LOWAT", _UNSENT_BYTES),
    ):
        if hasattr(socket, option):  # not every system has them all
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
