"""Scores of regions, trials, ranks, transcripts, translations and features against official code and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sacrebleu import corpus_bleu as sacre_bleu
from sklearn.metrics import average_precision_score

from eval.metrics.detection import coco_average_precision
from eval.metrics.generation import clip_score, clip_scores_of_features, frechet_distance, frechet_distance_of_features
from eval.metrics.ranking import average_precision
from eval.metrics.regions import box_accuracy, mask_overlaps
from eval.metrics.retrieval import (
    hits_at,
    link_hits_at,
    mean_reciprocal_rank,
    retrieval_recall,
    tie_averaged_ranks,
)
from eval.metrics.transcripts import normalised_word_error_rate, transcript_normaliser
from eval.metrics.translation import corpus_bleu, corpus_chrf, tokenizer_of
from eval.metrics.verification import equal_error_rate, error_rates, minimum_detection_cost
from tests.eval.metrics.golden import golden


def stripes(k: int, a: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(8), torch.arange(9), indexing="ij")
    return (a * y + 3 * x + k) % 7 < 3


def test_mask_overlaps_equal_lisa() -> None:
    value = golden("regions")
    predicted = [stripes(k, 2) for k in range(6)]
    golds = [stripes(k + 1, 2 if k % 2 else 5) for k in range(6)]
    ignored: list[torch.Tensor | None] = [None] * 6
    predicted[4] = golds[4] = torch.zeros(8, 9, dtype=torch.bool)
    top = torch.zeros(8, 9, dtype=torch.bool)
    top[:2] = True
    ignored[5] = top
    overlaps = mask_overlaps(predicted, golds, ignored)
    # LISA adds 1e-5 to every union, in float32.
    assert overlaps.ious == pytest.approx(value["ious"][0], abs=1e-5)
    assert overlaps.giou == pytest.approx(value["giou"], abs=1e-5)
    assert overlaps.ciou == pytest.approx(value["ciou"], abs=1e-9)
    assert overlaps.giou != pytest.approx(overlaps.ciou, abs=0.05), "the two are not one number"


def test_a_missing_mask_is_empty_and_two_empty_ones_agree() -> None:
    full, empty = torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)
    overlaps = mask_overlaps([None, None, full], [full, empty, full])
    assert overlaps.ious.tolist() == [0.0, 1.0, 1.0]
    assert (overlaps.giou, overlaps.ciou, overlaps.precision_at(0.5)) == (
        pytest.approx(2 / 3),
        0.5,
        pytest.approx(2 / 3),
    )


def test_boxes_are_read_in_one_convention() -> None:
    gold = [10.0, 20.0, 110.0, 220.0]
    thousandths = [20.0, 40.0, 220.0, 440.0]  # the same box of a 500 x 500 image, in thousandths
    assert box_accuracy([gold, thousandths, None], [gold] * 3) == [True, False, False]


def test_average_precision_of_boxes() -> None:
    truth = {
        "images": [{"id": 1, "width": 100, "height": 100}, {"id": 2, "width": 100, "height": 100}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40]},
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [20, 20, 50, 50]},
        ],
    }
    gold = [
        {"image_id": item["image_id"], "category_id": 3, "bbox": item["bbox"], "score": 0.9}
        for item in truth["annotations"]
    ]
    perfect = coco_average_precision(truth, gold)
    assert perfect["AP"] == perfect["AP50"] == pytest.approx(1.0)
    assert perfect["APs"] == -1.0
    half = coco_average_precision(truth, gold[:1])
    assert half["AP"] == pytest.approx(51 / 101), "recall points 0 to 0.5 of 101"
    shifted = [{**gold[0], "bbox": [18, 10, 40, 40]}, gold[1]]  # IoU 32 * 40 / (48 * 40) = 2/3
    scores = coco_average_precision(truth, shifted)
    assert scores["AP50"] == pytest.approx(1.0) and scores["AP75"] < 0.6
    assert coco_average_precision(truth, [])["AP"] == 0.0
    assert coco_average_precision(truth, gold[:1], images=[1])["AP"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="images of the annotations"):
        coco_average_precision(truth, [{**gold[0], "image_id": 7}])


def test_verification_equals_the_voxceleb_trainer() -> None:
    value = golden("verification")
    scores, targets = value["scores"][0], value["targets"][0]
    assert equal_error_rate(scores, targets) == pytest.approx(value["eer_interpolated"], abs=1e-9)
    assert equal_error_rate(scores, targets, interpolate=False) == pytest.approx(value["eer_threshold"], abs=1e-12)
    assert minimum_detection_cost(scores, targets) == pytest.approx(value["min_dcf"], abs=1e-12)
    assert equal_error_rate([0.9, 0.8, 0.1], [True, True, False]) == 0.0
    assert equal_error_rate([0.1, 0.2, 0.9], [True, True, False]) == 1.0
    assert equal_error_rate([0.5] * 4, [True, False, True, False]) == pytest.approx(0.5)
    acceptance, rejection, _ = error_rates([0.9, 0.1], [True, False])
    assert (acceptance[0], rejection[0], acceptance[-1], rejection[-1]) == (0, 1, 1, 0)
    with pytest.raises(ValueError, match="targets and impostors"):
        equal_error_rate([0.1, 0.2], [True, True])


def test_equal_scores_have_the_rank_of_chance() -> None:
    assert tie_averaged_ranks(np.zeros((1, 101)), [7]).tolist() == [51.0]
    scores = [[0.9, 0.8, 0.8, 0.1], [0.5, 0.5, 0.5, 0.9]]
    assert tie_averaged_ranks(scores, [1, 0]).tolist() == [2.5, 3.0]
    assert tie_averaged_ranks(scores, [1, 0], [[0, 1], [0, 3]]).tolist() == [1.5, 2.0], "other right ones do not count"
    ranks = tie_averaged_ranks(scores, [1, 0])
    assert mean_reciprocal_rank(ranks) == pytest.approx((1 / 2.5 + 1 / 3) / 2)
    assert (hits_at(ranks, 2), hits_at(ranks, 3)) == (0.0, 1.0)
    with pytest.raises(ValueError, match="NaN"):
        tie_averaged_ranks([[float("nan")]], [0])
    with pytest.raises(ValueError, match="0 to 3"):
        tie_averaged_ranks(scores, [4, 0])


def test_ranks_equal_ogbs_mean_of_optimist_and_pessimist() -> None:
    generator = np.random.default_rng(3)
    scores = np.round(generator.random((40, 25)), 1)
    positive, negative = scores[:, :1], scores[:, 1:]
    ogb = 0.5 * ((negative > positive).sum(1) + (negative >= positive).sum(1)) + 1
    assert tie_averaged_ranks(scores, [0] * 40).tolist() == ogb.tolist()
    kth = np.sort(negative[0])[-5]
    assert link_hits_at(positive[:, 0], negative[0], 5) == float((positive[:, 0] > kth).mean())


def test_retrieval_recall_equals_blip() -> None:
    wanted = golden("retrieval")["scores"]
    i, j = np.meshgrid(np.arange(12), np.arange(36), indexing="ij")
    similarity = ((17 * i + 31 * j + (i * j) % 7) % 97) / 97 + 0.4 * (j // 3 == i) + 0.0001 * j
    texts = retrieval_recall(similarity, {k: [3 * k, 3 * k + 1, 3 * k + 2] for k in range(12)})
    images = retrieval_recall(similarity.T, {k: [k // 3] for k in range(36)})
    for k in (1, 5, 10):
        assert texts[k] == pytest.approx(wanted[f"txt_r{k}"])
        assert images[k] == pytest.approx(wanted[f"img_r{k}"])
    with pytest.raises(ValueError, match="query 1"):
        retrieval_recall([[1.0], [0.0]], {0: [0]})


def test_average_precision_agrees_with_scikit_learn_with_ties() -> None:
    generator = np.random.default_rng(2)
    labels = generator.random(200) < 0.2
    scores = np.round(generator.random(200) + 0.3 * labels, 1)
    assert average_precision(list(scores), list(labels)) == pytest.approx(average_precision_score(labels, scores))


def test_whisper_normalisers_equal_openais(tmp_path: Path) -> None:
    value = golden("whisper_normaliser")
    table = tmp_path / "normalizer.json"
    table.write_text(json.dumps(value["spelling"]))
    name, english = transcript_normaliser("whisper-english", table)
    _, basic = transcript_normaliser("whisper-basic")
    assert name.startswith("whisper-english (spelling table ")
    for item in value["items"]:
        assert english(item["text"]) == item["english"], item
        assert basic(item["text"]) == item["basic"], item
    name, without = transcript_normaliser("whisper-english")
    assert "without spelling" in name and without("the colour") == "the colour"


def test_one_normaliser_is_applied_once() -> None:
    _, english = transcript_normaliser("whisper-english")
    _, basic = transcript_normaliser("whisper-basic")
    said, heard = "five percent of $20", "five percent of twenty"
    assert basic(english(said)) != english(said), "else the test says nothing"
    assert normalised_word_error_rate([heard], [said], english).value > 0, "both together would forgive it"
    _, plain = transcript_normaliser("lower-no-punctuation")
    assert plain("Don't -- STOP, (now)!") == "don't stop now"
    with pytest.raises(ValueError, match="expected one of"):
        transcript_normaliser("whisper")


def test_word_errors_are_summed_over_the_corpus() -> None:
    _, none = transcript_normaliser("none")
    predictions, references = ["a b c d e f", "x x x x"], ["a b c d e f g", "y y"]
    estimate = normalised_word_error_rate(predictions, references, none)
    assert estimate.value == pytest.approx(5 / 9)
    assert (1 / 7 + 4 / 2) / 2 > 1, "what a mean over utterances would say"
    assert normalised_word_error_rate(["ab c"], ["abd"], none, characters=True).value == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="transcript 1"):
        normalised_word_error_rate(["a", "b"], ["a", " "], none)


def test_bleu_is_sacrebleus_and_says_how() -> None:
    predictions = ["The cat sat on the mat.", "he went Home", "It is raining again today"]
    references = [["The cat sat on the mat."], ["He went home."], ["It is raining again."]]
    score = corpus_bleu(predictions, references)
    assert score.estimate.value == pytest.approx(sacre_bleu(predictions, [[own[0] for own in references]]).score)
    assert score.estimate.stderr is not None and score.estimate.stderr > 0
    for part in ("nrefs:1", "case:mixed", "tok:13a", "version:"):
        assert part in score.signature
    assert "nc:6|nw:0" in corpus_chrf(predictions, references).signature


def test_a_slip_of_case_or_punctuation_costs() -> None:
    reference = [["We are going home, aren't we?"]]
    assert corpus_bleu(["We are going home, aren't we?"], reference).estimate.value == pytest.approx(100)
    assert corpus_bleu(["we are going home aren't we"], reference).estimate.value < 70


def test_languages_without_spaces_have_their_tokenisers() -> None:
    assert [tokenizer_of(name) for name in ("zh-CN", "ja", "de", "en")] == ["zh", "ja-mecab", "13a", "13a"]
    chinese = (["今天天气很好"], [["今天天气真好"]])
    assert corpus_bleu(*chinese, tokenizer="zh").estimate.value > corpus_bleu(*chinese).estimate.value
    assert "tok:zh" in corpus_bleu(*chinese, tokenizer="zh").signature
    with pytest.raises(ValueError, match="equally many"):
        corpus_bleu(["a", "b"], [["a"], ["b", "c"]])


def features() -> tuple[torch.Tensor, torch.Tensor]:
    i, j = torch.meshgrid(torch.arange(20.0), torch.arange(6.0), indexing="ij")
    k, m = torch.meshgrid(torch.arange(24.0), torch.arange(6.0), indexing="ij")
    real = ((7 * i + 5 * j) % 11).double() / 11 - 0.4
    return real, ((5 * k + 3 * m + 2) % 13).double() / 13 - 0.5 + 0.1 * m.double()


def test_frechet_distance_equals_pytorch_fid() -> None:
    real, generated = features()
    assert frechet_distance_of_features(real, generated) == pytest.approx(golden("generation")["frechet"], rel=1e-6)
    assert frechet_distance_of_features(real, real) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance_of_features(real[:1], generated)


def test_frechet_distance_asks_its_extractor() -> None:
    class MeanColour(torch.nn.Module):
        num_features = 3

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    images = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    moved = frechet_distance([images[:3], images[3:]], [images + 1], MeanColour())
    assert moved == pytest.approx(3.0, abs=1e-6), "equal covariances, means one apart in three colours"


def test_clip_scores_equal_the_papers_code() -> None:
    real, generated = features()
    scores = clip_scores_of_features(real[:8], generated[:8])
    assert scores.tolist() == pytest.approx(golden("generation")["clip_scores"][0])
    assert scores.min() == 0, "a negative cosine counts as 0 each, not only in the mean"


def test_clip_score_asks_its_model() -> None:
    real, generated = features()

    class Model(torch.nn.Module):
        def get_image_features(self, places: torch.Tensor) -> torch.Tensor:
            return real[places]

        def get_text_features(self, places: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return generated[places]

        config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=77))

    def processor(text=None, images=None, **_: object) -> dict[str, torch.Tensor]:
        if images is not None:
            return {"pixel_values": torch.tensor([int(image.max()) for image in images])}
        places = torch.tensor([int(item) for item in text])
        return {"input_ids": places, "attention_mask": torch.ones(len(places), 1)}

    pictures = [torch.full((3, 2, 2), k, dtype=torch.uint8) for k in range(8)]
    value = clip_score(pictures, [str(k) for k in range(8)], Model(), processor)
    assert value == pytest.approx(100 * torch.cosine_similarity(real[:8], generated[:8]).mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match="caption of each"):
        clip_score(pictures, ["0"], Model(), processor)
