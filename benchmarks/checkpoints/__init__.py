"""Ways of reading a checkpoint, each in a process of its own."""
