"""Cuts the network of every Python started with this folder on PYTHONPATH.

Notebooks run in kernels, which are processes of their own: Python imports a module
of this name when it starts, so no kernel escapes. This machine's own addresses stay
open, because a notebook and its kernel talk over them.
"""

import ipaddress
import socket
import sys
from typing import Any


class NetworkIsCutError(ConnectionError):
    """Something asked for a host that is not this machine."""


def is_this_machine(host: object) -> bool:
    """Whether a name or an address is a loopback one (or the machine's own name)."""
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(str(host))
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse_outside(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: Python calls it before it connects, sends or looks a name up."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        connection, address = arguments
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or not address:
            return  # a socket in the file system, or one that is connected already
        host = address[0]
    else:
        return
    if not is_this_machine(host):
        raise NetworkIsCutError(
            f"tests and grading run without a network; something asked for {host!r}. "
            "Lessons must work in a classroom that is offline."
        )


sys.addaudithook(refuse_outside)
