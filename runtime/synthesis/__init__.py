"""From a text to its speech: its sentences, a try (take) at each, and when to stop one."""
