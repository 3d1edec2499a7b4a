"""Paper 2: a stage that matches nodes with texts before a projector learns tasks, against none.

In GraphGPT (https://arxiv.org/abs/2310.13023) the language model and the graph encoder are frozen; one projector learns
first which text belongs to which node, then the tasks. The paper's own tables have the first stage cost accuracy on
the graph of training and help on graphs that were not in it. Here a small language model has learned from words alone
to name the family of a module of Python's standard library, to say whether two modules import each other, and to find
the one of three texts that has words in common. The projector then learns the same questions with graph tokens in place
of the words: families of five kinds, links, and, in some arms before these, matching over modules of all families.
Three families are never asked about in its training, and no test module is in any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml

from data.drafts import Draft, Origin
from data.quickstart.graphs import subgraph
from data.quickstart.modules import FAMILIES, read_module_graph
from data.records import Message, Part
from data.shards import ShardWriter
from demonstrations.demonstration import ROOT, Claim, Demonstration, Metrics
from demonstrations.encoders.graph_grounding import GraphReader
from demonstrations.text_model import LICENSE, SOURCE, Example, fit, make_tokenizer, train, write_examples
from eval.controls import blind, zeroed
from eval.metrics.ranking import roc_auc
from inference.conversation import Conversation, Reply
from inference.session import Session
from layers.media import Graph

UNSEEN = 3
WORDS, HEAD, CANDIDATES = 10, 6, 3
"""Words that stand for a node, words of a text in a list, and texts in a list."""
BASE, LOOK_UPS, MATCHING, TASKS = 4_000, 8_000, 3_000, 2_000
"""Examples in the training of the language model, of each task and of look-ups; in matching; in the tasks, of each."""
TEST = 240
LOOK_UP_STEPS, BASE_STEPS, GROUNDING_STEPS, MATCHING_STEPS, TASK_STEPS = 350, 600, 400, 200, 200
"""The language model's first steps hold look-ups alone: they are not learned among other things (docs/LOG.md)."""
SIZE: dict[str, Any] = {"hidden_size": 96, "num_layers": 3, "max_tokens": 2048, "block": "gemma3_text"}
LINK = ("yes", "no")


@dataclass(frozen=True)
class Asked:
    """A question about one module or two.

    Args:
        nodes: The modules.
        texts: What follows each module's words or graph.
        answer: The reply.
        hidden: Edges that no graph may show.
    """

    nodes: tuple[int, ...]
    texts: tuple[str, ...]
    answer: str
    hidden: tuple[tuple[int, int], ...] = ()


