"""What the models are: their dimensions, prompts, tensors and levels, and a reference implementation.

Nothing here reads checkpoints, writes GGUF files or runs llama.cpp.
"""
