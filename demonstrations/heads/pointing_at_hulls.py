"""Paper 65: a network that points at its inputs finds convex hulls, also of more points than it was trained on.

As in https://arxiv.org/abs/1506.03134 the answer names points of the hull counter-clockwise from the first of them in
the input, and the baseline is the sequence-to-sequence model with attention whose outputs are a table of positions.
Both read the points with an LSTM and are trained with teacher forcing on the same sets of 5 to 12 points; the table has
no entry for a 13th point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import ConvexHull
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from demonstrations.demonstration import Claim, Demonstration, Metrics
from heads.pointer import PointerHead
from layers.calls import Call, HeadContext, MediaFeatures, SelectionResult
from layers.layout import ItemLayout
from training.muon import muon_adamw
from training.optimizer import parameter_groups, warmup_cosine

SMALLEST, LARGEST, LONGER = 5, 12, 20
BATCH, STEPS, WARMUP = 128, 1000, 50
WIDTH, LEARNING_RATE, MUON = 96, 2e-3, 0.02
STATE = 1  # a state that says nothing: there is only one question
Answer = Callable[[Sequence[Tensor]], list[list[int]]]


def hull(points: np.ndarray) -> list[int]:
    """Indices of the hull, counter-clockwise from the first of them in the input."""
    around: list[int] = ConvexHull(points).vertices.tolist()
    first = around.index(min(around))
    return around[first:] + around[:first]


def area(points: np.ndarray, chosen: Sequence[int]) -> float:
    """Of the polygon through points in this order; 0 if it crosses itself, or is none."""
    if len(set(chosen)) < 3 or len(set(chosen)) < len(chosen):
        return 0.0
    x, y = points[list(chosen)].T
    if _crosses(points[list(chosen)]):
        return 0.0
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _crosses(corners: np.ndarray) -> bool:
    """Whether two edges of a polygon that share no corner cross."""

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    count = len(corners)
    edges = [(corners[place], corners[(place + 1) % count]) for place in range(count)]
    for first in range(count):
        for second in range(first + 2, count - (first == 0)):
            (a, b), (c, d) = edges[first], edges[second]
            if side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0:
                return True
    return False


class TableOfPositions(nn.Module):
    """Sequence-to-sequence with attention: the decoder reads a mean of the inputs and chooses among fixed positions."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(2, WIDTH)
        self.encoder = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.decoder = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.start = nn.Parameter(torch.zeros(WIDTH))
        self.key, self.query, self.weigh = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.output = nn.Linear(2 * WIDTH, LARGEST + 1)  # the end, and the positions

    def forward(self, points: Sequence[Tensor], before: Tensor) -> Tensor:
        """(n, T, positions + 1) logits; ``before`` (n, T) are the choices of the steps before, 0 at the first."""
        lengths = torch.tensor([len(item) for item in points])
        inputs = self.read(pad_sequence(list(points), batch_first=True))
        packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        output, state = self.encoder(packed)
        encoded, _ = pad_packed_sequence(output, batch_first=True)
        table = torch.cat([self.start.expand(len(points), 1, -1), inputs], dim=1)
        states, _ = self.decoder(table.gather(1, before[..., None].expand(-1, -1, WIDTH)), state)
        scores = self.weigh((self.query(states)[:, :, None] + self.key(encoded)[:, None]).tanh())[..., 0]
        outside = torch.arange(encoded.shape[1])[None] >= lengths[:, None]
        weights = scores.masked_fill(outside[:, None], float("-inf")).softmax(dim=-1)
        logits: Tensor = self.output(torch.cat([states, weights @ encoded], dim=-1))
        return logits

    @torch.no_grad()
    def choose(self, points: Sequence[Tensor]) -> list[list[int]]:
        """Greedy answers."""
        before = torch.zeros(len(points), 1, dtype=torch.int64)
        for _ in range(LARGEST + 1):
            before = torch.cat([before, self(points, before)[:, -1:].argmax(dim=-1).clamp(max=len(points[0]))], dim=1)
        rows = before[:, 1:].tolist()
        return [[place - 1 for place in row[: row.index(0) if 0 in row else len(row)]] for row in rows]


def contexts(points: Sequence[Tensor]) -> list[HeadContext]:
    """Calls on graphs whose nodes are the points."""
    layouts = [ItemLayout((len(item),), (len(item),)) for item in points]
    media = [MediaFeatures("graph", item, layout) for item, layout in zip(points, layouts, strict=True)]
    return [HeadContext(Call("hull", ""), [item]) for item in media]


