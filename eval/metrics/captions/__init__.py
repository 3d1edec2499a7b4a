"""Captions against references: CIDEr-D, BLEU and ROUGE-L on PTB-like tokens, without Java."""
