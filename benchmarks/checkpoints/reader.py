"""One way of reading a checkpoint, timed in a process of its own: prints its seconds and the memory it took.

Every parameter is read once after loading, so that what a loader only maps from the file counts too.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from models.checkpoint import file_sha256, load_checkpoint


def ours(directory: Path, verify: bool) -> Iterable[Tensor]:
    """A checkpoint directory of ours."""
    return load_checkpoint(directory, verify=verify).parameters()


def theirs(directory: Path) -> Iterable[Tensor]:
    """The same tensors as transformers stores them."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, use_safetensors=True, dtype="auto").parameters()


def hashed(directory: Path) -> Iterable[Tensor]:
    """Nothing but the sha256 of every file."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            file_sha256(path)
    return []


WAYS: dict[str, Callable[[Path], Iterable[Tensor]]] = {
    "ours": lambda folder: ours(folder / "ours", verify=False),
    "ours-verified": lambda folder: ours(folder / "ours", verify=True),
    "transformers": lambda folder: theirs(folder / "theirs"),
    "sha256": lambda folder: hashed(folder / "ours"),
}


def main() -> None:
    """Read once to have everything imported and the file in the page cache, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--way", choices=sorted(WAYS), required=True)
    args = parser.parse_args()
    WAYS[args.way](args.folder / "small")
    hashed(args.folder / "ours"), hashed(args.folder / "theirs")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    total = sum(float(parameter.view(-1).sum()) for parameter in WAYS[args.way](args.folder))
    seconds = time.perf_counter() - started
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    versions = {name: version(name) for name in ("torch", "transformers", "safetensors")}
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "total": total, "versions": versions}))


if __name__ == "__main__":
    main()
