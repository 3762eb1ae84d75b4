"""The Mimi codec in ONNX Runtime, and its thread beside the models."""
