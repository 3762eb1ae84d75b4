"""A listening test: whether people hear a level beside its reference, and how good they find it."""
