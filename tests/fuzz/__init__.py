"""Inputs by the million, and what must be true of every answer: `python -m fuzz`."""
