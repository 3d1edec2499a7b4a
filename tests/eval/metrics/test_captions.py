"""Tokens against Stanford's tokeniser, CIDEr-D, BLEU and ROUGE-L against pycocoevalcap on the same tokens."""

from __future__ import annotations

import numpy as np
import pytest

from eval.metrics.captions.bleu import bleu, bleu_of_images, count_bleu
from eval.metrics.captions.cider import cider_d
from eval.metrics.captions.ptb import tokenize
from eval.metrics.captions.rouge import rouge_l
from tests.eval.metrics.golden import golden


def official_tokens() -> tuple[list[list[str]], list[list[list[str]]]]:
    items = golden("captions")["items"]
    return [item["tokens"].split() for item in items], [
        [text.split() for text in item["reference_tokens"]] for item in items
    ]


def test_tokens_equal_stanfords() -> None:
    value = golden("ptb")
    for item in value["items"]:
        assert list(tokenize(item["caption"])) == item["tokens"]
    assert len(value["items"]) > 6 * len(value["different"])
    for item in value["different"]:
        assert list(tokenize(item["caption"])) != item["tokens"], "no longer different: move it"


def test_tokens_of_the_scored_captions_equal_stanfords() -> None:
    for item in golden("captions")["items"]:
        assert list(tokenize(item["caption"])) == item["tokens"].split()
        assert [list(tokenize(text)) for text in item["references"]] == [t.split() for t in item["reference_tokens"]]


def test_scores_equal_pycocoevalcap() -> None:
    value = golden("captions")
    candidates, references = official_tokens()
    items, scores = value["items"], value["scores"]
    cider = cider_d(candidates, references)
    assert cider == pytest.approx([item["cider"] for item in items], abs=1e-10)
    assert cider.mean() == pytest.approx(scores["cider"], abs=1e-10)
    counts = count_bleu(candidates, references)
    assert bleu(counts) == pytest.approx(scores["bleu"], abs=1e-12)
    assert bleu_of_images(counts) == pytest.approx(np.array([item["bleu"] for item in items]), abs=1e-12)
    rouge = rouge_l(candidates, references)
    assert rouge == pytest.approx([item["rouge"] for item in items], abs=1e-12)
    assert rouge.mean() == pytest.approx(scores["rouge"], abs=1e-12)


def test_splitting_at_spaces_would_give_another_score() -> None:
    items = golden("captions")["items"]
    naive = cider_d(
        [item["caption"].lower().split() for item in items],
        [[text.lower().split() for text in item["references"]] for item in items],
    )
    assert naive.mean() < 0.8 * golden("captions")["scores"]["cider"]


def test_cider_of_a_caption_with_itself() -> None:
    first, second = "a man rides a wave".split(), "two dogs play in the grass".split()
    assert cider_d([first, second], [[first], [second]]) == pytest.approx([10.0, 10.0])
    assert cider_d([first], [[first]]) == pytest.approx([0.0]), "of one image every n-gram is in every image"
    assert cider_d([["a", "cat"], second], [[["a", "cat"]], [second]])[0] == pytest.approx(5.0)
    assert cider_d([[], []], [[first], [second]]) == pytest.approx([0.0, 0.0])


def test_bad_captions_are_named() -> None:
    for metric in (cider_d, count_bleu, rouge_l):
        with pytest.raises(ValueError, match="references"):
            metric([["a"]], [])
        with pytest.raises(ValueError, match="reference"):
            metric([["a"], ["b"]], [[["a"]], []])


def test_a_very_long_reply_is_tokenised_quickly() -> None:
    assert len(tokenize("word " * 20_000)) == 20_000
    assert len(tokenize("x" * 100_000)) == 1
    assert len(tokenize("a." * 50_000)) >= 1
