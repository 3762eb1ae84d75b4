"""Voices by name: uploaded ones on disk, those of the operator, and the names that clients know."""
