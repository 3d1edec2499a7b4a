"""Demonstrations of routing and of its links to the heads."""
