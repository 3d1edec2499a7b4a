"""Sessions: rendering prompts, decoding, routing and head calls."""
