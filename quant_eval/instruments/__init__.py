"""Programs of others that judge a clip by itself: what is heard in it, whose voice it is, how good it sounds."""
