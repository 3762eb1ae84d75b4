"""Samples to the bytes of a format, piece by piece: no HTTP here, and no model."""
