"""The loop, and what it needs by its side."""
