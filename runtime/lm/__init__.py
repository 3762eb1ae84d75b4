"""The language models of a level: prompts, tokens, the two models loaded, and the loop that steps utterances."""
