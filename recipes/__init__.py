"""What is known of a model from speech, for better levels of it: importance matrices."""
