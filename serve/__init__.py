"""`miso-serve`: an HTTP server that speaks. It imports `runtime`; nothing imports it."""
