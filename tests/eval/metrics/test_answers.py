"""Parsers and scores of single answers against the official scripts, and defects that ours must not have."""

from __future__ import annotations

import copy
from collections import Counter

import pytest

from eval.metrics.answers.choices import (
    circular_groups,
    parse_choice,
    parse_exact_choice,
    parse_science_choice,
    rotations,
)
from eval.metrics.answers.documents import anls, contains_gold, relaxed_match
from eval.metrics.answers.labels import balanced_accuracy, label_equals, macro_f1, only_label
from eval.metrics.answers.mathvista import extract_directly, normalise_extraction
from eval.metrics.answers.mmmu import mmmu_open_right, parse_mmmu_choice, parse_mmmu_open
from eval.metrics.answers.vqa import direct_answer_accuracy, official_accuracy, vqa_accuracies
from eval.metrics.answers.yes_no import binary_scores, mme_score, parse_mme, parse_pope, parse_yes_no
from tests.eval.metrics.golden import golden


@pytest.mark.parametrize("normaliser", ["official", "evalai"])
def test_vqa_accuracy_equals_the_official_script(normaliser: str) -> None:
    value = golden("vqa")
    golds = [list(Counter(dict(item["golds"])).elements()) for item in value["items"]]
    ours = vqa_accuracies([item["prediction"] for item in value["items"]], golds, normaliser)
    assert ours == pytest.approx([item[normaliser] for item in value["items"]], abs=1e-12)
    assert ours.mean() == pytest.approx(value["overall"][normaliser], abs=1e-12)


def test_vqa_accuracy_excludes_by_place_and_normalises_only_where_golds_differ() -> None:
    # Golds without ids are equal dictionaries: excluding by value would leave nothing to match.
    assert [official_accuracy("x", ["x"] * n + ["y"] * (10 - n)) for n in (2, 3, 10)] == pytest.approx([0.6, 0.9, 1.0])
    assert official_accuracy("Yes", ["yes"] * 10) == 0.0
    assert official_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1.0
    golds = [["The dog", "a dog", *["dog"] * 8]]
    before = copy.deepcopy(golds)
    assert vqa_accuracies(["dog."], golds)[0] == 1.0
    assert golds == before, "scoring must not change the data"


def test_vqa_accuracy_names_bad_input() -> None:
    with pytest.raises(ValueError, match="expected one of"):
        vqa_accuracies(["x"], [["x"]], "soft")
    with pytest.raises(ValueError, match="at least one gold"):
        vqa_accuracies(["x"], [[]])
    with pytest.raises(ValueError, match="golds for each of 2"):
        vqa_accuracies(["x", "y"], [["x"]])


def test_direct_answers_have_no_leave_one_out_and_no_normaliser() -> None:
    assert direct_answer_accuracy("red", ["red"] * 3 + ["blue"] * 7) == 1.0
    assert direct_answer_accuracy("red", ["red"] * 2 + ["blue"] * 8) == pytest.approx(2 / 3)
    assert direct_answer_accuracy("Red", ["red"] * 10) == 0.0


@pytest.mark.parametrize("variant", ["paper", "rrc"])
def test_anls_equals_both_scripts(variant: str) -> None:
    items = golden("anls")["items"]
    ours = [anls(item["prediction"], item["golds"], variant=variant) for item in items]  # type: ignore[arg-type]
    assert ours == pytest.approx([item[variant] for item in items], abs=1e-12)


def test_anls_variants_part_at_the_boundary_and_over_white_space() -> None:
    assert (anls("ab", ["ac"]), anls("ab", ["ac"], variant="rrc")) == (0.0, 0.5)
    spaced = ("new  york   cite", ["New York City"])
    assert anls(*spaced) == pytest.approx(1 - 1 / 13)
    assert anls(*spaced, variant="rrc") == pytest.approx(1 - 1 / 16)
    with pytest.raises(ValueError, match="at least one gold"):
        anls("x", [])


