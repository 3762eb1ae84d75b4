"""From a bundle to speech: what users import, and the command `miso-speak`."""
