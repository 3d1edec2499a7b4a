"""Paper 36: calls written as task tokens reach experts that text patterns lose.

UnifiedMLLM (https://arxiv.org/abs/2408.02503) has the language model write task tokens, which a router directs to
experts. Others write calls as text and find them with patterns. Here one small language model learns the same requests
in either form: cut, paint and draw, one call or two, the second on the first's result, amid questions that need none.
Prompts hold what people write: colons, and markup of either form. Calls in text are read twice: by a careful pattern,
and as open systems do that run the first call and keep what stands after the last colon. The router of task tokens is
compared with one that is learned over hidden states.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from data.records import Message, Part, Record
from data.shards import ShardWriter
from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.text_model import LICENSE, SOURCE, TextModel, train
from inference.conversation import Conversation
from inference.session import Session
from layers.calls import Call, ResultRef
from models.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from routers.router import MarkerRouter
from routers.tasks import TaskTable

TASKS = ("cut", "paint", "draw")
KINDS = ("plain", "colon", "markup", "two", "talk")
EXAMPLES, TEST_EXAMPLES, STEPS = 8000, 80, 300
COLOURS = "red green blue white black pink".split()
THINGS = "ball box cup hat star tree boat lamp".split()
NOTES = "open closed sale today free half price nine five more less".split()
MARKS = ("</call>", "<call>", "</draw>", "<draw>")
PLEASE = ("", "please ", "now ", "so ", "first ")
PLEASE_TEST = ("could you ", "can you please ")
TALK = ("what is a {} ?", "do you like the {} ?", "could you say {} ?", "can you see a {} ?", "is the {} {} ?")
_TEXT_CALL = re.compile(r"<call> (\w+) : (.*?)(?: \[(\d+)\])? </call>")

Written = tuple[str, str, tuple[int, ...]]
"""A call: task, prompt, earlier calls that it refers to."""


@dataclass(frozen=True)
class Request:
    """A question, the calls that answer it, and which of :data:`KINDS` it is."""

    question: str
    calls: tuple[Written, ...]
    kind: str


@dataclass(frozen=True)
class Caller(TextModel):
    """The language model, with task tokens or without, and with a learned router or without.

    Args:
        tokens: Whether calls are written in task tokens.
        learned: Whether the router is learned.
    """

    tokens: bool = True
    learned: bool = False

    def config(self, tokenizer: Path, vocab_size: int) -> dict[str, Any]:
        """Arguments of the Generalist; what the one expert answers is not measured."""
        config = super().config(tokenizer, vocab_size)
        if not self.tokens:
            return config
        head = {"state_size": self.hidden_size, "feature_size": 8, "width": 8, "num_heads": 2, "num_layers": 1}
        config["heads"] = {"expert": {"class_path": "heads.boxes.BoxHead", "init_args": head}}
        if self.learned:
            router = {"state_size": self.hidden_size, "tasks": list(TASKS)}
            config["router"] = {"class_path": "routers.learned.LearnedRouter", "init_args": router}
        return {**config, "tasks": table().to_dict()}


def table() -> TaskTable:
    """The three tasks."""
    payload = ["prompt", "results"]
    return TaskTable.from_dict({"tasks": [{"name": name, "head": "expert", "payload": payload} for name in TASKS]})


def requests(rng: np.random.Generator, count: int, test: bool) -> Iterator[Request]:
    """So many requests, the kinds in turn; the test's words of politeness are not those of training."""

    def one(words: Sequence[str]) -> str:
        return str(words[int(rng.integers(len(words)))])

    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        please = one(PLEASE_TEST if test else PLEASE)
        thing = f"{one(COLOURS)} {one(THINGS)}"
        if kind == "talk":
            yield Request(one(TALK).format(one(THINGS), one(COLOURS)), (), kind)
        elif kind == "two":
            colour = one(COLOURS)
            calls: tuple[Written, ...] = (("cut", f"the {thing}", ()), ("paint", f"it {colour}", (0,)))
            yield Request(f"{please}cut out the {thing} then make it {colour}", calls, kind)
        else:
            note = f"{one(NOTES)} {one(NOTES)}"
            note += {"plain": "", "colon": f" : {one(NOTES)}", "markup": f" {one(MARKS)} {one(NOTES)}"}[kind]
            task = one(TASKS)
            prompt = {"cut": f"the {thing} with {note}", "paint": f"the {thing} with {note}"}.get(
                task, f"{note} on a {thing}"
            )
            asked = {"cut": "cut out {}", "paint": "paint {}", "draw": "draw {}"}[task].format(prompt)
            yield Request(f"{please}{asked}", ((task, prompt, ()),), kind)


