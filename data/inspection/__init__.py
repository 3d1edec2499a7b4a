"""What shards hold, to be looked at: drawings and a page."""
