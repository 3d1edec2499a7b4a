"""Lightning modules, stages, optimizers and callbacks."""
