"""Expert heads: hidden states and context in, typed results out."""
