"""Command lines of the four programs and of `python -m sca_caption COMMAND`: flags, checks and calls."""