def as_parts(request: Request, tokens: bool) -> tuple[Part, ...]:
    """The answer: words, then its calls, as calls or as text."""
    if not request.calls:
        return (Part("text", text="i am here to help"),)
    if not tokens:
        return (Part("text", text=f"sure {' '.join(map(as_text, request.calls))}"),)
    calls = [
        Part("call", task=task, prompt=prompt, groundings=tuple({"type": "result", "call_index": i} for i in earlier))
        for task, prompt, earlier in request.calls
    ]
    return (Part("text", text="sure "), *calls)


def as_text(call: Written) -> str:
    """A call as text: ``<call> task : prompt [reference] </call>``."""
    task, prompt, earlier = call
    return f"<call> {task} : {prompt}{''.join(f' [{index}]' for index in earlier)} </call>"


def read_carefully(text: str) -> tuple[Written, ...]:
    """All calls in a text, each cut at its first colon, with their references."""
    found = _TEXT_CALL.findall(text)
    return tuple((task, prompt, (int(index),) if index else ()) for task, prompt, index in found)


def read_first(text: str) -> tuple[Written, ...]:
    """The first call in a text alone: what stands after its last colon is the prompt, and references are dropped."""
    return tuple((task, prompt.split(" : ")[-1], ()) for task, prompt, _ in read_carefully(text)[:1])


