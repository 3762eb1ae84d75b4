"""The Hugging Face hub for converter and runtime: a repository at one commit, looked at or fetched; one-line errors."""
