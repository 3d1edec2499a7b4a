"""Demonstrations of what training on a mixture of sources does."""