def read_tokens(calls: Sequence[Call]) -> tuple[Written, ...]:
    """Calls as the router gives them."""
    references = [tuple(g.call_index for g in call.groundings if isinstance(g, ResultRef)) for call in calls]
    return tuple((call.task, call.prompt, own) for call, own in zip(calls, references, strict=True))


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train one form, then ask requests whose politeness is new."""
    tokens, learned = arm != "text_calls", arm == "learned_router"
    form = "tokens" if tokens else "text"
    shared = folder.parent / f"{form}-{seed}"
    model = Caller(num_layers=3, max_tokens=2048, block="gemma3_text", tokens=tokens, learned=learned)
    made = list(requests(np.random.default_rng([seed, 0]), EXAMPLES, test=False))
    if not list(shared.glob("requests-*.tar")):
        _write(shared, made, tokens)
        texts = [item.question for item in made] + [as_text(call) for item in made for call in item.calls]
        tokenizer = train_tokenizer([*texts, " ".join(PLEASE_TEST)], 480, table() if tokens else TaskTable(()))
        save_tokenizer(tokenizer, shared / "tokenizer")
    vocab_size = len(load_tokenizer(shared / "tokenizer"))
    data = {"sources": [{"path": str(shared)}]}
    checkpoint = train(model, shared / "tokenizer", vocab_size, data, STEPS, seed, folder)
    session = Session.from_pretrained(checkpoint, max_new_tokens=64, batch_size=100)
    asked = list(requests(np.random.default_rng([seed, 1]), TEST_EXAMPLES * len(KINDS), test=True))
    replies = session.generate([Conversation.ask(item.question) for item in asked])
    if not tokens:
        careful = scores(asked, [read_carefully(reply.text) for reply in replies])
        first = scores(asked, [read_first(reply.text) for reply in replies])
        return {**careful, **{f"first_{name}": value for name, value in first.items()}}
    metrics = scores(asked, [read_tokens(reply.calls) for reply in replies])
    metrics["parse_failures"] = fmean(any(error.kind != "head" for error in reply.errors) for reply in replies)
    blind = session.generate([Conversation.ask("?") for _ in asked[:1]])
    metrics["blind"] = scores(asked, [read_tokens(blind[0].calls)] * len(asked))["right"]
    metrics["shuffled"] = scores(asked, [read_tokens(reply.calls) for reply in (*replies[7:], *replies[:7])])["right"]
    metrics["constant"] = scores(asked, [_likeliest(made)] * len(asked))["right"]
    if learned:
        session.generalist.router = MarkerRouter(session.generalist.vocabulary)
        marked = session.generate([Conversation.ask(item.question) for item in asked])
        markers = scores(asked, [read_tokens(reply.calls) for reply in marked])
        metrics |= {f"markers_{name}": markers[name] for name in ("right", "f1")}
    return metrics


def scores(asked: Sequence[Request], replied: Sequence[tuple[Written, ...]]) -> Metrics:
    """Replies whose calls are all right, as a whole and per kind, and precision, recall and F1 of the calls."""
    right = [item.calls == calls for item, calls in zip(asked, replied, strict=True)]
    found = {kind: fmean(ok for ok, item in zip(right, asked, strict=True) if item.kind == kind) for kind in KINDS}
    hits = sum(
        a == b for item, calls in zip(asked, replied, strict=True) for a, b in zip(item.calls, calls, strict=False)
    )
    made, expected = sum(map(len, replied)), sum(len(item.calls) for item in asked)
    rates = {"precision": hits / max(1, made), "recall": hits / expected, "f1": 2 * hits / max(1, made + expected)}
    return {"right": fmean(right), **found, **rates}


def _likeliest(made: Sequence[Request]) -> tuple[Written, ...]:
    """The most frequent set of calls of the training requests, none left out of account."""
    counts: dict[tuple[Written, ...], int] = {}
    for item in made:
        if item.calls:
            counts[item.calls] = counts.get(item.calls, 0) + 1
    return max(counts, key=counts.__getitem__)


def _write(directory: Path, made: Sequence[Request], tokens: bool) -> None:
    with ShardWriter(directory, "requests", 5000) as writer:
        for number, item in enumerate(made):
            turns = (
                Message("user", (Part("text", text=item.question),)),
                Message("assistant", as_parts(item, tokens)),
            )
            meta: Mapping[str, Any] = {"kind": item.kind}
            writer.write(Record(f"requests-{number:06d}", "request", SOURCE, LICENSE, "train", turns, meta=meta), {})


def _beats(kind: str, text: str, by: float) -> Callable[[Callable[[str, str], float]], bool]:
    return lambda mean: mean("task_tokens", kind) >= mean("text_calls", text) + by


DEMONSTRATION = Demonstration(
    paper=36,
    address="https://arxiv.org/abs/2408.02503",
    shows="the same requests answered in task tokens or in text calls; free-running, in words of politeness never seen",
    arms={
        "task_tokens": "calls in task tokens, routed by them",
        "learned_router": "the same, and a router learned over hidden states decides where calls begin",
        "text_calls": "calls in text, read by a careful pattern, and (first_) as the first call after its last colon",
    },
    measure=measure,
    claims=[
        Claim("task tokens: all calls right in .90 of the replies", lambda mean: mean("task_tokens", "right") >= 0.9),
        Claim(
            "prompts that hold markup: task tokens exceed the careful pattern by .15", _beats("markup", "markup", 0.15)
        ),
        Claim("two calls: task tokens exceed reading the first by .50", _beats("two", "first_two", 0.5)),
        Claim(
            "prompts that hold a colon: task tokens exceed cutting at it by .50", _beats("colon", "first_colon", 0.5)
        ),
        Claim(
            "the learned router's F1 is that of the markers or better, to .02",
            lambda mean: mean("learned_router", "f1") >= mean("task_tokens", "f1") - 0.02,
        ),
        Claim(
            "without the request, or with another's, at most .25 are right (questions need no call)",
            lambda mean: max(mean("task_tokens", "blind"), mean("task_tokens", "shuffled")) <= 0.25,
        ),
    ],
    controls={
        "blind": ("task_tokens", "blind"),
        "shuffled": ("task_tokens", "shuffled"),
        "constant": ("task_tokens", "constant"),
    },
    controls_na={
        "zeroed": "there are no features",
        "random_weights": "an untrained model writes no call: it is right where none is needed, by construction",
    },
)
