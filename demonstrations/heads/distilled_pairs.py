"""Paper 67: a model that reads both sentences teaches one that reads each alone, which then scores pairs far faster.

As in https://arxiv.org/abs/1908.05161 the teacher's logits of every pair are kept, and the student's scores of two
vectors are drawn towards them. A pair means the same if its sentences are about the same two things in the same order;
things have two names, and a fifth of the labels are wrong. The teacher of the paper is a pretrained model; here it has
had ten times the pairs of its students, as wrongly labelled, theirs among them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from data.packing import pack
from data.render import render_prompt
from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.text_model import Example, TextModel, make_tokenizer, train, write_examples
from demonstrations.vector_model import Side, VectorModel, made_up_words, vectors_of, write_sides
from heads.embedding import PairScoreHead
from inference.conversation import Conversation
from inference.session import Session

THINGS, LENGTH = 10, 2
PAIRS, TAUGHT, TEST, WRONG = 8000, 800, 600, 0.2
"""Pairs of the teacher, and those of them that students learn from."""
TEACHER_STEPS, STEPS = 600, 150
CANDIDATES = 500
CLASSES = ("no", "yes")
TASKS = {"half": "pairs"}
Pair = tuple[str, str, bool]


class World:
    """Things with two names each."""

    def __init__(self, seed: int) -> None:
        self.names = np.array(made_up_words(2 * THINGS, np.random.default_rng([seed, 0]))).reshape(2, THINGS)

    def say(self, things: np.ndarray, rng: np.random.Generator) -> str:
        """The things, each by one of its names."""
        return " ".join(self.names[rng.integers(2, size=len(things)), things])

    def pairs(self, count: int, rng: np.random.Generator) -> Iterator[Pair]:
        """Pairs of which half mean the same; the others differ in all things, in one, or in the order of two."""
        for number in range(count):
            things = rng.choice(THINGS, LENGTH, replace=False)
            other = things.copy()
            if number % 2:
                difference = rng.integers(3)
                if difference == 2:
                    other = rng.choice(np.setdiff1d(np.arange(THINGS), things), LENGTH, replace=False)
                elif difference:
                    other[rng.integers(LENGTH)] = rng.choice(np.setdiff1d(np.arange(THINGS), things))
                else:
                    place = int(rng.integers(LENGTH - 1))
                    other[[place, place + 1]] = other[[place + 1, place]]
            yield self.say(things, rng), self.say(other, rng), not number % 2


def noisy(pairs: Sequence[Pair], rng: np.random.Generator) -> list[Pair]:
    """The same with some of the labels turned round."""
    return [(first, second, bool(same ^ (rng.random() < WRONG))) for first, second, same in pairs]


def question(pair: Pair) -> str:
    """What the teacher is asked."""
    return f": {pair[0]} . {pair[1]} ?"


def student(distillation: float) -> VectorModel:
    """The model that reads each half alone."""
    arguments = {"state_size": 96, "embedding_size": 96, "classes": list(CLASSES), "pair_size": 256}
    head = {"class_path": "heads.embedding.PairScoreHead", "init_args": arguments | {"distillation": distillation}}
    return VectorModel(hidden_size=96, num_layers=2, max_tokens=2048, tasks=TASKS, heads={"pairs": head})


def sides(pairs: Sequence[Pair], scores: Tensor) -> Iterator[list[Side]]:
    """Records of two halves, with the label and the teacher's scores."""
    for number, (first, second, same) in enumerate(pairs):
        learned = {"role": "query", "label": CLASSES[same], "teacher": scores[number].tolist()}
        yield [
            Side(first, "half", {"group": str(number), **learned}),
            Side(second, "half", {"group": str(number), "role": "positive"}),
        ]


