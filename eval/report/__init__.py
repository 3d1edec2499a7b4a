"""One self-contained page about a run: times, scores against controls, learning curves, held-out examples."""
