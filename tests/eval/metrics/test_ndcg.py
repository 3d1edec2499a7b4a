"""nDCG against scikit-learn's, ties included."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from eval.metrics.retrieval import ndcg_at


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_ndcg_equals_scikit_learns_with_and_without_ties(k: int) -> None:
    rng = np.random.default_rng(0)
    relevance = rng.integers(0, 4, (12, 20)) * (rng.random((12, 20)) < 0.4)
    relevance[:, 0] = 1
    for similarity in (rng.random((12, 20)), rng.integers(0, 5, (12, 20)).astype(float)):
        expected = [ndcg_score(r[None], s[None], k=k) for r, s in zip(relevance, similarity, strict=True)]
        assert ndcg_at(similarity, relevance, k) == pytest.approx(expected)


def test_what_cannot_be_ranked_is_refused() -> None:
    assert ndcg_at([[3.0, 2, 1]], [[0, 0, 1]]) == pytest.approx([0.5])
    with pytest.raises(ValueError, match="got none of query 1"):
        ndcg_at(np.ones((2, 2)), [[1, 0], [0, 0]])
    with pytest.raises(ValueError, match=r"got \(1, 2\), \(1, 3\)"):
        ndcg_at([[1.0, 2]], [[1, 0, 0]])
