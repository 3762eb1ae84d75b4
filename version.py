"""The version, alone in a file, so that every room may ask for it without loading anything."""

__version__ = "0.1.0"
