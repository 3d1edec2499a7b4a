"""The files that benchmarks' servers and scripts take, one class per form."""
