"""``python -m benchmarks.environments``: a virtual environment per rival, below ``benchmarks/.environments``.

Each sees the packages of this one, so that torch is installed once and every arm decodes with the same; what a rival
brings itself lies in front. One that is there already, of the same versions, is left as it is.
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
    "litdata": (("litdata==0.2.76",),),
    "mosaicml": (
        ("--no-deps", "mosaicml-streaming==0.13.0"),
        ("--no-deps", "xxhash<4", "zstd", "Brotli", "python-snappy", "cramjam", "tqdm", "catalogue"),
    ),
    "energon": (("megatron-energon==7.4.1",),),
    "trl": (("trl==1.16.0",),),
}
_STAMP = "made-of"


def make(name: str) -> Path:
    """Make one environment, unless it is there; returns its folder.

    Raises:
        subprocess.CalledProcessError: If a package cannot be installed.
    """
    folder, ours = ENVIRONMENTS / name, sysconfig.get_path("purelib")
    facts = f"{sys.version}\n{ours}\n{PACKAGES[name]}\n"
    stamp = folder / _STAMP
    if stamp.is_file() and stamp.read_text() == facts:
        return folder
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    Path(place.stdout.strip(), "this-environment.pth").write_text(f"{ours}\n")
    for packages in PACKAGES[name]:
        subprocess.run([python, "-m", "pip", "install", "--disable-pip-version-check", "-q", *packages], check=True)
    stamp.write_text(facts)
    return folder


def main() -> int:
    """Make those that are asked for; status 1 if none could be made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.environments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(PACKAGES)} (all)")
    names = parser.parse_args().names or list(PACKAGES)
    unknown = sorted(set(names) - set(PACKAGES))
    if unknown:
        parser.error(f"expected some of {list(PACKAGES)}, got {unknown}")
    failed = []
    for name in names:
        try:
            print(f"{name}: {make(name)}", flush=True)
        except subprocess.CalledProcessError as error:
            print(f"{name}: cannot be made, status {error.returncode} of {error.cmd[-1]}", file=sys.stderr, flush=True)
            failed.append(name)
    return 1 if len(failed) == len(names) else 0


if __name__ == "__main__":
    sys.exit(main())
