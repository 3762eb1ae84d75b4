"""From a text to its speech: sentences, takes, when to stop."""
