"""Bind the address on which a local server listens."""

from __future__ import annotations

import socket

from engine.base.errors import UserError

LOOPBACK = ("127.0.0.1", "::1", "localhost")  # hosts that other machines cannot reach


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket on the first address of the host. UserError if it cannot be bound."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"--host {host} --port {port} cannot be listened on ({reason}): choose another") from error
    return listening
