"""Checkpoint -> bundle: read, quantise, write, verify.

It never imports `runtime`; what both need lives in `models` and `native`.
"""
