"""Ranking of a knowledge graph's entities by a relation, the entities being embedded from texts."""

from heads.entity_ranking.head import INVERSE, EntityRankingHead
from heads.entity_ranking.ranking import Triple, mean_ranks, rank_triples
from heads.entity_ranking.relations import RELATION_MODELS, Relations

__all__ = ["INVERSE", "RELATION_MODELS", "EntityRankingHead", "Relations", "Triple", "mean_ranks", "rank_triples"]
