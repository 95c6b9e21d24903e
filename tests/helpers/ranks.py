"""Processes that form a group, as torchrun tells them to, without the seconds that torchrun takes."""

from __future__ import annotations

import socket


def meeting(num: int) -> list[dict[str, str]]:
    """The environment of each of so many processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = {"WORLD_SIZE": str(num), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    return [where | {"RANK": str(rank)} for rank in range(num)]
