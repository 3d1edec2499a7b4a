"""Pure functions from predictions and references to numbers, with their standard errors."""
