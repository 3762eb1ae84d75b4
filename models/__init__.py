"""What the model is: its spec, its tensors, its levels, and a reference implementation.

Nothing here reads checkpoints, writes GGUF files or runs llama.cpp.
"""