class World:
    """The import graph, and the families that the projector's tasks ask for."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.modules = read_module_graph()
        self.members = self.modules.split(seed)
        order = rng.permutation(list(FAMILIES)).tolist()
        self.unseen, self.seen = order[:UNSEEN], order[UNSEEN:]

    def families(self, split: str, names: Sequence[str], count: int, rng: np.random.Generator) -> Iterator[Asked]:
        """Which family a module belongs to, families in turn."""
        members = {
            name: [node for node in self.members[split] if self.modules.families[node] == name] for name in names
        }
        for number in range(count):
            name = names[number % len(names)]
            yield Asked((int(rng.choice(members[name])),), (" which family",), name)

    def links(self, split: str, count: int, rng: np.random.Generator) -> Iterator[Asked]:
        """Whether one module imports the other, yes and no in turn; modules are as popular in either."""
        allowed = list(self.members[split])
        inside, weights = set(allowed), np.sqrt(self.modules.in_degrees[allowed] + 0.25)
        edges = [edge for edge in self.modules.edges if inside >= set(edge)]
        number = 0
        while number < count:
            first, second = edges[int(rng.integers(len(edges)))]
            if number % 2:
                second = int(rng.choice(allowed, p=weights / weights.sum()))
                if first == second or {(first, second), (second, first)} & self.modules.edge_set:
                    continue
            yield Asked((first, second), (" and", " linked"), LINK[number % 2], ((first, second),))
            number += 1

    def matches(self, split: str, count: int, rng: np.random.Generator) -> Iterator[Asked]:
        """Which of some texts is the module's, to be written out; the others are not of its neighbours."""
        texts, families = self.modules.texts, self.modules.families
        told_apart = [n for n in self.members[split] if families[n] != "encodings" and len(texts[n].split()) >= HEAD]
        number = 0
        while number < count:
            node, *others = rng.choice(told_apart, CANDIDATES, replace=False).tolist()
            heads = [" ".join(texts[other].split()[:HEAD]) for other in (node, *others)]
            if len(set(heads)) < CANDIDATES or set(others) & set(self.modules.neighbours[node]):
                continue
            listed = " ; ".join(rng.permutation(heads).tolist())
            yield Asked((node,), (f" which of {listed}",), heads[0])
            number += 1

    def look_ups(self, count: int, rng: np.random.Generator) -> Iterator[Example]:
        """Matches of words at random, which are looked up because they cannot be known by heart."""
        every = sorted({word for text in self.modules.texts for word in text.split() if word != "_"})
        for _ in range(count):
            drawn = rng.choice(every, CANDIDATES * HEAD + WORDS, replace=False)
            heads = [" ".join(drawn[place * HEAD :][:HEAD]) for place in range(CANDIDATES)]
            shared = int(rng.integers(2, 5))
            words = [*rng.permutation(drawn[:HEAD])[:shared], *drawn[CANDIDATES * HEAD + shared :]]
            listed = " ; ".join(rng.permutation(heads))
            yield Example(f"{' '.join(rng.permutation(words))} which of {listed}", heads[0])

    def words(self, node: int, rng: np.random.Generator) -> str:
        """Words of a module's text, in their order."""
        own = self.modules.texts[node].split()
        places = sorted(rng.permutation(len(own))[:WORDS].tolist())
        return " ".join(own[place] for place in places)

    def as_example(self, asked: Asked, rng: np.random.Generator) -> Example:
        """The question with words in place of the graphs."""
        parts = (self.words(node, rng) + text for node, text in zip(asked.nodes, asked.texts, strict=True))
        return Example(" ".join(parts), asked.answer)

    def as_turn(self, asked: Asked, rng: np.random.Generator) -> tuple[Message, dict[str, Graph]]:
        """The question with a graph around each module."""
        graphs = [subgraph(self.modules, node, rng, asked.hidden) for node in asked.nodes]
        named = {f"graph{number}": graph for number, graph in enumerate(graphs)}
        pairs = zip(named, asked.texts, strict=True)
        parts = [part for name, text in pairs for part in (Part("graph", media=name), Part("text", text=text))]
        return Message("user", tuple(parts)), named

    def write(self, directory: Path, prefix: str, questions: Iterable[Asked], rng: np.random.Generator) -> None:
        """Write questions with their graphs as shards, unless they are there."""
        if list(directory.glob(f"{prefix}-*.tar")):
            return
        with ShardWriter(directory, prefix, 5000) as writer:
            for number, asked in enumerate(questions):
                draft = Draft(f"{prefix}-{number:06d}", prefix, Origin(SOURCE, LICENSE, "train"))
                turn, graphs = self.as_turn(asked, rng)
                for name, graph in graphs.items():
                    draft.add_graph(graph, name)
                draft.user(*turn.content)
                draft.assistant(asked.answer)
                writer.write(*draft.finish())


