"""What all that hold native handles have in common: `close`, and the `with` block that calls it."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

_Self = TypeVar("_Self", bound="Closing")

CLOSED = "this model is closed: load it again"
"""What a `MisoError` says of whatever is asked of a model after `close`."""


class Closing(ABC):
    """A context manager whose end is `close`. Nothing relies on `__del__`."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held. May be called again."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
