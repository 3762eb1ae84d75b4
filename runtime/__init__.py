"""Bundle to speech."""
