"""Ports for servers of a test's processes."""

import socket
from random import SystemRandom

BELOW_THOSE_OF_THE_SYSTEM = range(20_000, 32_000)
"""Ports that nobody gets who asks the system for any free one, as gloo, Ray and `create_server` with port 0 do."""


def free_port() -> int:
    """Return a port that is free, and stays so until a process of the test has started and takes it."""
    while True:
        port = SystemRandom().choice(BELOW_THOSE_OF_THE_SYSTEM)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
