"""Shared tensor code and the values that cross rooms: no logic beyond their own invariants."""
