"""Arms that train the same steps."""
