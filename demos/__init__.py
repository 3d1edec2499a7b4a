"""Asking a checkpoint."""
