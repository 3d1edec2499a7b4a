"""A second way through decoders that transformers built: their own weights, fewer and larger operations."""
