"""Paper 2: a graph encoder that was first aligned with its nodes' texts tells a language model what a node is.

As in GraphGPT (https://arxiv.org/abs/2310.13023) the encoder is trained on graphs and texts alone, then frozen; the
language model and a projector learn to name a node's class from the question, the node's text and the graph's tokens.
Nodes are modules of Python's standard library, edges are imports, classes are families of packages; the modules that
are asked about are never among those of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml

from data.drafts import Draft, Origin
from data.quickstart.graphs import PROMPT_WORDS, subgraph
from data.quickstart.modules import FAMILIES, ModuleGraph, read_module_graph
from data.shards import ShardWriter
from demonstrations.demonstration import ROOT, Claim, Demonstration, Metrics
from demonstrations.text_model import LICENSE, SOURCE, Block, TextModel, fit, make_tokenizer, train
from eval.controls import zeroed
from inference.conversation import Conversation
from inference.session import Session
from layers.media import Graph

TRAIN, VALIDATION, TEST = 3000, 64, 320
GROUNDING_STEPS, STEPS = 600, 300
WIDTH = 128
QUESTION = "which family?"


@dataclass(frozen=True)
class Asked:
    """A question about the target of a graph."""

    graph: Graph
    question: str
    family: str


@dataclass(frozen=True)
class GraphReader(TextModel):
    """The language model, and in two of the arms a graph encoder before it.

    Args:
        graphs: Whether it has one.
    """

    graphs: bool = True
    block: Block = "gemma3_text"

    def config(self, tokenizer: Path, vocab_size: int) -> dict[str, Any]:
        """Arguments of the Generalist."""
        config = super().config(tokenizer, vocab_size)
        if self.graphs:
            projector = {"input_size": WIDTH, "output_size": self.hidden_size, "num_layers": 2}
            config["encoders"] = {"graph": _tower_config()["model"]["init_args"]["encoder"]}
            config["projectors"] = {"graph": {"class_path": "models.projectors.MLPProjector", "init_args": projector}}
        return config


def questions(modules: ModuleGraph, split: str, count: int, seed: int) -> list[Asked]:
    """Questions about modules of one split, families in turn."""
    rng, families = np.random.default_rng([seed, len(split)]), list(FAMILIES)
    made = []
    for number in range(count):
        family = families[number % len(families)]
        members = [node for node in modules.split(seed)[split] if modules.families[node] == family]
        target = members[int(rng.integers(len(members)))]
        words = " ".join(modules.texts[target].split()[:PROMPT_WORDS])
        made.append(Asked(subgraph(modules, target, rng), f"{QUESTION} {words}", family))
    return made


def write_questions(directory: Path, asked: Sequence[Asked], graphs: bool) -> None:
    """Write them as shards, with their graphs or without, unless they are there."""
    prefix = "graphs" if graphs else "texts"
    if list(directory.glob(f"{prefix}-*.tar")):
        return
    with ShardWriter(directory, prefix, 5000) as writer:
        for number, item in enumerate(asked):
            draft = Draft(f"{prefix}-{number:06d}", "node_family", Origin(SOURCE, LICENSE, "train"))
            if graphs:
                draft.add_graph(item.graph)
                draft.user(draft.medium("graph"), item.question)
            else:
                draft.user(item.question)
            draft.assistant(item.family)
            writer.write(*draft.finish())


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train one arm; accuracy over unseen modules, with its graphs, with another's and with zeros in their place."""
    modules, shared = read_module_graph(), folder.parent / f"data-{seed}"
    asked = questions(modules, "train", TRAIN, seed)
    write_questions(shared, asked, graphs=True)
    write_questions(shared, asked, graphs=False)
    write_questions(shared / "val", questions(modules, "val", VALIDATION, seed), graphs=True)
    vocab_size = make_tokenizer(shared / "tokenizer", [f"{item.question} {item.family}" for item in asked])
    graphs, start = arm != "text_only", []
    if arm == "grounded":
        _ground(shared, seed, folder / "tower")
        start = [{"path": str(folder / "tower" / "tower.safetensors"), "prefix": "encoders.graph."}]
    data = {"sources": [{"path": str(shared / ("graphs-*.tar" if graphs else "texts-*.tar"))}]}
    trained = [r"^language_model\.", *([r"^projectors\."] if graphs else [])]
    model = GraphReader(graphs=graphs, by_muon=(r"^projectors\.",) if graphs else ())
    checkpoint = train(model, shared / "tokenizer", vocab_size, data, STEPS, seed, folder, start, trained)
    return _accuracies(checkpoint, questions(modules, "test", TEST, seed), graphs, seed)


def _accuracies(checkpoint: Path, asked: Sequence[Asked], graphs: bool, seed: int) -> Metrics:
    session = Session.from_pretrained(str(checkpoint), max_new_tokens=16, batch_size=80)

    def accuracy(media: Sequence[Graph], **options: Any) -> float:
        prompts = [
            Conversation.ask(item.question, graphs=[graph] if graphs else [])
            for item, graph in zip(asked, media, strict=True)
        ]
        replies = session.generate(prompts, **options)
        return fmean(reply.text.strip() == item.family for reply, item in zip(replies, asked, strict=True))

    own = [item.graph for item in asked]
    order = np.random.default_rng([seed, 9]).permutation(len(own)).tolist()
    right = accuracy(own)
    return {
        "accuracy": right,
        "shuffled": accuracy([own[place] for place in order]) if graphs else right,
        "zeroed": accuracy(own, feature_transform=zeroed) if graphs else right,
        "constant": 1 / len(FAMILIES),
    }


def _tower_config() -> dict[str, Any]:
    """The quickstart's stage 0 of the graph tower."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs/quickstart/stage0_graph.yaml").read_text())
    return config


def _ground(shared: Path, seed: int, folder: Path) -> None:
    config = _tower_config()
    data = {name: str(shared / place / "graphs-*.tar") for name, place in (("train", "."), ("val", "val"))}
    data["batch_size"] = config["data"]["init_args"]["batch_size"]
    model = {**config["model"], "init_args": {**config["model"]["init_args"], "seed": seed}}
    fit({"model": model, "data": {**config["data"], "init_args": data}}, GROUNDING_STEPS, seed, folder)


DEMONSTRATION = Demonstration(
    paper=2,
    address="https://arxiv.org/abs/2310.13023",
    shows="the family of a module from its text and its graph, by a frozen encoder that was aligned with texts or not",
    arms={
        "text_only": "the question and the node's text, no graph",
        "not_grounded": "with the graph's tokens, from a frozen encoder with random weights",
        "grounded": f"with the graph's tokens, from an encoder aligned with texts for {GROUNDING_STEPS} steps",
    },
    measure=measure,
    claims=[
        Claim(
            "grounding raises accuracy over no grounding by .05",
            lambda mean: mean("grounded", "accuracy") >= mean("not_grounded", "accuracy") + 0.05,
        ),
        Claim(
            "graph tokens raise accuracy over text alone by .10",
            lambda mean: mean("grounded", "accuracy") >= mean("text_only", "accuracy") + 0.1,
        ),
        Claim(
            "it is this node's graph that is read: another's or zeros cost .10 at least",
            lambda mean: (
                mean("grounded", "accuracy") - 0.1 >= max(mean("grounded", "shuffled"), mean("grounded", "zeroed"))
            ),
        ),
    ],
    controls={
        "blind": ("text_only", "accuracy"),
        "shuffled": ("grounded", "shuffled"),
        "zeroed": ("grounded", "zeroed"),
        "constant": ("grounded", "constant"),
    },
)