@torch.inference_mode()
def teacher_scores(session: Session, pairs: Sequence[Pair]) -> Tensor:
    """(n, 2) logits of the teacher's two answers, centred."""
    model, plan = session.generalist, session.plan
    answers = [plan.vocabulary.encode_text(name)[0] for name in CLASSES]
    rows = []
    for start in range(0, len(pairs), 100):
        asked = [Conversation.ask(question(pair)) for pair in pairs[start : start + 100]]
        batch = pack([render_prompt(item.messages, {}, plan) for item in asked], plan).to(model.device)
        states, _ = model.read(batch)
        ends = torch.tensor(batch.segment_lengths, device=states.device).cumsum(0) - 1
        rows.append(model.language_model.logits(states[ends])[:, answers].float())
    logits = torch.cat(rows).cpu()
    return logits - logits.mean(dim=1, keepdim=True)


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train the teacher, once, and one student; accuracy on true labels, and seconds for one query's candidates."""
    world, shared = World(seed), folder.parent / f"data-{seed}"
    clean = list(world.pairs(PAIRS, np.random.default_rng([seed, 1])))
    pairs = noisy(clean, np.random.default_rng([seed, 2]))
    test = list(world.pairs(TEST, np.random.default_rng([seed, 3])))
    model = student({"hard": 0.0, "distilled": 0.5, "shuffled": 0.5}.get(arm, 0.0))
    write_examples(shared, "asked", (Example(question(pair), CLASSES[pair[2]]) for pair in pairs))
    texts = [" ".join(world.names.flatten()) + " . ? yes no"] * 20
    vocab_size = make_tokenizer(shared / "tokenizer", texts, model.task_table())
    folder_of_teacher = folder.parent / f"teacher-{seed}"
    checkpoint = folder_of_teacher / "checkpoint"
    if not checkpoint.is_dir():
        data = {"sources": [{"path": str(shared / "asked-*.tar")}]}
        reader = TextModel(hidden_size=96, num_layers=2, max_tokens=2048, block="gemma3_text")
        train(reader, shared / "tokenizer", vocab_size, data, TEACHER_STEPS, seed, folder_of_teacher)
    teacher = Session.from_pretrained(str(checkpoint))
    labels = torch.tensor([same for _, _, same in test])
    if arm == "teacher":
        right = teacher_scores(teacher, test).argmax(dim=1) == labels
        return {"accuracy": fmean(right.tolist()), "seconds_ratio": 1.0, "constant": 0.5}
    pairs = pairs[:TAUGHT]
    scores = teacher_scores(teacher, pairs)
    if arm == "shuffled":
        scores = scores[torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))]
    prefix = "shuffled" if arm == "shuffled" else "halves"
    write_sides(shared, prefix, sides(pairs, scores), {})
    data = {"sources": [{"path": str(shared / f"{prefix}-*.tar")}]}
    session = Session.from_pretrained(str(train(model, shared / "tokenizer", vocab_size, data, STEPS, seed, folder)))
    head = session.head_of("half")
    assert isinstance(head, PairScoreHead)
    first = vectors_of(session, [pair[0] for pair in test], "half")
    second = vectors_of(session, [pair[1] for pair in test], "half")
    with torch.inference_mode():
        right = head.logits(first, second).argmax(dim=1) == labels
    return {
        "accuracy": fmean(right.tolist()),
        "seconds_ratio": _seconds_ratio(teacher, session, head, test),
        "constant": 0.5,
    }


@torch.inference_mode()
def _seconds_ratio(teacher: Session, session: Session, head: PairScoreHead, test: Sequence[Pair]) -> float:
    """How much longer the teacher takes to score one query's candidates, whose vectors are there already."""
    query, candidates = test[0][0], [pair[1] for pair in test[:CANDIDATES]]
    vectors = vectors_of(session, candidates, "half")
    ratios = []
    for _ in range(3):
        begun = time.perf_counter()
        teacher_scores(teacher, [(query, candidate, True) for candidate in candidates])
        middle = time.perf_counter()
        head.score(vectors_of(session, [query], "half"), vectors)
        ratios.append((middle - begun) / (time.perf_counter() - middle))
    return sorted(ratios)[1]


DEMONSTRATION = Demonstration(
    paper=67,
    address="https://arxiv.org/abs/1908.05161",
    shows="whether two sentences mean the same, by vectors of each, from noisy labels and from a teacher's scores",
    arms={
        "teacher": f"a language model that reads both sentences, trained on {PAIRS} noisy labels",
        "hard": f"vectors of each sentence and a perceptron over pairs, trained on {TAUGHT} noisy labels",
        "distilled": "the same student, half of its loss being the distance to the teacher's scores",
        "shuffled": "control: the same with the teacher's scores of other pairs",
    },
    measure=measure,
    claims=[
        Claim(
            "the teacher's scores raise the student's accuracy by .03",
            lambda mean: mean("distilled", "accuracy") >= mean("hard", "accuracy") + 0.03,
        ),
        Claim(
            "the scores must be those of the pair: others cost .05",
            lambda mean: mean("shuffled", "accuracy") <= mean("distilled", "accuracy") - 0.05,
        ),
        Claim(
            f"one query's {CANDIDATES} candidates are scored ten times as fast as by the teacher",
            lambda mean: mean("distilled", "seconds_ratio") >= 10,
        ),
    ],
    controls={"shuffled": ("shuffled", "accuracy"), "constant": ("distilled", "constant")},
    controls_na={"blind": "without both sentences there is no pair"},
)
