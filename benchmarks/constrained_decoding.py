"""What constrained decoding adds to a decode step.

The same decode loop over the same language model of random weights, with and without the constraint, in turn within
one process, greedily; no reply ends before its last step. Both arms get the same noise on their logits, and a bias that
makes control tokens frequent, so that replies are often within calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.arms import Outcome, Round, Watch, parser, write_result
from inference.choosing import DecodingOptions
from inference.decoding import Decoded, Start, decode
from inference.reading.fused import FusedReader
from models.language import LanguageModel
from routers.constraint import CallConstraint, never_sampled_mask
from routers.parser import parse
from routers.tasks import TaskSpec, TaskTable
from routers.vocabulary import Vocabulary, add_task_tokens

TABLE = TaskTable(
    (
        TaskSpec("ground", "boxes", "hidden", payload=("prompt", "regions")),
        TaskSpec("seg", "masks", "hidden", payload=("prompt", "regions", "results")),
        TaskSpec("draw", "image", "text", payload=("prompt",)),
        TaskSpec("edit", "image", "boxes", payload=("prompt", "regions", "results")),
        TaskSpec("cut", "clip", "text", payload=("prompt", "time_spans")),
        TaskSpec("classify", "nodes", "hidden", payload=("nodes",)),
    )
)


_NOISES = 16


@dataclass(frozen=True)
class Size:
    """A language model's size: its vocabulary without the table's tokens, and its layers."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int


SIZES = {
    "32k": Size(32_000, 768, 3072, 12, 12, 12),
    "49k": Size(49_152, 576, 1536, 30, 9, 3),
    "152k": Size(151_665, 896, 4864, 24, 14, 2),
}


class Noise:
    """Noise on logits that makes control tokens frequent and the end impossible; the same for both arms.

    Args:
        vocabulary: The control tokens.
        device: Where the logits lie.
    """

    def __init__(self, vocabulary: Vocabulary, device: torch.device) -> None:
        bias = torch.zeros(len(vocabulary.tokenizer))
        bias[sorted(vocabulary.control_ids)] = 4.0
        bias[vocabulary.eos_id] = -1e9
        generator = torch.Generator().manual_seed(0)
        self.values = (bias + torch.randn(_NOISES, len(bias), generator=generator)).to(device)
        self._steps = count()

    def __call__(self, logits: Tensor, states: Tensor, rows: Sequence[int]) -> Tensor:
        """The logits with it."""
        return logits + self.values[next(self._steps) % _NOISES]


def make_vocabulary(size: Size) -> Vocabulary:
    """Words w0, w1, ... and the table's tokens."""
    words = Tokenizer(
        WordLevel({f"w{index}": index for index in range(size.vocab_size - 1)} | {"<eos>": size.vocab_size - 1})
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    add_task_tokens(tokenizer, TABLE)
    return Vocabulary(tokenizer, TABLE)


def in_turn(name: str, arms: dict[str, Callable[[], list[Decoded]]], rounds: int, steps: int, outcome: Outcome) -> None:
    """Run arms in turn, the order changing from round to round, after one round to warm up."""
    versions = {package: version(package) for package in ("torch", "transformers")}
    for number in range(rounds + 1):
        order = list(arms.items())
        for arm, run in order if number % 2 else reversed(order):
            watch = Watch()
            decoded = run()
            seconds = (time.perf_counter() - watch.started) / steps
            assert all(len(item.token_ids) == steps for item in decoded), "a reply has ended before its last step"
            if number:
                values = {"step_ms": 1e3 * seconds, "versions": versions}
                outcome.rounds.append(Round(f"{name}/{arm}", number - 1, values, watch.foreign()))


@torch.no_grad()
def measure(size: Size, name: str, batches: list[int], rounds: int, steps: int, device: str, outcome: Outcome) -> int:
    """The arms "free" and "constrained" of one size; returns how many calls the constrained replies held."""
    vocabulary = make_vocabulary(size)
    config = {**vars(size), "vocab_size": len(vocabulary.tokenizer), "tie_word_embeddings": True}
    model = LanguageModel("llama", config).eval().to(device)
    noise = Noise(vocabulary, torch.device(device))
    banned = never_sampled_mask(vocabulary, len(vocabulary.tokenizer), device)
    generator = torch.Generator().manual_seed(0)
    options, stop, made = DecodingOptions(steps), [vocabulary.eos_id], 0
    for batch in batches:
        ids = torch.randint(0, 1000, (batch, 128), generator=generator).to(device)
        starts = [Start(model.embed(row)) for row in ids]
        names = [list(vocabulary.open_ids)] * batch

        def run(starts: list[Start], constraint: CallConstraint | None = None) -> list[Decoded]:
            return decode(
                FusedReader(model),
                starts,
                options,
                stop_ids=stop,
                never_sampled=banned,
                steer=noise,
                constraint=constraint,
            )

        def free(starts: list[Start] = starts) -> list[Decoded]:
            return run(starts)

        def constrained(starts: list[Start] = starts, names: list[list[str]] = names) -> list[Decoded]:
            return run(starts, CallConstraint(vocabulary, names))

        in_turn(f"{name}/batch{batch}", {"free": free, "constrained": constrained}, rounds, steps, outcome)
        for item in constrained():
            parsed = parse(item.token_ids, vocabulary)
            assert {error.kind for error in parsed.errors} <= {"unfinished"}, "a constrained reply is malformed"
            made += len(parsed.calls)
    return made


def main() -> int:
    """Run everything; returns the exit status."""
    made = parser("constrained_decoding", __doc__)
    made.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), help="vocabularies (all)")
    made.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="replies decoded together (1 8)")
    made.add_argument("--steps", type=int, default=32, help="tokens per reply (%(default)s)")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    args = made.parse_args()
    console, outcome = Console(), Outcome()
    for name in args.sizes:
        with console.status(f"vocabulary of {name}"):
            calls = measure(SIZES[name], name, args.batches, args.rounds, args.steps, args.device, outcome)
        console.print(f"{name}: {calls} well-formed calls in the constrained replies, none malformed")
    table, costs = Table("vocabulary / batch", "free, ms", "constrained, ms", "cost of the constraint"), {}
    for name in dict.fromkeys(arm.rpartition("/")[0] for arm in outcome.arms()):
        free, constrained = (outcome.median(f"{name}/{arm}", "step_ms") for arm in ("free", "constrained"))
        costs[name] = constrained / free - 1
        table.add_row(name, f"{free:.2f}", f"{constrained:.2f}", f"{costs[name]:+.1%}")
    console.print(table)
    fractions = {f"constraint_cost/{name}": cost for name, cost in costs.items()}
    write_result("constrained_decoding", outcome, {}, {**fractions, "constraint_cost": max(costs.values())}, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
