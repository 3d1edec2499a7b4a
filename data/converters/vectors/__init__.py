"""Formats whose items are pairs: what a query finds, and what a relation joins."""
