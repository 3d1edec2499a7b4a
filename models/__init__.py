"""Language model, projectors, the Generalist that composes them, and its checkpoints."""
