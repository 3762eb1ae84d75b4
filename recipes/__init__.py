"""What speech says of a model's weights, for better levels: importance matrices; the command `miso-recipe`."""
