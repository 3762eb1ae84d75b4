"""Pitch, loudness and rhythm of speech, and how far two clips differ in them."""
