"""A run as a list of phases, each a few command lines with a stamp: one that stopped continues where it was."""

from training.phases.plan import Phase, clock, fingerprints
from training.phases.runner import PhaseFailedError, PhaseInterruptedError, run_phases
from training.phases.stamps import Stamps, locked

__all__ = [
    "Phase",
    "PhaseFailedError",
    "PhaseInterruptedError",
    "Stamps",
    "clock",
    "fingerprints",
    "locked",
    "run_phases",
]
