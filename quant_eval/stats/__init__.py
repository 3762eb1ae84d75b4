"""Statistics: from a value a clip to an estimate with its interval."""
