"""From a checkpoint to a bundle: read, quantise, write, verify; the command `miso-convert`.

It never imports `runtime`; what both need lives in `models` and `native`.
"""
