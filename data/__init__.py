"""Records, shards, rendering, packing and synthesis."""
