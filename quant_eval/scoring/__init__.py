"""The clips of an evaluation, scored by instruments."""
