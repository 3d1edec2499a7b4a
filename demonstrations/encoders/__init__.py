"""Demonstrations of encoders and projectors."""