def batch(rng: np.random.Generator, count: int) -> tuple[list[Tensor], list[list[int]]]:
    """Sets of so many points with their hulls."""
    points = rng.random((BATCH, count, 2))
    return [torch.tensor(item, dtype=torch.float32) for item in points], [hull(item) for item in points]


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train one network; exact hulls, and the area of the hull that is covered."""
    torch.manual_seed(seed)
    pointer = PointerHead(
        STATE,
        2,
        width=WIDTH,
        encoder="attention" if arm == "pointer_attention" else "lstm",
        num_layers=2 if arm == "pointer_attention" else 1,
    )
    table = TableOfPositions()
    network: nn.Module = table if arm == "table" else pointer
    groups = parameter_groups(network, LEARNING_RATE, {}, 0.0, {".": MUON})
    optimizer = muon_adamw(groups, (0.9, 0.98), "32-true")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, WARMUP, STEPS))
    rng = np.random.default_rng([seed, 1])
    for _ in range(0 if arm == "untrained" else STEPS):
        points, wanted = batch(rng, int(rng.integers(SMALLEST, LARGEST + 1)))
        if arm == "table":
            chosen = [torch.tensor([place + 1 for place in row] + [0]) for row in wanted]
            labels = pad_sequence(chosen, batch_first=True, padding_value=-100)
            loss = F.cross_entropy(
                table(points, F.pad(labels[:, :-1].clamp(min=0), (1, 0))).flatten(0, 1), labels.flatten()
            )
        else:
            states = torch.zeros(BATCH, STATE)
            targets = [{"indices": torch.tensor(row)} for row in wanted]
            term = pointer.loss(pointer(states, [1] * BATCH, contexts(points)), targets)
            loss = term.total / sum(len(row) + 1 for row in wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.eval()
    answer = table.choose if arm == "table" else lambda points: _pointed(pointer, points)
    rng = np.random.default_rng([seed, 2])
    exact, covered = _score(answer, rng, range(SMALLEST, LARGEST + 1))
    longer = (0.0, 0.0) if arm == "table" else _score(answer, rng, [LONGER])
    return {"exact": exact, "covered": covered, f"exact_{LONGER}": longer[0], f"covered_{LONGER}": longer[1]}


@torch.no_grad()
def _pointed(pointer: PointerHead, points: Sequence[Tensor]) -> list[list[int]]:
    given = contexts(points)
    results = pointer.decode(pointer(torch.zeros(len(points), STATE), [1] * len(points), given), given)
    return [list(result.indices) for result in results if isinstance(result, SelectionResult)]


def _score(answer: Answer, rng: np.random.Generator, counts: Sequence[int]) -> tuple[float, float]:
    """Share of exact hulls, and mean share of the hulls' areas."""
    exact, covered = list[bool](), list[float]()
    for count in counts:
        points, wanted = batch(rng, count)
        for item, found, right in zip(points, answer(points), wanted, strict=True):
            exact.append(found == right)
            covered.append(area(item.numpy(), found) / area(item.numpy(), right))
    return fmean(exact), fmean(covered)


DEMONSTRATION = Demonstration(
    paper=65,
    address="https://arxiv.org/abs/1506.03134",
    shows=f"convex hulls of {SMALLEST} to {LARGEST} points, and of {LONGER}, by pointing or from a table of positions",
    arms={
        "table": "sequence-to-sequence with attention over the points and a table of positions as outputs",
        "pointer": "the attention over the points is the output; points read by an LSTM, as in the paper",
        "pointer_attention": "the same, points read by two layers of self-attention",
        "untrained": "control: a pointer with random weights",
    },
    measure=measure,
    claims=[
        Claim(
            "pointing exceeds the table by .10 of exact hulls",
            lambda mean: mean("pointer", "exact") >= mean("table", "exact") + 0.1,
        ),
        Claim(
            f"on {LONGER} points, of which training saw at most {LARGEST}, pointing covers .90 of the area",
            lambda mean: (
                max(mean("pointer", f"covered_{LONGER}"), mean("pointer_attention", f"covered_{LONGER}")) >= 0.9
            ),
        ),
    ],
    controls={"random_weights": ("untrained", "exact")},
    controls_na={
        "blind": "without the points there is no hull",
        "constant": "no fixed answer is a hull of other points",
    },
)
