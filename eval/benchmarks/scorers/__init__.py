"""Metrics of the catalogue, in one pass over answers."""
