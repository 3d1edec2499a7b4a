from __future__ import annotations

import io
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data.media import decode_mask
from data.quickstart import images
from data.quickstart.phrasing import dressed
from data.quickstart.scenes import COLOURS, SCENE_SIZE, box_iou, scan_split
from data.quickstart.templates import PHRASINGS, VERBS

pytest.importorskip("sklearn")
SPLITS = ("train", "val", "test")


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def reply_of(record):
    return record.messages[-1].content


def test_no_scan_is_shared_and_every_scan_is_used():
    split = scan_split(0)
    sets = [{scan for part in split[name].values() for scan in part} for name in SPLITS]
    assert len(set.union(*sets)) == sum(len(part) for part in sets) == 1797
    assert [round(len(part) / 1797, 2) for part in sets] == [0.65, 0.1, 0.25]
    assert scan_split(1) != split


def test_scenes_keep_their_promises():
    for index in range(30):
        scene = images.random_scene("train", 0, np.random.default_rng(index))
        assert len({(item.digit, item.colour) for item in scene.digits}) == len(scene.digits)
        painted = scene.pixels().astype(float)
        for i, item in enumerate(scene.digits):
            rows, columns = np.nonzero(item.mask)
            assert item.box_xyxy == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert item.mask.sum() >= 0.7 * (item.alpha >= 0.5).sum()
            assert item.scan in scan_split(0)["train"][item.digit]
            solid = item.mask & (item.alpha > 0.99)
            for other in scene.digits[i + 1 :]:
                solid &= other.alpha == 0
                assert not (item.mask & other.mask).any()
                assert box_iou(item.box_xyxy, other.box_xyxy) <= 0.15
            if solid.any():
                colour = painted[solid].mean(0)
                nearest = min(COLOURS, key=lambda name: float(np.abs(np.array(COLOURS[name]) - colour).sum()))
                assert nearest == item.colour


def expected_answer(kind: str, text: str, objects: list[dict]) -> str:
    """What the question's words and the scene's objects say, worked out apart from the generator."""
    by_colour = {item["colour"]: item["digit"] for item in objects}
    named = [word for word in re.findall(r"[a-z]+", text) if word in COLOURS]
    if kind == "count":
        return str(len(objects))
    if kind == "colour":
        (digit,) = re.findall(r"\d", text)
        (colour,) = [item["colour"] for item in objects if item["digit"] == int(digit)]
        return str(colour)
    if kind == "digit_of_colour":
        return str(by_colour[named[0]])
    if kind == "leftmost":
        return str(min(objects, key=lambda item: item["box_xyxy"][0])["digit"])
    if kind == "largest":
        return str(max(objects, key=lambda item: item["box_xyxy"][3] - item["box_xyxy"][1])["digit"])
    first, second = (by_colour[name] for name in named)
    if kind == "sum":
        return str(first + second)
    if text.startswith(("is ", "tell me: is")):
        return "yes" if first > second else "no"
    return named[0] if first > second else named[1]


def test_image_questions_have_the_right_and_balanced_answers():
    counts: dict[str, Counter[str]] = {}
    for index in range(280):
        record, _ = images.image_qa("test", index, 0)
        kind, text = record.meta["question_type"], record.messages[0].content[-1].text
        assert record.meta["answer"] == expected_answer(kind, text, record.meta["objects"]) == reply_of(record)[0].text
        counts.setdefault(kind, Counter())[record.meta["answer"]] += 1
    assert set(counts) == set(images.QA_KINDS) and {sum(c.values()) for c in counts.values()} == {40}
    assert max(counts["count"].values()) == 10 and set(counts["digit_of_colour"].values()) == {4}
    assert len(counts["sum"]) == 19 and counts["comparison"]["yes"] == counts["comparison"]["no"] == 10


def test_calls_carry_their_targets():
    for index in range(12):
        record, _ = images.box("test", index, 0)
        (call,) = reply_of(record)
        item = record.meta["objects"][record.meta["object"]]
        assert list(record.targets[call.target].value) == item["box_xyxy"] == list(call.groundings[0]["box_xyxy"])
        assert call.prompt in record.messages[0].content[-1].text

        record, _ = images.mask("test", index, 0)
        (call,) = reply_of(record)
        assert record.targets[call.target].value == record.meta["objects"][record.meta["object"]]["mask"]

        record, members = images.edit("test", index, 0)
        (call,) = reply_of(record)
        before, after = decoded(members["image.png"]), decoded(members[record.targets[call.target].file])
        item = record.meta["objects"][record.meta["object"]]
        mask = decode_mask(item["mask"]).numpy()
        changed = np.abs(before - after).max(-1) > 0
        x1, y1, x2, y2 = (int(edge) for edge in item["box_xyxy"])
        outside = np.ones((SCENE_SIZE, SCENE_SIZE), bool)
        outside[max(y1 - 8, 0) : y2 + 8, max(x1 - 8, 0) : x2 + 8] = False
        assert changed[mask].mean() > 0.95 and not changed[outside].any()
        assert call.prompt.endswith(record.meta["new_colour"]) and record.meta["new_colour"] != item["colour"]


def test_a_training_dialogue_shows_its_image_once_and_varies():
    record, members = images.scenes("train", 3, 0)
    assert [m.role for m in record.messages] == ["user", "assistant"] * images.TURNS_PER_SCENE
    parts = [part for message in record.messages for part in message.content]
    assert sum(part.type == "image" for part in parts) == 1
    assert len(set(record.meta["question_types"])) == images.TURNS_PER_SCENE
    assert set(members) == set(record.files)
    assert record.to_json() == images.scenes("train", 3, 0)[0].to_json()
    assert record.to_json() != images.scenes("train", 3, 1)[0].to_json()


def test_phrasings_are_disjoint_and_the_test_uses_known_words():
    words: set[str] = set()
    for kind, item in PHRASINGS.items():
        lists = [item.train, item.val, item.test]
        assert len(item.train) >= 4 and len(item.val) >= 1 and len(item.test) >= 2, kind
        normal = [{re.sub(r"\W+", " ", text).strip() for text in part} for part in lists]
        assert sum(map(len, normal)) == sum(map(len, lists)) == len(set.union(*normal)), kind
        words |= {word for text in item.train for word in re.findall(r"[a-z]+", text)}
    words |= {word for texts in VERBS.values() for text in texts for word in re.findall(r"[a-z]+", text)}
    for kind, item in PHRASINGS.items():
        for text in (*item.val, *item.test):
            assert set(re.findall(r"[a-z]+", text)) <= words, (kind, text)


def test_dressed_phrasings_stay_in_training_and_no_word_stands_for_a_task() -> None:
    rng = np.random.default_rng(0)
    kept_apart = {text for item in PHRASINGS.values() for text in (*item.val, *item.test)}
    openings: dict[str, set[str]] = {}
    for kind, item in PHRASINGS.items():
        for template in item.train:
            made = {dressed(kind, template, rng) for _ in range(60)}
            assert template in made and not made & kept_apart
            openings.setdefault(kind, set()).update(text.split()[0] for text in made)
    for kind in ("ground", "seg", "draw", "edit", "count", "caption", "transcribe", "translate", "speakers", "match"):
        assert {"please", "now", "just"} <= openings[kind], kind
    assert all(dressed(kind, "do not {verb}.", rng) == "do not {verb}." for kind in ("negated", "refused", "two"))
