"""From a text to its speech: its sentences, the pauses between, a try (take) at each, and when to stop one."""
