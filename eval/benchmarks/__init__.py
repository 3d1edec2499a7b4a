"""What is measured: benchmarks give records and score predictions."""
