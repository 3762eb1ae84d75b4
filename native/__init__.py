"""ctypes bindings to the ggml and llama.cpp libraries that llama-cpp-python ships.

The lowest layer of the package: it knows no model, and everything above checks what it hands down, because ggml
aborts the process on a bad shape.
"""
