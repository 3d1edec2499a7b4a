"""Paper 69: entities that were never seen are ranked by what is said about them.

As in https://arxiv.org/abs/2010.03496 an entity is the vector of its description, trained by link prediction; a tenth
of the entities is kept from training, with every triple that they are in, and then has to be found among all.
Descriptions name the same words in different roles ("from X to Y"), which a bag of words cannot tell apart. A kind has
several words ("river", "stream"), whose likeness shows in the triples alone; a probe of the vectors for the kind is
fitted on some of these words, and asked about new entities that are called by the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.text_model import make_tokenizer, train
from demonstrations.vector_model import Side, VectorModel, made_up_words, vectors_of, write_sides
from eval.metrics.retrieval import hits_at, mean_reciprocal_rank
from heads.embedding import ExactIndex
from heads.entity_ranking import EntityRankingHead, Triple
from inference.session import Session
from layers.calls import Call, HeadContext
from models.build import build_generalist

ENTITIES, VALUES, NEW = 400, 20, 40
KINDS = (
    ("river", "stream", "brook", "creek"),
    ("road", "street", "lane", "avenue"),
    ("wall", "fence", "hedge", "dike"),
    ("wire", "cable", "cord", "rope"),
)
PROBED = 2
"""Words of a kind that the probe is fitted on."""
RELATIONS = ("begins where begins", "ends where ends", "begins where ends", "same kind, next number")
TRIPLES_PER_RELATION = 1200
TEST, STEPS, PLAIN_STEPS = 200, 450, 1000
WIDTH, SIZE = 64, 64
TASKS = {"entity": "entities"}


class World:
    """Entities with a begin, an end, a kind, a number and a word for the kind; the first four make relations."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.places = made_up_words(VALUES, rng)
        sizes = (VALUES, VALUES, len(KINDS), 10, len(KINDS[0]))
        facts = dict.fromkeys(tuple(rng.integers(sizes).tolist()) for _ in range(3 * ENTITIES))
        self.facts = [fact for fact in facts if fact[0] != fact[1]][:ENTITIES]
        self.names = [f"e{number}" for number in range(len(self.facts))]
        self.new = set(rng.permutation(len(self.facts))[:NEW].tolist())
        self.triples = list(self._triples(rng))

    def text(self, entity: int) -> str:
        """What is said about an entity."""
        first, last, kind, number, word = self.facts[entity]
        return f"{KINDS[kind][word]} {number} from {self.places[first]} to {self.places[last]}"

    def holds(self, head: int, relation: int, tail: int) -> bool:
        """Whether a triple is true."""
        a, b = self.facts[head], self.facts[tail]
        conditions = (a[0] == b[0], a[1] == b[1], a[0] == b[1], a[2] == b[2] and (a[3] + 1) % 10 == b[3])
        return head != tail and conditions[relation]

    def _triples(self, rng: np.random.Generator) -> Iterator[tuple[int, int, int]]:
        everyone = range(len(self.facts))
        for relation in range(len(RELATIONS)):
            every = [(h, relation, t) for h in everyone for t in everyone if self.holds(h, relation, t)]
            for place in rng.permutation(len(every))[:TRIPLES_PER_RELATION].tolist():
                yield every[place]

    def named(self, triples: Sequence[tuple[int, int, int]]) -> list[Triple]:
        """Triples by name."""
        return [(self.names[head], RELATIONS[relation], self.names[tail]) for head, relation, tail in triples]

    def of(self, new: bool) -> list[tuple[int, int, int]]:
        """Triples with a new entity, or those without."""
        return [triple for triple in self.triples if bool({triple[0], triple[2]} & self.new) == new]


def head_arguments(model: str) -> dict[str, object]:
    """Arguments of the head."""
    kind = "margin" if model == "transe" else "cross_entropy"
    return {"embedding_size": SIZE, "relations": list(RELATIONS), "model": model, "loss_kind": kind}


def model_of(model: str) -> VectorModel:
    """The language model that reads descriptions."""
    head = {
        "class_path": "heads.entity_ranking.EntityRankingHead",
        "init_args": {"state_size": WIDTH, **head_arguments(model)},
    }
    return VectorModel(WIDTH, 2, 2048, learning_rate=3e-3, tasks=TASKS, heads={"entities": head})


def sides(world: World, texts: Sequence[str]) -> Iterator[list[Side]]:
    """Records of a triple's two descriptions."""
    for number, (head, relation, tail) in enumerate(world.of(new=False)):
        own = {"group": str(number), "role": "query", "item": world.names[head], "relation": RELATIONS[relation]}
        other = {"group": str(number), "role": "positive", "item": world.names[tail]}
        yield [Side(texts[head], "entity", own), Side(texts[tail], "entity", other)]


class PlainEncoder(nn.Module):
    """The baselines: the mean of a description's words, or a vector of each entity's own."""

    def __init__(self, texts: Sequence[str], bag: bool) -> None:
        super().__init__()
        words = sorted({word for text in texts for word in text.split()})
        self.bag = bag
        self.table = nn.Embedding(len(words) if bag else len(texts), WIDTH)
        self.rows = torch.tensor([[words.index(word) for word in text.split()] for text in texts])

    def forward(self, entities: Tensor) -> Tensor:
        """(n, WIDTH) of entities by number."""
        states: Tensor = self.table(self.rows[entities]).mean(dim=1) if self.bag else self.table(entities)
        return states


