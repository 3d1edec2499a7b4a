"""Doors to other evaluation frameworks, each in an environment of its own."""
