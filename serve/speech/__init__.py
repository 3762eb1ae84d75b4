"""One request to speak: what it asks, its turn, its sound on the way to whoever listens."""
