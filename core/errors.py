"""The exceptions that a user of the library can meet.

Every message names the file or value, what was expected, and what to do about it.
"""


class MisoError(Exception):
    """Base of all errors raised on purpose: bad input, or a machine that cannot do what was asked."""


class CheckpointError(MisoError):
    """A checkpoint, tokenizer or imatrix cannot be used: unreadable, incomplete or not of this model."""


class BundleError(MisoError):
    """A bundle cannot be read or written: missing parts, wrong hashes, or files of another model."""


class NewerBundleError(BundleError):
    """A bundle that nothing is wrong with, and that only a newer version of this program can read."""


class HubError(CheckpointError, BundleError):
    """A file on the Hugging Face hub cannot be had, be it of a checkpoint or of a bundle."""


class Busy(MisoError):  # noqa: N818  (it is no mistake of whoever asks)
    """As many utterances wait to be spoken as may wait. `ahead` says how many those are."""

    def __init__(self, ahead: int) -> None:
        super().__init__(
            f"as many utterances as may are waiting already ({ahead}): try again when some have been spoken, or load "
            "with a larger `waiting`"
        )
        self.ahead = ahead
