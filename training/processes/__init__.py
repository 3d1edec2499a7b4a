"""Many processes: what they do alike, how a model is spread over them, and Lightning's strategies."""
