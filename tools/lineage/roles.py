"""What a shape consists of: its services by name, from back to front."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tools.lineage.routes import Context, Service


class Role(NamedTuple):
    """One process of a shape, and how its service is made in it."""

    name: str
    make: Callable[[Context], Service]
