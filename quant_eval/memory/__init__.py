"""What a level takes of a GPU, accounted and measured."""
