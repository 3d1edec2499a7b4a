"""What is put beside or in place of a language model's layers: low-rank updates, gates, mixtures of experts."""
