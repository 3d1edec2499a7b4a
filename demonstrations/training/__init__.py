"""Demonstrations of training recipes: stages, adapters, curricula and optimizers."""
