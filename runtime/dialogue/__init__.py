"""Texts with several voices: scripts, turns, conversations."""
