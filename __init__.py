"""Miso GGUF: Miso TTS 8B as GGUF files, run by llama.cpp, measured level by level."""

__version__ = "0.1.0"
