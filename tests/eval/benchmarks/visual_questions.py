"""Fixtures of questions about images, documents and charts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.eval.benchmarks.fixture import Fixture, copied, picture, repeat, repeat_entry, write, write_lines


def ten(answer: str, other: str = "", count: int = 10) -> list[dict[str, Any]]:
    """Ten golds, ``count`` of which are the answer."""
    return [
        {"answer": answer if i < count else other, "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)
    ]


def coco_images(folder: Path, numbers: range) -> None:
    for number in numbers:
        write(folder / f"COCO_val2014_{number:012d}.jpg", picture(number))


def vqa(questions: str, annotations: str) -> Any:
    def make(folder: Path) -> None:
        coco_images(folder / "val2014", range(1, 3))
        golds = [ten("yes"), ten("yes", "no", 9), ten("2", "two", 6), ten("red", "blue", 3)]
        rows = [{"image_id": 1 + i // 2, "question": f"Question {i}?", "question_id": 10 * i} for i in range(4)]
        write(folder / questions, {"questions": rows, "task_type": "Open-Ended"})
        kinds = ["yes/no", "yes/no", "number", "other"]
        answers = [
            {
                "question_id": 10 * i,
                "image_id": 1 + i // 2,
                "question_type": "what",
                "answer_type": kinds[i],
                "multiple_choice_answer": golds[i][0]["answer"],
                "answers": golds[i],
            }
            for i in range(4)
        ]
        write(folder / annotations, {"annotations": answers})

    return make


VQAV2 = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
OKVQA = ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")


def gqa(folder: Path) -> None:
    rows = {}
    for i, answer in enumerate(["yes", "no", "yes", "table"]):
        write(folder / "images" / f"n{i}.jpg", picture(i))
        rows[f"q{i}"] = {
            "question": f"Is it {i}?",
            "imageId": f"n{i}",
            "answer": answer,
            "fullAnswer": f"It is {answer}.",
            "types": {"structural": "verify" if i < 3 else "query", "semantic": "attr", "detailed": "x"},
            "isBalanced": True,
        }
    write(folder / "testdev_balanced_questions.json", rows)


def textvqa(folder: Path) -> None:
    rows, tokens = [], []
    for i, answer in enumerate(["stop", "main st", "stop", "7"]):
        write(folder / "train_images" / f"im{i}.jpg", picture(i))
        rows.append(
            {"question_id": 34602 + i, "image_id": f"im{i}", "question": "what does it say?", "answers": [answer] * 10}
        )
        tokens.append({"image_id": f"im{i}", "ocr_tokens": answer.split(), "ocr_info": []})
    write(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": rows})
    write(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [*tokens, {"image_id": "unasked", "ocr_tokens": []}]})


def vizwiz(folder: Path) -> None:
    rows = []
    for i, answer in enumerate(["unanswerable", "unanswerable", "soup", "blue"]):
        write(folder / "val" / f"VizWiz_val_{i:08d}.jpg", picture(i))
        golds = [{"answer": answer, "answer_confidence": "maybe"}] * 10
        rows.append(
            {
                "image": f"VizWiz_val_{i:08d}.jpg",
                "question": "What is this?",
                "answers": golds,
                "answer_type": "unanswerable" if i < 2 else "other",
                "answerable": int(i >= 2),
            }
        )
    write(folder / "val.json", rows)


def aokvqa(folder: Path) -> None:
    rows = []
    for i in range(5):
        write(folder / "val2017" / f"{i:012d}.jpg", picture(i))
        golds = ["red"] * 4 + ["blue"] * 6 if i < 3 else ["green"] * 10
        rows.append(
            {
                "split": "val",
                "image_id": i,
                "question_id": f"id{i}",
                "question": "What colour?",
                "choices": ["red", "blue", "green", "grey"],
                "correct_choice_idx": 1 if i < 3 else 2,
                "direct_answers": golds,
                "difficult_direct_answer": i == 4,
                "rationales": ["because"],
            }
        )
    write(folder / "aokvqa_v1p0_val.json", rows)


def pope(folder: Path) -> None:
    for place, name in enumerate(("random", "popular", "adversarial")):
        rows = []
        for i in range(2 + place % 2):
            image = f"COCO_val2014_{i:012d}.jpg"
            write(folder / "val2014" / image, picture(i))
            label = "no" if i % 2 else "yes"
            rows.append({"question_id": i + 1, "image": image, "text": "Is there a dog in the image?", "label": label})
        write_lines(folder / f"coco_pope_{name}.json", rows)


def mme(folder: Path) -> None:
    from eval.metrics.answers.yes_no import MME_COGNITION, MME_PERCEPTION

    for subtask in (*MME_PERCEPTION, *MME_COGNITION):
        inner = subtask in ("artwork", "celebrity", "landmark", "posters", "scene")
        texts = folder / subtask / "questions_answers_YN" if inner else folder / subtask
        images = folder / subtask / "images" if inner else folder / subtask
        write(images / "0001.png", picture(1))
        lines = ["Is it so? Please answer yes or no.\tYes", "Is it not? Please answer yes or no.\tNo"]
        write(texts / "0001.txt", "\n".join(lines) + "\n")


def docvqa(folder: Path) -> None:
    rows = []
    for i, golds in enumerate([["12 March"], ["12 March", "March 12"], ["ITC Limited"], ["42"]]):
        write(folder / "documents" / f"d{i}.png", picture(i))
        rows.append(
            {
                "questionId": 300 + i,
                "question": "When?",
                "image": f"documents/d{i}.png",
                "docId": i,
                "answers": golds,
                "data_split": "val",
            }
        )
    write(folder / "val_v1.0_withQT.json", {"dataset_name": "docvqa", "data": rows})


def infovqa(folder: Path) -> None:
    rows = []
    for i, gold in enumerate(["3%", "3%", "london", "1,200"]):
        write(folder / "infographicsvqa_images" / f"{i}.jpeg", picture(i))
        rows.append(
            {
                "questionId": i,
                "question": "How much?",
                "image_local_name": f"{i}.jpeg",
                "image_url": "",
                "answers": [gold],
                "answer_type": ["single span"],
            }
        )
    write(folder / "infographicsVQA_val_v1.0_withQT.json", {"data": rows})


def chartqa(folder: Path) -> None:
    for origin, labels in (("human", ["2008", "2010", "Blue"]), ("augmented", ["41", "42"])):
        rows = []
        for i, label in enumerate(labels):
            write(folder / "test" / "png" / f"{origin}{i}.png", picture(i))
            rows.append({"imgname": f"{origin}{i}.png", "query": "Which?", "label": label})
        write(folder / "test" / f"test_{origin}.json", rows)


def ocrbench(folder: Path) -> None:
    rows = []
    kinds = [("IIIT5K", "Regular Text Recognition", ["CENTRE"]), ("IIIT5K", "Regular Text Recognition", ["centre"])]
    kinds += [("HME100k", "Handwritten Mathematical Expression Recognition", ["a ^ { 2 }"])]
    kinds += [("docVQA", "Doc-oriented VQA", ["12", "twelve"])]
    for i, (name, kind, answers) in enumerate(kinds):
        write(folder / "OCRBench_Images" / name / f"{i}.png", picture(i))
        rows.append(
            {
                "dataset_name": name,
                "image_path": f"{name}/{i}.png",
                "question": "what is written in the image?",
                "answers": answers,
                "type": kind,
            }
        )
    write(folder / "OCRBench.json", rows)


OTHER_VQA = {
    VQAV2[0]: "v2_OpenEnded_mscoco_train2014_questions.json",
    VQAV2[1]: "v2_mscoco_train2014_annotations.json",
}
OTHER_OKVQA = {
    OKVQA[0]: "OpenEnded_mscoco_train2014_questions.json",
    OKVQA[1]: "mscoco_train2014_annotations.json",
}
OTHER_TEXTVQA = {"TextVQA_0.5.1_val.json": "TextVQA_0.5.1_train.json"}
OTHER_AOKVQA = {"aokvqa_v1p0_val.json": "aokvqa_v1p0_train.json"}

NUMBERED = "its rows are numbered"
TESTDEV = "v2_OpenEnded_mscoco_test-dev2015_questions.json"


def vqa_testdev(folder: Path) -> None:
    copied(vqa(*VQAV2), VQAV2[0], TESTDEV)(folder)
    asked = json.loads((folder / TESTDEV).read_text())["questions"]
    everything = [{"image_id": 1, "question": "Unasked?", "question_id": 7}, *asked]
    write(folder / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": everything})
    (folder / "val2014").rename(folder / "test2015")
    for path in (folder / "test2015").iterdir():
        path.rename(path.with_name(path.name.replace("val2014", "test2015")))


def textvqa_test(folder: Path) -> None:
    copied(textvqa, "TextVQA_0.5.1_val.json", "TextVQA_0.5.1_test.json", ["answers"])(folder)
    (folder / "train_images").rename(folder / "test_images")


def vizwiz_test(folder: Path) -> None:
    copied(vizwiz, "val.json", "test.json", ["answers", "answer_type", "answerable"])(folder)
    (folder / "val").rename(folder / "test")


def aokvqa_test(folder: Path) -> None:
    hidden = ["correct_choice_idx", "direct_answers", "difficult_direct_answer", "rationales"]
    copied(aokvqa, "aokvqa_v1p0_val.json", "aokvqa_v1p0_test.json", hidden)(folder)
    (folder / "val2017").rename(folder / "test2017")


def chartqa_with_val(folder: Path) -> None:
    chartqa(folder)
    for origin in ("human", "augmented"):
        rows = [{"imgname": "x.png", "query": "Which?", "label": label} for label in ("2008", "2008", "41")]
        write(folder / "val" / f"val_{origin}.json", rows)


FIXTURES = {
    # "yes" is right twice, and 9 of 10 once: 1 of 1; "2" and "two" are one answer.
    "vqav2": Fixture(
        vqa(*VQAV2),
        4,
        {"accuracy": 0.5, "accuracy_evalai": 0.5},
        {"accuracy": 1.0},
        repeat(VQAV2[0], "questions"),
        OTHER_VQA,
    ),
    "vqav2_testdev": Fixture(vqa_testdev, 4, {}, again=repeat(TESTDEV, "questions")),
    "okvqa": Fixture(vqa(*OKVQA), 4, {"accuracy": 0.5}, again=repeat(OKVQA[0], "questions"), other=OTHER_OKVQA),
    "okvqa_may_refuse": Fixture(
        vqa(*OKVQA), 4, {"accuracy": 0.5}, again=repeat(OKVQA[0], "questions"), other=OTHER_OKVQA
    ),
    "gqa": Fixture(
        gqa,
        4,
        {"accuracy": 0.5},
        again=repeat_entry("testdev_balanced_questions.json"),
        other={"testdev_balanced_questions.json": "val_balanced_questions.json"},
    ),
    "textvqa": Fixture(
        textvqa, 4, {"accuracy": 0.5}, again=repeat("TextVQA_0.5.1_val.json", "data"), other=OTHER_TEXTVQA
    ),
    "textvqa_ocr": Fixture(
        textvqa, 4, {"accuracy": 0.5}, again=repeat("TextVQA_0.5.1_val.json", "data"), other=OTHER_TEXTVQA
    ),
    "textvqa_test": Fixture(textvqa_test, 4, {}, again=repeat("TextVQA_0.5.1_test.json", "data")),
    "vizwiz": Fixture(vizwiz, 4, {"accuracy": 0.5}, again=repeat("val.json"), other={"val.json": "train.json"}),
    "vizwiz_test": Fixture(vizwiz_test, 4, {}, again=repeat("test.json")),
    # Over all ten golds: "blue" is 6 of 10 three times; the difficult one is not asked.
    "aokvqa_direct": Fixture(aokvqa, 4, {"accuracy": 0.75}, again=repeat("aokvqa_v1p0_val.json"), other=OTHER_AOKVQA),
    "aokvqa_choice": Fixture(aokvqa, 5, {"accuracy": 0.6}, again=repeat("aokvqa_v1p0_val.json"), other=OTHER_AOKVQA),
    "aokvqa_direct_test": Fixture(aokvqa_test, 5, {}, again=repeat("aokvqa_v1p0_test.json")),
    "aokvqa_choice_test": Fixture(aokvqa_test, 5, {}, again=repeat("aokvqa_v1p0_test.json")),
    # Always yes: random and adversarial 2/3, popular (yes, no, yes) 4/5.
    "pope": Fixture(
        pope,
        7,
        {"f1": (2 / 3 + 4 / 5 + 2 / 3) / 3, "accuracy": 4 / 7, "recall": 1.0, "yes_ratio": 1.0, "unknown": 0.0},
        {"yes_ratio": 4 / 7},
        repeat("coco_pope_random.json"),
    ),
    # Half of the questions, no pair.
    "mme": Fixture(
        mme,
        28,
        {"perception": 500.0, "cognition": 200.0},
        {"perception": 2000.0, "cognition": 800.0},
        no_ids="its questions are lines of files",
    ),
    "docvqa": Fixture(
        docvqa,
        4,
        {"anls": 0.5, "anls_paper": 0.5},
        again=repeat("val_v1.0_withQT.json", "data"),
        other={"val_v1.0_withQT.json": "train_v1.0_withQT.json"},
    ),
    "docvqa_test": Fixture(
        copied(docvqa, "val_v1.0_withQT.json", "test_v1.0.json", ["answers"]),
        4,
        {},
        again=repeat("test_v1.0.json", "data"),
    ),
    "infovqa": Fixture(
        infovqa,
        4,
        {"anls": 0.5},
        again=repeat("infographicsVQA_val_v1.0_withQT.json", "data"),
        other={"infographicsVQA_val_v1.0_withQT.json": "infographicsVQA_train_v1.0.json"},
    ),
    "infovqa_test": Fixture(
        copied(
            infovqa,
            "infographicsVQA_val_v1.0_withQT.json",
            "infographicsVQA_test_v1.0.json",
            ["answers", "answer_type"],
        ),
        4,
        {},
        again=repeat("infographicsVQA_test_v1.0.json", "data"),
    ),
    # "2008" is near enough to 2010, but not the year; "41" and "42" are within 5 %.
    "chartqa": Fixture(chartqa_with_val, 5, {"relaxed_accuracy": 0.4, "strict_years": 0.2}, no_ids=NUMBERED),
    "ocrbench": Fixture(ocrbench, 4, {}, no_ids=NUMBERED),
}
