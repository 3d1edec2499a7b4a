"""``python -m benchmarks.environments``: a virtual environment per rival, below ``benchmarks/.environments``.

Each sees the packages of this one, so that torch is installed once and every arm decodes with the same; what a rival
brings itself lies in front.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from benchmarks.arms import ENVIRONMENTS

# mosaicml-streaming pins transformers below 5 and clients of every cloud: what it needs for local shards stands here.
PACKAGES: dict[str, tuple[tuple[str, ...], ...]] = {
    "litdata": (("litdata",),),
    "mosaicml": (
        ("--no-deps", "mosaicml-streaming"),
        ("xxhash", "zstd", "Brotli", "python-snappy", "tqdm", "catalogue"),
    ),
    "energon": (("megatron-energon",),),
}


def make(name: str) -> Path:
    """Make one environment; returns its folder.

    Raises:
        subprocess.CalledProcessError: If a package cannot be installed.
    """
    folder = ENVIRONMENTS / name
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    Path(place.stdout.strip(), "this-environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for packages in PACKAGES[name]:
        subprocess.run([python, "-m", "pip", "install", "--disable-pip-version-check", "-q", *packages], check=True)
    return folder


def main() -> int:
    """Make those that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.environments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(PACKAGES)} (all)")
    names = parser.parse_args().names or list(PACKAGES)
    unknown = sorted(set(names) - set(PACKAGES))
    if unknown:
        parser.error(f"expected some of {list(PACKAGES)}, got {unknown}")
    for name in names:
        print(f"{name}: {make(name)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
