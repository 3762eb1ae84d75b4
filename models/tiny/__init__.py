"""The tiny model that speaks: its three files, as a checkpoint directory in the upstream layout. See its README."""

from pathlib import Path

DIRECTORY = Path(__file__).parent
"""Holds `model.safetensors`, `mimi.safetensors` and `tokenizer.json`."""
