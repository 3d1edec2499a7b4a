"""Parsers of the catalogue: choices, yes or no, labels, scores, boxes and masks."""
