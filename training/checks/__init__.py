"""What can be known and proved of a fit before it starts."""
