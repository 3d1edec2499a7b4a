"""Judges grade answers that no rule can; off by default, and without one there is no score."""
