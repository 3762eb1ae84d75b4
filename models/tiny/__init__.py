"""The small model in the repository: for now its tokenizer; its weights are made on the spot."""
