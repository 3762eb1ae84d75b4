"""What all endpoints share, in one place."""

from dataclasses import dataclass

from .model import HeldModel
from .options import ServeOptions


@dataclass(frozen=True)
class Service:
    """The parts of a server that is up."""

    options: ServeOptions
    model: HeldModel
