"""The training stream: which samples a step holds, how they are read, and how they leave a worker."""

from data.stream.loading import EvalLoader, StepLoader
from data.stream.parcels import Parcel, Slots
from data.stream.samples import SampleSet, render_sample
from data.stream.splitting import Oversize
from data.stream.steps import PackDataset, StepDataset
from data.stream.streaming import Streaming, StreamingSteps

__all__ = [
    "EvalLoader",
    "Oversize",
    "PackDataset",
    "Parcel",
    "SampleSet",
    "Slots",
    "StepDataset",
    "StepLoader",
    "Streaming",
    "StreamingSteps",
    "render_sample",
]
