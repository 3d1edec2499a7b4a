"""Pictures of what demonstrations measured."""
