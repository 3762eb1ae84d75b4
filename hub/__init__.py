"""What a conversion asks of the Hugging Face hub: a client whose errors are one line, and files read where they are."""