@dataclass(frozen=True)
class Stages:
    """The stages of one seed, each trained once and kept under the folder of all arms.

    Args:
        world: Of the seed.
        seed: The seed.
        folder: Where data and checkpoints are.
    """

    world: World
    seed: int
    folder: Path

    @property
    def data(self) -> Path:
        """The shards."""
        return self.folder / f"data-{self.seed}"

    def write(self) -> int:
        """Write all data; returns the tokenizer's number of ids."""
        world, rng = self.world, self._rng(1)
        words = (
            ("families", world.families("train", list(FAMILIES), BASE, rng)),
            ("links", world.links("train", BASE, rng)),
        )
        base = {name: [world.as_example(asked, rng) for asked in questions] for name, questions in words}
        base["look_ups"] = list(world.look_ups(LOOK_UPS, rng))
        for name, examples in base.items():
            write_examples(self.data, f"words-{name}", examples)
        made = {
            "matching": world.matches("train", MATCHING, self._rng(2)),
            "families": world.families("train", world.seen, TASKS, self._rng(3)),
            "links": world.links("train", TASKS, self._rng(4)),
        }
        for name, questions in made.items():
            world.write(self.data, name, questions, self._rng(5))
        world.write(self.data / "val", "matching", world.matches("val", 32, self._rng(6)), self._rng(6))
        texts = [f"{item.question} {item.answer}" for examples in base.values() for item in examples]
        return make_tokenizer(self.data / "tokenizer", texts, size=1200)

    def base(self, vocab_size: int) -> Path:
        """The language model, which has read words alone."""
        folder = self.folder / f"base-{self.seed}"
        if not (folder / "checkpoint").is_dir():
            names = ("families", "links", "look_ups")
            data = {
                "sources": [{"name": name, "path": str(self.data / f"words-{name}-*.tar")} for name in names],
                "mixture": {"curriculum": [{"until": LOOK_UP_STEPS, "weights": {"families": 0.0, "links": 0.0}}]},
            }
            model = GraphReader(graphs=False, **SIZE)
            train(model, self.data / "tokenizer", vocab_size, data, BASE_STEPS, self.seed, folder)
        return folder / "checkpoint"

    def tower(self) -> Path:
        """The graph encoder, which was aligned with the texts of its nodes."""
        folder = self.folder / f"tower-{self.seed}"
        if not (folder / "tower.safetensors").is_file():
            config: dict[str, Any] = yaml.safe_load((ROOT / "configs/quickstart/stage0_graph.yaml").read_text())
            config["model"]["init_args"]["seed"] = self.seed
            for name, place in (("train", self.data), ("val", self.data / "val")):
                config["data"]["init_args"][name] = str(place / "matching-*.tar")
            fit({"model": config["model"], "data": config["data"]}, GROUNDING_STEPS, self.seed, folder)
        return folder / "tower.safetensors"

    def projected(self, vocab_size: int, names: Sequence[str], steps: int, folder: Path, start: Path | None) -> Path:
        """The projector after a stage over some of the data, from a checkpoint, or from its beginning."""
        data = {"sources": [{"path": str(self.data / f"{name}-*.tar")} for name in names]}
        sources: list[dict[str, Any]]
        if start is None:
            new = [r"^projectors\.", r"^encoders\."]
            sources = [
                {"path": str(self.base(vocab_size)), "allow_new": new},
                {"path": str(self.tower()), "prefix": "encoders.graph."},
            ]
        else:
            sources = [{"path": str(start)}]
        place = (GraphReader(**SIZE), self.data / "tokenizer", vocab_size, data, steps, self.seed, folder)
        return train(*place, sources, [r"^projectors\."], {"muon": {}, "learning_rate": 3e-3, "weight_decay": 0.0})

    def matched(self, vocab_size: int) -> Path:
        """The projector after matching."""
        folder = self.folder / f"matching-{self.seed}"
        if not (folder / "checkpoint").is_dir():
            self.projected(vocab_size, ["matching"], MATCHING_STEPS, folder, None)
        return folder / "checkpoint"

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, number])


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train one arm; what it answers about modules of no training, and what is left without their graphs."""
    world = World(seed)
    stages = Stages(world, seed, folder.parent)
    vocab_size = stages.write()
    if arm == "words":
        checkpoint = stages.base(vocab_size)
    elif arm == "matching":
        checkpoint = stages.matched(vocab_size)
    else:
        start = stages.matched(vocab_size) if arm == "matching_tasks" else None
        steps = TASK_STEPS + (MATCHING_STEPS if arm == "tasks_longer" else 0)
        checkpoint = stages.projected(vocab_size, ["families", "links"], steps, folder, start)
    session = Session.from_pretrained(checkpoint, max_new_tokens=32, batch_size=80, log_probabilities=True)
    return scores(session, world, np.random.default_rng([seed, 7]), graphs=arm != "words")


def scores(session: Session, world: World, rng: np.random.Generator, graphs: bool) -> Metrics:
    """Accuracy over families of the tasks, and over others; of links the area under the curve; of matches accuracy."""
    tests = {
        "seen": list(world.families("test", world.seen, TEST, rng)),
        "unseen": list(world.families("test", world.unseen, TEST, rng)),
        "link_auc": list(world.links("test", TEST, rng)),
        "match": list(world.matches("test", TEST, rng)),
    }

    def asked(questions: Sequence[Asked]) -> list[Conversation]:
        if not graphs:
            return [Conversation(world.as_example(item, rng).asked()) for item in questions]
        turns = (world.as_turn(item, rng) for item in questions)
        return [Conversation((turn,), media) for turn, media in turns]

    prompts = {name: asked(questions) for name, questions in tests.items()}
    metrics = {name: measured(tests[name])(session.generate(prompts[name])) for name in prompts}
    if not graphs:
        return metrics
    for name in ("seen", "unseen"):
        right, own = measured(tests[name]), prompts[name]
        order = rng.permutation(len(own)).tolist()
        swapped = [Conversation(item.messages, own[other].media) for item, other in zip(own, order, strict=True)]
        metrics[f"{name}_shuffled"] = right(session.generate(swapped))
        metrics[f"{name}_zeroed"] = right(session.generate(own, feature_transform=zeroed))
        metrics[f"{name}_blind"] = right(session.generate([blind(item) for item in own]))
    return metrics | {"constant": 1 / len(world.seen), "constant_unseen": 1 / len(world.unseen)}


def measured(questions: Sequence[Asked]) -> Callable[[Sequence[Reply]], float]:
    """How good replies to these questions are."""
    answers = [item.answer for item in questions]
    if set(answers) == set(LINK):
        return lambda replies: roc_auc([linked(reply) for reply in replies], [answer == "yes" for answer in answers])
    return lambda replies: fmean(reply.text.strip() == a for reply, a in zip(replies, answers, strict=True))


def linked(reply: Reply) -> float:
    """How likely the model finds a link, by how likely it found its answer; one half for another answer."""
    probability = exp(reply.log_probability or 0.0)
    return {"yes": probability, "no": 1 - probability}.get(reply.text.strip(), 0.5)


DEMONSTRATION = Demonstration(
    paper=2,
    address="https://arxiv.org/abs/2310.13023",
    shows="families and links of modules from graph tokens by a projector alone, which matched nodes with texts or not",
    arms={
        "words": "the language model itself, with words of the module in place of its graph",
        "tasks": f"the projector after {TASK_STEPS} steps of tasks",
        "tasks_longer": f"the projector after {TASK_STEPS + MATCHING_STEPS} steps of tasks",
        "matching": f"the projector after {MATCHING_STEPS} steps of matching, no task",
        "matching_tasks": f"the projector after {MATCHING_STEPS} steps of matching and {TASK_STEPS} of tasks",
    },
    measure=measure,
    claims=[
        Claim(
            "families that no task named: matching is .10 above as many steps of tasks, and above one answer for all",
            lambda mean: (
                mean("matching_tasks", "unseen")
                >= 0.1 + max(mean("tasks_longer", "unseen"), mean("matching_tasks", "constant_unseen"))
            ),
        ),
        Claim(
            "families of the tasks: matching costs at most .05 against as many steps of tasks",
            lambda mean: mean("matching_tasks", "seen") >= mean("tasks_longer", "seen") - 0.05,
        ),
        Claim(
            "links: matching costs at most .03 of the area",
            lambda mean: mean("matching_tasks", "link_auc") >= mean("tasks_longer", "link_auc") - 0.03,
        ),
        Claim(
            "it is the graphs that are read: others', zeros or none cost .20 of the families of the tasks",
            lambda mean: (
                max(mean("matching_tasks", f"seen_{control}") for control in ("shuffled", "zeroed", "blind"))
                <= mean("matching_tasks", "seen") - 0.2
            ),
        ),
    ],
    controls={
        "blind": ("matching_tasks", "seen_blind"),
        "shuffled": ("matching_tasks", "seen_shuffled"),
        "zeroed": ("matching_tasks", "seen_zeroed"),
        "constant": ("matching_tasks", "constant"),
    },
    controls_na={"random_weights": "the projector begins at random in every arm: the arm of tasks is the comparison"},
)
