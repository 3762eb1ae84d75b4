"""The two language models of a level, loaded, and the loop that steps utterances."""
