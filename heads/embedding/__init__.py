"""Heads whose answer is a vector: contrastive embeddings, scores of pairs, and the index that is searched with them."""

from heads.embedding.contrastive import EmbeddingHead
from heads.embedding.index import ExactIndex
from heads.embedding.pairs import PairScoreHead

__all__ = ["EmbeddingHead", "ExactIndex", "PairScoreHead"]
