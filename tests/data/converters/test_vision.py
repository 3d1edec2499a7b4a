"""Images with words, boxes, masks and edits, from files as their data sets publish them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from data.converters.reasonseg import IGNORED, TARGET, paint
from data.media import decode_mask
from tests.data.converters.conftest import Convert, audio_bytes, image_bytes, report, write

SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 6.0, 2.0, 6.0]]


def texts(sample) -> list[str]:
    return [part.text for message in sample.record.messages for part in message.content if part.type == "text"]


def kinds(sample) -> list[list[str]]:
    return [[part.type for part in message.content] for message in sample.record.messages]


def test_llava(tmp_path: Path, convert: Convert) -> None:
    write(tmp_path / "coco" / "a.jpg", image_bytes(kind="JPEG"))
    write(tmp_path / "b.png", image_bytes(seed=1))
    write(tmp_path / "hello.wav", audio_bytes(kind="WAV"))
    for frame in range(5):
        write(tmp_path / "clip" / f"{frame:03d}.png", image_bytes(seed=frame))
    ask = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Noise."}]
    two = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "Both."}]
    heard = [{"from": "human", "value": "What does <audio> say?"}, {"from": "gpt", "value": "Hello."}]
    seen = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "<video>\nWhat?"}]
    items = [
        {"id": "1", "image": "coco/a.jpg", "conversations": ask, "model": "x"},
        {"id": "2", "image": ["coco/a.jpg", "b.png"], "conversations": two},
        {"id": "3", "audio": "hello.wav", "conversations": heard},
        {"id": "4", "video": "clip", "conversations": [*seen, {"from": "gpt", "value": "Flicker."}]},
        {"id": "5", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"id": "6", "image": "missing.jpg", "conversations": ask},
        {"id": "7", "image": "../outside.png", "conversations": ask},
        {"id": "8", "image": "b.png", "conversations": two},
        {"id": "9", "image": ["b.png", "b.png"], "conversations": ask},
        {"id": "10", "image": "b.png", "conversations": ask[:1]},
        {"id": "11", "image": "hello.wav", "conversations": ask},
    ]
    samples = convert("llava", write(tmp_path / "llava.json", items), "--max-frames", "3", status=1)
    assert [sample.record.meta["id"] for sample in samples] == ["1", "2", "3", "4", "5"]
    assert samples[0].members["image0.jpg"] == image_bytes(kind="JPEG")
    assert texts(samples[0]) == ["What is it?", "Noise."] and kinds(samples[0]) == [["image", "text"], ["text"]]
    assert kinds(samples[1])[0] == ["image", "text", "image", "text"]
    assert kinds(samples[2])[0] == ["text", "audio", "text"]
    assert samples[2].record.media["audio0"].size == (800,)
    assert kinds(samples[3]) == [["text"], ["image", "image", "image", "text"], ["text"]]
    assert samples[3].members["frame1.png"] == image_bytes(seed=1)
    assert samples[3].record.meta["frames"] == {"shown": 3, "of": 5}
    told = report(tmp_path / "out")
    assert told["converted"] == 5 and told["unknown_fields"] == {"model": 1}
    assert sum(item["items"] for item in told["skipped"].values()) == 6
    reasons = {example: reason for reason, item in told["skipped"].items() for example in item["examples"]}
    assert "cannot be read" in reasons["6"] and "outside" in reasons["7"]
    assert "more <image> than files" in reasons["8"] and "more image files" in reasons["9"]
    assert reasons["10"] == "no reply" and "expected an image" in reasons["11"]


@pytest.fixture
def coco(tmp_path: Path) -> dict:
    write(tmp_path / "images" / "a.png", image_bytes())
    write(tmp_path / "images" / "b.jpg", image_bytes(kind="JPEG"))
    write(tmp_path / "images" / "c.png", image_bytes(9, 9))
    full = np.zeros((8, 12), dtype=np.uint8, order="F")
    full[1:4, 2:5] = 1
    encoded = coco_mask.encode(full)
    runs = {"size": [8, 12], "counts": [17, 3, 5, 3, 5, 3, 60]}  # columns 2 to 4, rows 1 to 3
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 12, "height": 8},
            {"id": 2, "file_name": "b.jpg", "width": 12, "height": 8},
            {"id": 3, "file_name": "c.png", "width": 12, "height": 8},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 2, 6, 4], "iscrowd": 0, "segmentation": SQUARE},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [-1, 1, 4, 3], "iscrowd": 0, "segmentation": runs},
            {"id": 3, "image_id": 1, "category_id": 7, "bbox": [0, 0, 3, 3], "iscrowd": 1, "segmentation": runs},
            {"id": 4, "image_id": 2, "category_id": 1, "bbox": [20, 2, 6, 4], "segmentation": SQUARE},
            {
                "id": 5,
                "image_id": 2,
                "category_id": 1,
                "bbox": [2, 1, 3, 3],
                "segmentation": {"size": [8, 12], "counts": encoded["counts"].decode()},
            },
            {"id": 6, "image_id": 9, "category_id": 1, "bbox": [2, 1, 3, 3], "score": 1.0},
        ],
    }


def test_coco_detection(tmp_path: Path, convert: Convert, coco: dict) -> None:
    source = write(tmp_path / "instances.json", coco)
    arguments = ("--kind", "detection", "--media-root", str(tmp_path / "images"))
    samples = convert("coco", source, *arguments, status=1)
    assert [texts(sample) for sample in samples] == [["Locate every dog.", "Locate every cat."], ["Locate every cat."]]
    (call,) = samples[0].record.messages[3].content
    assert (call.task, call.prompt) == ("ground", "cat")
    assert samples[0].record.targets[call.target].value == [0, 1, 3, 4]  # cut at the image's edge
    skipped = report(tmp_path / "out")["skipped"]
    assert skipped["crowd region"]["items"] == 1 and skipped["box without area in its image"]["examples"] == ["4"]
    assert skipped["annotation of an image that is not listed"]["examples"] == ["6"]
    assert any("another size than declared" in reason for reason in skipped)
    assert report(tmp_path / "out")["unknown_fields"] == {"annotations.score": 1}


def test_coco_instances_take_polygons_and_both_run_length_codes(tmp_path: Path, convert: Convert, coco: dict) -> None:
    source = write(tmp_path / "instances.json", coco)
    arguments = ("--kind", "instances", "--media-root", str(tmp_path / "images"))
    first, second = convert("coco", source, *arguments, status=1)
    masks = [decode_mask(target.value) for target in first.record.targets.values()]
    expected = torch.from_numpy(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(SQUARE, 8, 12)))).bool()
    assert torch.equal(masks[0], expected)
    block = torch.zeros(8, 12, dtype=torch.bool)
    block[1:4, 2:5] = True
    assert torch.equal(masks[1], block)
    assert [torch.equal(decode_mask(t.value), block) for t in second.record.targets.values()] == [False, True]


@pytest.mark.parametrize("kind", ["detection", "instances"])
def test_coco_as_one_list_per_image(tmp_path: Path, convert: Convert, coco: dict, kind: str) -> None:
    source = write(tmp_path / "instances.json", coco)
    arguments = ("--kind", kind, "--media-root", str(tmp_path / "images"), "--list-task", "detect")
    samples = convert("coco", source, *arguments, status=1)
    single = convert("coco", source, *arguments[:4], status=1, out=tmp_path / "single")
    for sample, apart in zip(samples, single, strict=True):
        (call,) = sample.record.messages[1].content
        ((name, target),) = sample.record.targets.items()
        calls = [part for turn in apart.record.messages for part in turn.content if part.type == "call"]
        field = "box_xyxy" if kind == "detection" else "mask"
        assert (call.task, call.target, target.type) == ("detect", name, "boxes" if kind == "detection" else "masks")
        assert call.prompt == "; ".join(dict.fromkeys(part.prompt for part in calls))
        assert [(item["label"], item[field]) for item in target.value] == [
            (part.prompt, apart.record.targets[part.target].value) for part in calls
        ]


def test_coco_captions(tmp_path: Path, convert: Convert, coco: dict) -> None:
    coco["annotations"] = [{"id": i, "image_id": 1, "caption": f" Number {i}.\n"} for i in range(5)]
    arguments = ("--kind", "captions", "--media-root", str(tmp_path / "images"))
    (sample,) = convert("coco", write(tmp_path / "captions.json", coco), *arguments, status=1)
    assert texts(sample) == ["Describe the image.", "Number 0."]
    assert sample.record.meta["captions"] == [f"Number {i}." for i in range(5)]


def test_coco_panoptic(tmp_path: Path, convert: Convert, coco: dict) -> None:
    ids = np.zeros((8, 12), dtype=np.int64)
    ids[:, 6:] = 70_000
    ids[2:4, :6] = 300
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    (tmp_path / "panoptic").mkdir()
    Image.fromarray(colours).save(tmp_path / "panoptic" / "a.png")
    segments = [{"id": 70_000, "category_id": 1}, {"id": 300, "category_id": 7}]
    coco["annotations"] = [{"image_id": 1, "file_name": "a.png", "segments_info": segments}]
    arguments = ("--kind", "panoptic", "--media-root", str(tmp_path / "images"))
    (sample,) = convert("coco", write(tmp_path / "panoptic.json", coco), *arguments, status=1)
    calls = sample.record.messages[1].content
    assert [call.prompt for call in calls] == ["cat", "dog"]
    for call, segment in zip(calls, segments, strict=True):
        mask = decode_mask(sample.record.targets[call.target].value)
        assert torch.equal(mask, torch.from_numpy(ids == segment["id"]))


def test_refcoco(tmp_path: Path, convert: Convert, coco: dict) -> None:
    sentences = [{"raw": "The  Dog", "sent": "the dog", "sent_id": 4, "tokens": ["the", "dog"]}]
    refs = [
        {"ref_id": 1, "ann_id": 1, "image_id": 1, "category_id": 7, "split": "testB", "sentences": sentences * 2},
        {"ref_id": 2, "ann_id": 99, "image_id": 1, "category_id": 7, "split": "train", "sentences": sentences},
    ]
    write(tmp_path / "refcoco" / "refs(unc).p", pickle.dumps(refs, protocol=2))
    write(tmp_path / "refcoco" / "instances.json", coco)
    arguments = ("--media-root", str(tmp_path / "images"))
    samples = convert("refcoco", tmp_path / "refcoco", *arguments, status=1)
    assert [sample.record.split for sample in samples] == ["test", "test"]
    assert samples[0].record.meta["split"] == "testB" and texts(samples[0]) == ["Where is the dog?"]
    assert samples[0].record.targets["t0"].value == [2, 2, 8, 6]
    masks = convert("refcoco", tmp_path / "refcoco", *arguments, "--task", "seg", status=1, out=tmp_path / "seg")
    assert decode_mask(masks[0].record.targets["t0"].value).any()


def test_a_refs_pickle_runs_nothing(tmp_path: Path, convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    write(tmp_path / "refs(unc).p", pickle.dumps([Attack()]))
    write(tmp_path / "instances.json", {"images": [], "annotations": []})
    assert convert("refcoco", tmp_path, "--media-root", str(tmp_path), status=2) == []
    assert "expected a pickle of plain data" in capsys.readouterr().err and not (tmp_path / "owned").exists()


def test_reasonseg(tmp_path: Path, convert: Convert) -> None:
    shapes = [
        {"label": "target", "points": [[1, 1], [3, 1], [3, 3], [1, 3]]},
        {"label": "ignore", "points": [[0, 0], [8, 0], [8, 6], [0, 6]]},
        {"label": "flag", "points": [[0, 0], [1, 0], [1, 1]]},
    ]
    write(tmp_path / "set" / "a.jpg", image_bytes(kind="JPEG"))
    write(tmp_path / "set" / "a.json", {"text": ["the thing", "it"], "is_sentence": False, "shapes": shapes})
    write(tmp_path / "set" / "b.png", image_bytes())
    samples = convert("reasonseg", tmp_path / "set", status=1)
    assert [texts(sample) for sample in samples] == [["Segment the thing."], ["Segment it."]]
    mask, ignored = decode_mask(samples[0].record.targets["t0"].value), decode_mask(samples[0].record.meta["ignored"])
    assert mask.sum() == 9 and ignored.sum() == 9 * 7 - 9 and not (mask & ignored).any()  # the small one lies on top
    canvas = paint(shapes[::-1], (12, 8))
    assert (canvas == TARGET).sum() == 9 and (canvas == IGNORED).sum() == 54


def test_visual_genome(tmp_path: Path, convert: Convert) -> None:
    def region(number: int, x: int = 1, phrase: str = "a thing.") -> dict:
        return {"region_id": number, "image_id": 5, "x": x, "y": 1, "width": 4, "height": 3, "phrase": phrase}

    write(tmp_path / "VG_100K_2" / "5.jpg", image_bytes(kind="JPEG"))
    regions = [region(1), region(2, 30), region(3, 2, " "), region(4, 2, "another  thing")]
    listed = [{"id": 5, "regions": regions}, {"id": 6, "regions": [region(9) | {"image_id": 6}]}]
    source = write(tmp_path / "region_descriptions.json", listed)
    samples = convert("visual-genome", source, "--media-root", str(tmp_path), "--regions", "3", status=1)
    assert [texts(sample) for sample in samples] == [["Where is a thing?"], ["Where is another thing?"]]
    assert samples[1].record.targets["t0"].value == [2, 1, 6, 4]
    assert sum(item["items"] for item in report(tmp_path / "out")["skipped"].values()) == 3


def test_vqa(tmp_path: Path, convert: Convert) -> None:
    write(tmp_path / "val" / "COCO_val2014_000000000042.jpg", image_bytes(kind="JPEG"))
    question = {"image_id": 42, "question": "What colour is it?", "question_id": 420}
    questions = write(tmp_path / "questions.json", {"questions": [question, question | {"question_id": 421}]})
    answers = [{"answer": "red" if i < 4 else "blue", "answer_confidence": "yes", "answer_id": i} for i in range(10)]
    own = {"question_id": 420, "image_id": 42, "question_type": "what", "answer_type": "other", "answers": answers}
    listed = write(tmp_path / "annotations.json", {"annotations": [own, own | {"question_id": 1}]})
    arguments = ("--media-root", str(tmp_path / "val"))
    (sample,) = convert("vqa", questions, *arguments, "--annotations", str(listed), status=1)
    assert texts(sample)[1] == "blue" and sample.record.meta["answers"] == ["red"] * 4 + ["blue"] * 6
    assert set(report(tmp_path / "out")["skipped"]) == {
        "question without an annotation",
        "annotation without a question",
    }
    unanswered = convert("vqa", questions, *arguments, out=tmp_path / "test")
    assert [len(item.record.messages) for item in unanswered] == [1, 1]


def test_edit_pairs(tmp_path: Path, convert: Convert) -> None:
    folder = tmp_path / "shard-00" / "0000001"
    write(
        folder / "prompt.json", {"edit": "make it blue", "input": "a cat", "output": "a blue cat", "url": "x", "y": 1}
    )
    for seed in (11, 12):
        write(folder / f"{seed}_0.jpg", image_bytes(seed=seed, kind="JPEG"))
        write(folder / f"{seed}_1.jpg", image_bytes(seed=seed + 100, kind="JPEG"))
    write(folder / "13_0.jpg", image_bytes(kind="JPEG"))
    samples = convert("edit-pairs", tmp_path / "shard-00", status=1)
    assert [sample.record.meta["id"] for sample in samples] == ["0000001/11", "0000001/12"]
    (call,) = samples[0].record.messages[1].content
    assert (call.task, call.prompt, texts(samples[0])) == ("edit", "make it blue", ["make it blue"])
    assert samples[0].members[samples[0].record.targets[call.target].file] == image_bytes(seed=111, kind="JPEG")


def test_boxes_follow_the_orientation_of_the_camera(tmp_path: Path, convert: Convert) -> None:
    """Annotations refer to the turned image: sizes are declared after EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    write(tmp_path / "images" / "a.jpg", image_bytes(8, 12, kind="JPEG", exif=exif))
    value = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 12, "height": 8}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [9, 2, 3, 4]}],
    }
    arguments = ("--kind", "detection", "--media-root", str(tmp_path / "images"))
    (sample,) = convert("coco", write(tmp_path / "a.json", value), *arguments)
    assert sample.record.media["image"].size == (12, 8)
    assert sample.record.targets["t0"].value == [9, 2, 12, 6]
