"""Addresses in configurations: networks that may connect, and what can be reached from outside."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator

__all__ = ["NetworkText", "is_loopback"]


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"{error}; expected a network such as 192.0.2.0/24, or an address") from None
    return value


#: A network (``192.0.2.0/24``) or one address, as text.
NetworkText = Annotated[str, AfterValidator(_network)]


def is_loopback(host: str) -> bool:
    """True when only this computer can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
