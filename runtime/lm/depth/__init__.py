"""The depth decoder: all codes of a frame in one ggml graph."""
