"""Callbacks of a training run."""

from training.callbacks.full_precision import FullPrecision
from training.callbacks.resume_point import LAST_CHECKPOINT, ResumePoint, find_resume_point
from training.callbacks.throughput import Throughput

__all__ = ["LAST_CHECKPOINT", "FullPrecision", "ResumePoint", "Throughput", "find_resume_point"]