def test_relaxed_match_equals_pix2struct() -> None:
    items = golden("relaxed")["items"]
    assert [relaxed_match(item["prediction"], item["gold"]) for item in items] == [item["right"] for item in items]
    assert relaxed_match("2008", "2010") and not relaxed_match("2008", "2010", strict_years=True)
    assert relaxed_match("2010", "2010", strict_years=True) and relaxed_match("105", "100", strict_years=True)


def test_containment_equals_ocrbench() -> None:
    for item in golden("ocrbench")["items"]:
        golds = item["golds"] if isinstance(item["golds"], list) else [item["golds"]]
        assert contains_gold(item["reply"], golds, formula=item["dataset"] == "HME100k") == item["right"], item


def test_pope_equals_its_script() -> None:
    value = golden("pope")
    replies, golds = [item["reply"] for item in value["items"]], [item["gold"] for item in value["items"]]
    answers = [parse_pope(reply) for reply in replies]
    assert answers == [item["parsed"] for item in value["items"]]
    scores = binary_scores(answers, golds)
    wanted = value["scores"]
    assert [scores.accuracy, scores.precision, scores.recall, scores.f1, scores.yes_ratio] == pytest.approx(
        [wanted[name] for name in ("Accuracy", "Precision", "Recall", "F1 score", "Yes ratio")]
    )
    assert scores.unknown == 0


def test_the_yes_ratio_is_of_answers_and_sentences_count() -> None:
    answers = [parse_pope(reply) for reply in ("Yes, there is a dog.", "Yes", "yes.", "No, there is none.")]
    scores = binary_scores(answers, ["yes", "no", "no", "no"])
    assert scores.yes_ratio == 0.75, "of the labels it would be 0.25"
    assert scores.accuracy == 0.5
    strict = [parse_yes_no(reply) for reply in ("Yes, it is", "no.", "Maybe", "Not at all", "**Yes**", "None")]
    assert strict == ["yes", "no", None, None, "yes", None]
    assert binary_scores(strict, ["yes", "no", "yes", "no", "yes", "no"]).unknown == 0.5


def test_mme_equals_its_script() -> None:
    value = golden("mme")
    answers = [parse_mme(item["reply"]) for item in value["items"]]
    assert answers == [item["parsed"] for item in value["items"]]
    right = [answer == item["gold"] for answer, item in zip(answers, value["items"], strict=True)]
    score = mme_score(right, [item["image"] for item in value["items"]])
    assert (score.accuracy, score.accuracy_plus, score.score) == (value["acc"], value["acc_plus"], value["score"])


def test_half_an_mme_pair_is_no_pair() -> None:
    assert mme_score([True, True, True], ["a", "a", "b"]).score == pytest.approx(150)
    with pytest.raises(ValueError, match="two questions"):
        mme_score([True] * 3, ["a"] * 3)


def test_mmmu_equals_its_script_but_for_the_random_guess() -> None:
    value = golden("mmmu")
    for item in value["choices"]:
        assert parse_mmmu_choice(item["reply"], value["options"]) == item["parsed"], item
    assert any(item["parsed"] is None for item in value["choices"])
    for item in value["open"]:
        values = parse_mmmu_open(item["reply"])
        assert sorted(values, key=str) == item["values"], item
        assert mmmu_open_right(values, item["gold"]) == item["right"], item


def test_open_answers_are_not_taken_apart_into_characters() -> None:
    for gold in ("42", "paris", "3.14", "1,000", "blue whale"):
        assert mmmu_open_right(parse_mmmu_open(f"So the answer is {gold}."), gold)
    with pytest.raises(TypeError, match="list of values"):
        mmmu_open_right("42", "42")


