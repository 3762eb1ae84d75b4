"""Which voice a name means: an uploaded one, one of the operator, or a name that clients of OpenAI's API know."""
