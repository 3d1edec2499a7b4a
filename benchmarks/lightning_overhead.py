"""What Lightning's trainer costs over a loop of our own: the same steps, to the same weights."""

from __future__ import annotations

from rich.console import Console

from benchmarks.arms import Arm, parser, run_arms, show, write_result

ARMS = ("plain", "lightning")


def main() -> int:
    """Measure, print a table and write the result; status 1 if the arms end with other weights."""
    given = parser("lightning_overhead", __doc__)
    given.add_argument("--steps", type=int, default=40, help="steps per arm and round, five of them to warm up")
    given.add_argument("--tokens", type=int, default=1024, help="tokens of a step")
    args = given.parse_args()
    console = Console()
    size = ("--steps", str(args.steps), "--tokens", str(args.tokens))
    outcome = run_arms([Arm(name, "steps/loop.py", (name, *size)) for name in ARMS], args.rounds, console)
    show(outcome, ["milliseconds_per_step"], console)
    ends = {item.values["sum_of_weights"] for item in outcome.rounds}
    plain, lightning = (outcome.median(name, "milliseconds_per_step") for name in ARMS)
    write_result(
        "lightning_overhead", outcome, {"plain": plain / lightning}, {"overhead": lightning / plain - 1}, args.json
    )
    console.print(f"Lightning's overhead: {lightning / plain - 1:+.1%} ({lightning - plain:+.1f} ms per step)")
    if len(ends) > 1:
        console.print(f"the arms end with other weights: {sorted(ends)}")
    return int(len(ends) > 1)


if __name__ == "__main__":
    raise SystemExit(main())
