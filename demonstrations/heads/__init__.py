"""Demonstrations of expert heads."""
