"""Addresses, as ``host:port``."""

from __future__ import annotations

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether nothing but this machine can be reached at `address`."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
