"""Checkpoints of others, to ours and back."""
