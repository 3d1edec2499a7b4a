"""Arms of the benchmark of evaluation: answering questions about images, decoding, and scoring logs."""
