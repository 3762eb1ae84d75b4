"""What people bring: checkpoints in any file and layout, tokenizers, from a disk or the hub."""
