"""Predict and score as two commands."""
