"""One modality in, a ragged sequence of features out."""
