"""The training stream: which samples a step holds, how they are read, and how they leave a worker."""

from data.stream.parcels import Parcel, Slots
from data.stream.samples import Oversize, SampleSet, render_sample
from data.stream.steps import PackDataset, StepDataset

__all__ = ["Oversize", "PackDataset", "Parcel", "SampleSet", "Slots", "StepDataset", "render_sample"]