def test_mathvista_equals_its_script() -> None:
    for item in golden("mathvista")["items"]:
        kind = (item["question_type"], item["answer_type"], item["choices"], item["precision"])
        assert normalise_extraction(item["extraction"], *kind) == item["normalised"], item
    assert normalise_extraction("", "multi_choice", "text", ["a", "b"], None) is None, "nothing is near every option"
    assert extract_directly("14", "free_form", "integer", []) == "14"
    assert extract_directly('So. The answer is "1.50".', "free_form", "float", []) == "1.50"
    assert extract_directly("about 14", "free_form", "integer", []) is None


def test_scienceqa_equals_llava() -> None:
    for item in golden("scienceqa")["items"]:
        assert parse_science_choice(item["reply"], item["num_options"]) == item["parsed"], item


def test_exact_choice_equals_vlmevalkit() -> None:
    value = golden("exact_choice")
    for item in value["items"]:
        assert parse_exact_choice(item["reply"], value["options"]) == item["parsed"], item


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), (" B. ", "B"), ("B: a whale", "B"), ("**B**", "B"),
        ("B. A is wrong", "B"), ("The answer is B", "B"), ("the correct option is (c).", "C"), ("Answer: D", "D"),
        ("I would choose (D) here", "D"), ("A blue whale swims by", "B"), ("blue whale", "B"), ("It is a cat.", "C"),
        ("D, I think", "D"), ("The answer is a dog", "D"), ("A dog", "D"), ("category theory", None),
        ("(A) or (B)", None), ("a red fox and a cat", None), ("", None), ("The picture shows nothing", None),
        ("E", None), ("A man walks along the street", None), ("rich in vitamin C of course", None),
        ("A sleeping red fox cub", "A"),
    ],
)  # fmt: skip
def test_choices_are_named_or_fail(reply: str, letter: str | None) -> None:
    options = ["red fox", "blue whale", "cat", "dog"]
    assert parse_choice(reply, options) == letter
    assert parse_choice(reply, options) == letter, "twice the same: nothing is drawn"


def test_an_option_within_another_is_not_named_by_it() -> None:
    assert parse_choice("a dark blue car", ["blue", "dark blue"]) == "B"
    assert parse_choice("no", ["no", "no idea"]) == "A"


def test_circular_groups_need_every_rotation() -> None:
    assert circular_groups([True, True, True, False, True], [1, 1, 2, 2, 3]) == {1: True, 2: False, 3: True}
    assert circular_groups([True, True], [1, 2], {1: 2, 2: 1}) == {1: False, 2: True}
    assert circular_groups([], [], {1: 2}) == {1: False}
    with pytest.raises(ValueError, match="expected 1 rotations, got 2"):
        circular_groups([True, True], [1, 1], {1: 1})
    shifted = rotations(["a", "b", "c"], 1)
    assert shifted[0] == (["a", "b", "c"], 1)
    assert all(options[gold] == "b" for options, gold in shifted) and len({tuple(o) for o, _ in shifted}) == 3


def test_labels_are_not_right_by_being_listed() -> None:
    labels = ["cs.AI", "cs.LG", "cs.CL", "math"]
    assert only_label("This paper is cs.LG.", labels) == "cs.LG"
    assert only_label("cs.AI, cs.LG, cs.CL", labels) is None
    assert only_label("aftermath", labels) is None
    assert only_label("diabetes mellitus type 1", ["diabetes mellitus", "diabetes mellitus type 1"]) == (
        "diabetes mellitus type 1"
    )
    assert label_equals(" CS.LG. ", "cs.LG") and not label_equals("cs.LG and cs.AI", "cs.LG")


def test_averages_over_classes_by_hand() -> None:
    golds = ["a", "a", "a", "b"]
    predicted = ["a", "a", None, "a"]
    # a: 2 hits of 3 predicted and 3 gold: 4/6; b: none
    assert macro_f1(predicted, golds) == pytest.approx((4 / 6 + 0) / 2)
    assert balanced_accuracy(predicted, golds) == pytest.approx((2 / 3 + 0) / 2)
