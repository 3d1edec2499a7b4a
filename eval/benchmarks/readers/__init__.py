"""One module per family of official benchmark files."""
