"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from eval.metrics.boxes import box_iou, mask_iou
from eval.metrics.ranking import roc_auc
from eval.metrics.routing import count_right_calls, routing_rate
from eval.metrics.statistics import Estimate, bootstrap, macro_mean, mean
from eval.metrics.text import exact_match, word_error_rate, word_errors


def call(task: str, prompt: str = "", groundings: int = 0) -> dict[str, object]:
    return {"task": task, "prompt": prompt, "groundings": [{"type": "region"}] * groundings}


def test_mean_has_the_textbook_error() -> None:
    values = [1.0, 0.0, 1.0, 1.0]
    estimate = mean(values)
    assert estimate.value == 0.75
    assert estimate.stderr == pytest.approx(np.std(values, ddof=1) / 2)


def test_clusters_of_one_change_nothing_and_copies_add_nothing() -> None:
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    alone = mean(values)
    assert mean(values, list("abcde")).stderr == pytest.approx(alone.stderr)
    # Every sample three times, clustered by the original: as uncertain as the originals.
    assert mean(values * 3, list("abcde") * 3).stderr == pytest.approx(alone.stderr)
    assert mean(values * 3).stderr < alone.stderr  # what ignoring the clusters would claim


def test_clustered_error_by_hand() -> None:
    # mean 0.5; cluster sums of deviations: a 1.0, b -0.5, c -0.5; C/(C-1)/n^2 * (1 + .25 + .25) = 1.5/16*1.5
    estimate = mean([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "c"])
    assert estimate.stderr == pytest.approx(math.sqrt(1.5 / 16 * 1.5))


def test_one_cluster_has_no_error() -> None:
    assert mean([1.0, 0.0], ["a", "a"]).stderr is None
    with pytest.raises(ValueError, match="at least one"):
        mean([])


def test_macro_mean_weighs_parts_alike() -> None:
    estimate = macro_mean([Estimate(1.0, 90, 0.03), Estimate(0.5, 10, 0.04)])
    assert (estimate.value, estimate.n) == (0.75, 100)
    assert estimate.stderr == pytest.approx(0.025)


def test_bootstrap_of_a_mean_agrees_with_its_formula() -> None:
    values = np.random.default_rng(0).normal(size=300)
    assert bootstrap(lambda i: float(values[i].mean()), 300) == pytest.approx(mean(list(values)).stderr, rel=0.1)
    clusters = [i // 3 for i in range(300)]
    copied = np.repeat(values[:100], 3)
    error = bootstrap(lambda i: float(copied[i].mean()), 300, clusters)
    assert error == pytest.approx(mean(list(copied), clusters).stderr, rel=0.1)


def test_exact_match_forgives_case_and_a_full_stop_only() -> None:
    assert exact_match(" Yes. ", "yes")
    assert exact_match("a  red 7", ["a blue 7", "a red 7"])
    assert not exact_match("yes, there is", "yes")
    assert not exact_match("", "yes")


def test_word_error_rate_is_of_the_corpus() -> None:
    # 1 substitution in 1 word, 0 in 9: corpus 1/10, while the mean over utterances would be 0.5.
    estimate = word_error_rate(["x", "a b c d e f g h i"], ["y", "a b c d e f g h i"])
    assert estimate.value == pytest.approx(0.1)
    assert word_errors("one two", "one two three four") == (2, 4)
    assert word_errors("a b c d", "a") == (3, 1)
    assert word_errors("", "one two") == (2, 2)
    with pytest.raises(ValueError, match="at least one word"):
        word_errors("a", " ")


def test_box_iou_by_hand() -> None:
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(2 / 6)
    assert box_iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert box_iou((3, 3, 1, 1), (0, 0, 4, 4)) == 0
    assert box_iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0


def test_mask_iou_by_hand() -> None:
    first, second = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    assert mask_iou(first, second) == 1.0
    first[0], second[:, 0] = True, True
    assert mask_iou(first, second) == pytest.approx(1 / 4)
    with pytest.raises(ValueError, match="one size"):
        mask_iou(first, torch.zeros(3, 2, dtype=torch.bool))


def test_auc_agrees_with_scikit_learn_with_ties() -> None:
    generator = np.random.default_rng(1)
    labels = generator.random(200) < 0.4
    scores = np.round(generator.random(200) + 0.3 * labels, 1)
    assert roc_auc(list(scores), list(labels)) == pytest.approx(roc_auc_score(labels, scores))
    assert roc_auc([0.5] * 4, [True, False, True, False]) == 0.5
    assert math.isnan(roc_auc([0.1, 0.2], [True, True]))


def test_a_call_is_right_in_its_place_only() -> None:
    reference = [call("ground", "red 7", 1), call("seg", "red 7")]
    assert count_right_calls(reference, reference) == 2
    assert count_right_calls(reference[::-1], reference) == 0
    assert count_right_calls([call("ground", "red  7", 1)], reference) == 1
    assert count_right_calls([call("ground", "red 7", 0)], reference) == 0
    assert count_right_calls([call("ground", "red 1", 1)], reference) == 0
    assert count_right_calls([], reference) == 0


def test_routing_rates_by_hand() -> None:
    counts = np.array([(1, 2, 1), (0, 0, 2), (2, 2, 2)], dtype=np.float64)  # right 3, predicted 4, expected 5
    assert routing_rate(counts, "precision") == pytest.approx(3 / 4)
    assert routing_rate(counts, "recall") == pytest.approx(3 / 5)
    assert routing_rate(counts, "f1") == pytest.approx(2 * 3 / 9)
    assert [routing_rate(0 * counts, name) for name in ("precision", "recall", "f1")] == [1.0, 1.0, 1.0]
