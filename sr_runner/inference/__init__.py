"""Networks at work: images of any size, in bounded memory. Importing the package imports nothing heavy."""

TILE = 256
"""LR pixels that one tile contributes in each direction."""
OVERLAP = 40
"""LR pixels of context around a tile: covers the receptive field of every network here except `edsr_large` (68)."""
