"""Callbacks of a training run."""

from training.callbacks.full_precision import FullPrecision
from training.callbacks.resume_point import LAST_CHECKPOINT, ResumePoint
from training.callbacks.throughput import Throughput

__all__ = ["LAST_CHECKPOINT", "FullPrecision", "ResumePoint", "Throughput"]