def train_plain(world: World, texts: Sequence[str], bag: bool, seed: int) -> tuple[EntityRankingHead, Tensor]:
    """Train a baseline with the same head and loss; returns the head and all entities' vectors."""
    torch.manual_seed(seed)
    encoder = PlainEncoder(texts, bag)
    head = EntityRankingHead(WIDTH, **head_arguments("complex"))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], 3e-3)
    rng, triples, batch = np.random.default_rng([seed, 5]), world.of(new=False), 48
    context = HeadContext(Call("entity", ""))
    for _ in range(PLAIN_STEPS):
        chosen = [triples[place] for place in rng.integers(len(triples), size=batch).tolist()]
        ends = torch.tensor([end for head_, _, tail in chosen for end in (head_, tail)])
        targets = []
        for number, (first, relation, last) in enumerate(chosen):
            query = {"group": str(number), "role": "query", "item": world.names[first], "relation": RELATIONS[relation]}
            targets.append(head.target_processor(query, []))
            answer = {"group": str(number), "role": "positive", "item": world.names[last]}
            targets.append(head.target_processor(answer, []))
        term = head.loss(head(encoder(ends), [1] * len(ends), [context] * len(ends)), targets)
        optimizer.zero_grad()
        (term.total / term.count).backward()
        optimizer.step()
    everyone = torch.arange(len(texts))
    with torch.no_grad():
        return head.eval(), head(encoder(everyone), [1] * len(texts), [context] * len(texts))


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train one arm; ranks of new entities among all, and a linear probe of their kind."""
    world, shared = World(seed), folder.parent / f"data-{seed}"
    texts = [world.text(entity) for entity in range(len(world.facts))]
    model = model_of(arm if arm in ("transe", "distmult", "simple") else "complex")
    if arm in ("bag_of_words", "lookup"):
        head, vectors = train_plain(world, texts, arm == "bag_of_words", seed)
    else:
        vocab_size = make_tokenizer(shared / "tokenizer", texts * 5, model.task_table(), 500)
        given = [texts[place] for place in np.random.default_rng([seed, 6]).permutation(len(texts))]
        write_sides(shared, "own", sides(world, texts), {})
        write_sides(shared, "others", sides(world, given), {})
        prefix = "others" if arm == "shuffled" else "own"
        if arm == "untrained":
            torch.manual_seed(seed)
            session = Session(build_generalist(model.config(shared / "tokenizer", vocab_size)))
        else:
            data = {"sources": [{"path": str(shared / f"{prefix}-*.tar")}]}
            checkpoint = train(model, shared / "tokenizer", vocab_size, data, STEPS, seed, folder)
            session = Session.from_pretrained(str(checkpoint))
        found = session.head_of("entity")
        assert isinstance(found, EntityRankingHead)
        head, vectors = found, vectors_of(session, given if arm == "shuffled" else texts, "entity")
    index = ExactIndex(vectors, world.names)
    rng = np.random.default_rng([seed, 7])
    metrics: dict[str, float] = {}
    everyone = range(len(texts))
    every = ((h, r, t) for r in range(len(RELATIONS)) for h in everyone for t in everyone)
    known = world.named([triple for triple in every if world.holds(*triple)])
    for name, new in (("new", True), ("seen", False)):
        triples = world.of(new)
        asked = [triples[place] for place in rng.permutation(len(triples))[:TEST].tolist()]
        ranks = head.ranks(index, world.named(asked), known).flatten().numpy()
        metrics |= {f"{name}_mrr": mean_reciprocal_rank(ranks), f"{name}_hits_10": hits_at(ranks, 10)}
    return {**metrics, "kind_probe": _probe(world, vectors), "constant": 2 / len(texts)}


def _probe(world: World, vectors: Tensor) -> float:
    """Accuracy of a ridge regression from vectors to kinds, fitted on seen entities, on new ones of other words."""
    kinds, words = (torch.tensor([fact[place] for fact in world.facts]) for place in (2, 4))
    new = torch.zeros(len(kinds), dtype=torch.bool)
    new[list(world.new)] = True
    seen, asked = ~new & (words < PROBED), new & (words >= PROBED)
    known = torch.cat([vectors, torch.ones(len(vectors), 1)], dim=1).double()
    rows, wanted = known[seen], nn.functional.one_hot(kinds[seen], len(KINDS)).double()
    weights = torch.linalg.solve(rows.T @ rows + 1e-2 * torch.eye(rows.shape[1]).double(), rows.T @ wanted)
    return float(((known[asked] @ weights).argmax(dim=1) == kinds[asked]).double().mean())


DEMONSTRATION = Demonstration(
    paper=69,
    address="https://arxiv.org/abs/2010.03496",
    shows=f"the {NEW} of {ENTITIES} entities that training never saw, ranked among all by relations they are in",
    arms={
        "lookup": "a vector of each entity's own, no text",
        "bag_of_words": "the mean of the description's words",
        "complex": "a language model reads the description; ComplEx",
        "transe": "likewise; TransE",
        "distmult": "likewise; DistMult",
        "simple": "likewise; SimplE",
        "shuffled": "control: as ComplEx, with the descriptions of other entities throughout",
        "untrained": "control: random weights",
    },
    measure=measure,
    claims=[
        Claim(
            "read by a language model, new entities are ranked better than by a bag of words: .10 of reciprocal rank",
            lambda mean: mean("complex", "new_mrr") >= mean("bag_of_words", "new_mrr") + 0.1,
        ),
        Claim(
            "a vector of each entity's own is no help for new entities: .10 less than from descriptions",
            lambda mean: mean("lookup", "new_mrr") <= mean("complex", "new_mrr") - 0.1,
        ),
        Claim(
            "a linear probe of other words reads the kind of new entities from their vectors, .20 above random weights",
            lambda mean: mean("complex", "kind_probe") >= mean("untrained", "kind_probe") + 0.2,
        ),
    ],
    controls={
        "shuffled": ("shuffled", "new_mrr"),
        "random_weights": ("untrained", "new_mrr"),
        "constant": ("untrained", "constant"),
    },
    controls_na={"blind": "without the description it is the arm lookup"},
)
