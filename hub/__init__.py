"""The Hugging Face hub: one client, files read in place. It knows no checkpoints."""
