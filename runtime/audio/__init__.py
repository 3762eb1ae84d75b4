"""Sound as arrays, files and pipes."""
