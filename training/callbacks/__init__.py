"""Callbacks of a training run."""

from training.callbacks.full_precision import FullPrecision
from training.callbacks.profile import ProfileSteps
from training.callbacks.progress import StepProgress
from training.callbacks.resume_point import LAST_CHECKPOINT, ResumePoint, find_resume_point
from training.callbacks.sample_predictions import SamplePredictions
from training.callbacks.throughput import Throughput

__all__ = [
    "LAST_CHECKPOINT",
    "FullPrecision",
    "ProfileSteps",
    "ResumePoint",
    "SamplePredictions",
    "StepProgress",
    "Throughput",
    "find_resume_point",
]
