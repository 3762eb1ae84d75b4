"""Which process loaded something: after a fork the child has its memory, and none of the threads that it waits for."""

import os

from .errors import MisoError


class OwnProcess:
    """Remembers the process it was made in."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this is that process, and not one forked from it."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise `MisoError` in a forked child. To be asked before any lock: whoever held it may be gone."""
        if not self.is_here:
            raise MisoError(
                "this model was loaded before the process was forked and is of no use here: load a model after the fork"
            )
