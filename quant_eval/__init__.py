"""What quantisation costs, in memory and in prosody: measured, judged, reported; the command `miso-eval`."""
