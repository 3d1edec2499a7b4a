"""VQAv2-style files (https://visualqa.org/vqa_v2_teaser): questions, and annotations with ten answers each."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.converters.conversion import (
    ConversionError,
    Converted,
    SkipItemError,
    Tally,
    draft,
    read_below,
    read_json,
    tidy,
)
from data.media import MediaError

QUESTION_FIELDS = {"image_id", "question", "question_id"}
ANNOTATION_FIELDS = {"question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers"}
SHORT = "Answer the question using a single word or phrase."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--annotations", type=Path, help="the answers; without them records have no reply")
    parser.add_argument("--media-root", type=Path, required=True, help="folder of the images")
    parser.add_argument(
        "--image-pattern",
        default="COCO_val2014_{image_id:012d}.jpg",
        help="file of an image; image_id is a number where it has a format such as :012d (%(default)s)",
    )


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per question; all answers stand in ``meta.answers``, the reply is the majority's."""
    questions = read_json(source, dict, "questions").get("questions")
    if not isinstance(questions, list):
        raise ConversionError(f"questions '{source}': expected a list 'questions', got none")
    annotations: dict[Any, Mapping[str, Any]] = {}
    if options.annotations is not None:
        listed = read_json(options.annotations, dict, "annotations").get("annotations", [])
        annotations = {item["question_id"]: item for item in listed}
    for number, question in enumerate(questions):
        tally.fields(question, QUESTION_FIELDS, "questions")
        try:
            own = annotations.pop(question["question_id"], None)
            if options.annotations is not None and own is None:
                raise SkipItemError("question without an annotation")
            yield _record(question, own, options, number, tally)
        except (SkipItemError, MediaError) as error:
            tally.skip(question.get("question_id", number), str(error))
    for question_id in annotations:
        tally.skip(question_id, "annotation without a question")


def majority_answer(annotation: Mapping[str, Any]) -> str:
    """``multiple_choice_answer``, or the most frequent answer; of equally frequent ones the first."""
    if annotation.get("multiple_choice_answer"):
        return str(annotation["multiple_choice_answer"])
    counts = Counter(str(item["answer"]) for item in annotation.get("answers", []))
    if not counts:
        raise SkipItemError("annotation without an answer")
    return counts.most_common(1)[0][0]


def _record(
    question: Mapping[str, Any],
    annotation: Mapping[str, Any] | None,
    options: argparse.Namespace,
    number: int,
    tally: Tally,
) -> Converted:
    made = draft(options, number, "vqa")
    try:
        file = options.image_pattern.format(image_id=question["image_id"])
    except (ValueError, KeyError, IndexError) as error:
        raise ConversionError(f"--image-pattern '{options.image_pattern}': does not fit image_id: {error}") from None
    made.add_image(read_below(options.media_root, file))
    made.user(made.medium("image"), f"{tidy(str(question['question']))}\n{SHORT}")
    made.meta["question_id"] = question["question_id"]
    if annotation is not None:
        tally.fields(annotation, ANNOTATION_FIELDS, "annotations")
        made.assistant(majority_answer(annotation))
        made.meta["answers"] = [str(item["answer"]) for item in annotation.get("answers", [])]
        made.meta |= {name: annotation[name] for name in ("question_type", "answer_type") if name in annotation}
    return made.finish()
