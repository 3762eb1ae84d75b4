"""Mimi, the codec, as streaming ONNX models: from a checkpoint's arrays to bytes, without torch."""
