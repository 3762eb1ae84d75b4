"""What `verify` compares beside hashes, headers and tensors, a file each: the codec, the tokenizer, logits."""
