"""The Lightning data module: packed steps for training, fixed packs for validation."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from rich.progress import track

from data.features import FeatureLookup
from data.index import ShardReader, ensure_index, ensure_lengths
from data.mixtures import Mixture, PackSchedule, Source
from data.quarantine import Quarantine
from data.shards import expand
from data.stream import EvalLoader, Oversize, SampleSet, StepDataset, StepLoader, Streaming, StreamingSteps
from data.stream.samples import shards_of
from models.plan import BatchPlan

Reading = Literal["indexed", "streaming"]
_STREAMING_GRACE = 20
_SOURCES, _VAL = "data.init_args.sources", "data.init_args.val_sources"


class PackedDataModule(LightningDataModule):
    """Delivers :class:`layers.batch.Step`: the packs of one optimizer step with their loss counts.

    The training stream is endless, so give the trainer ``max_steps``, unless the mixture has a budget. What step s
    holds depends on the seed, the data and s alone: not on the number of worker processes, nor on the number of
    processes that train, which share a step's packs. So a resumed run continues exactly where it stopped, also on
    another machine. A bad sample is left out and written down.

    That is the promise of ``reading="indexed"``: every shard is indexed once, samples are shuffled over all shards, and
    any step is found without reading what comes before. ``reading="streaming"`` reads shards front to back, as remote
    ones want it (:mod:`data.stream.streaming`): weights are then shares of the samples, the order depends on
    the number of workers and processes, and a run is resumed with the same numbers only.

    Args:
        sources: Training sources.
        mixture: How they are mixed; by default each by its weight, all in one.
        max_tokens: Tokens that a pack may hold.
        packs_per_step: Packs per optimizer step, over all processes.
        num_workers: Worker processes that read, decode and render; 0 does it in the training process.
        seed: Seed of the order.
        val_sources: Validation sources; their packs come in a fixed order.
        plan: The model's plan; ``train.py`` links it.
        quarantine: Bad samples are appended to this JSON Lines file; by default ``quarantine.jsonl`` under the
            trainer's root.
        max_quarantined: Share of the samples that may be bad before the run ends.
        oversize: "error", "split" (between the turns of a dialogue) or "quarantine", for a sample longer than
            ``max_tokens``.
        cache: Keep rendered samples in memory, for small data that is read many times.
        max_media_cost: Work of the encoders that a pack may hold, in tokens that cost the language model as much;
            None balances it between packs without a limit. A sample with more shares its pack with text alone.
        slot_mib: Room for one step in the memory that workers share with the trainer, in MiB; a larger step takes
            memory of its own, and with 0 every step does.
        reading: "indexed" or "streaming", for the training sources; validation is always indexed.
        static_shapes: Fill every pack to ``max_tokens`` with one segment of padding, so that all have one shape, as
            compiled graphs want it, and CPU kernels that are made for a shape at its first use.
        shuffle_buffer: Streaming only: samples among which the next one is drawn, per source and worker.

    Attributes:
        features: Puts into packs what frozen encoders gave before; a recipe sets it before the first loader is made.
    """

    def __init__(
        self,
        sources: list[Source],
        mixture: Mixture | None = None,
        max_tokens: int = 4096,
        packs_per_step: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        val_sources: list[Source] | None = None,
        plan: BatchPlan | None = None,
        quarantine: str | None = None,
        max_quarantined: float = 0.05,
        oversize: Oversize = "error",
        cache: bool = False,
        max_media_cost: int | None = None,
        slot_mib: int = 256,
        reading: Reading = "indexed",
        shuffle_buffer: int = 1000,
        static_shapes: bool = False,
    ) -> None:
        super().__init__()
        if not sources:
            raise ValueError("sources: expected at least one, got none")
        if max_tokens < 1 or packs_per_step < 1:
            raise ValueError(f"expected max_tokens and packs_per_step >= 1, got {max_tokens} and {packs_per_step}")
        self.sources, self.val_sources = sources, val_sources or []
        self.mixture = mixture or Mixture()
        self.max_tokens, self.packs_per_step = max_tokens, packs_per_step
        self.num_workers, self.seed = num_workers, seed
        self.plan = plan
        self.quarantine_path, self.max_quarantined = quarantine, max_quarantined
        self.oversize, self.cache = oversize, cache
        self.max_media_cost, self.slot_mib = max_media_cost, slot_mib
        self.reading, self.shuffle_buffer = reading, shuffle_buffer
        self.features: FeatureLookup | None = None
        self.pad_to = max_tokens if static_shapes else None
        self._train: SampleSet | None = None
        self._val: SampleSet | None = None
        self._step = 0
        self._schedule: PackSchedule | None = None
        self._position: dict[str, Any] | None = None

    def set_plan(self, plan: BatchPlan) -> None:
        """Set the model's plan, before the first loader is asked for."""
        self.plan, self._train, self._val = plan, None, None

    def prepare_data(self) -> None:
        """Index shards that have no index yet, and measure their samples, once per machine."""
        indexed = self.sources if self.reading == "indexed" else []
        paths = [
            path
            for key, sources in ((_SOURCES, indexed), (_VAL, self.val_sources))
            for number, source in enumerate(sources)
            for path in shards_of(source, f"{key}[{number}]")
        ]
        reader = ShardReader()
        for path in track(paths, "indexing shards", transient=True, disable=not sys.stderr.isatty()):
            index = ensure_index(path)
            if self.plan is not None:
                ensure_lengths(index, self.plan, reader)

    def setup(self, stage: str) -> None:
        """Look at what is there before a model is loaded for it: too long samples, sources without any."""
        if stage == "fit" and self.reading == "indexed":
            self.train_samples()
        if self.val_sources:
            self.val_samples()

    @property
    def next_step(self) -> int:
        """The step that the training stream continues with."""
        if self.trainer is not None:
            total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
            return int(total.processed)
        return self._step

    @next_step.setter
    def next_step(self, step: int) -> None:
        self._step = step

    @property
    def data_hashes(self) -> dict[str, str]:
        """Shard -> fingerprint, of the shards in use; streamed ones are named without."""
        sets = [item for item in (self._train, self._val) if item is not None]
        hashes = {path: value for item in sets for path, value in item.data_hashes.items()}
        if self.reading == "streaming":
            hashes |= {path: "streamed" for source in self.sources for path in expand(source.path)}
        return hashes

    def train_samples(self) -> SampleSet:
        """The training samples under the plan."""
        if self._train is None:
            self._train = self._open(self.sources, _SOURCES)
        return self._train

    def val_samples(self) -> SampleSet:
        """The validation samples under the plan."""
        if self._val is None:
            self._val = self._open(self.val_sources, _VAL)
        return self._val

    def train_dataloader(self) -> StepLoader:
        """The stream of steps, from :attr:`next_step` on."""
        rank, world_size = self._ranks()
        if self.reading == "streaming":
            steps = StreamingSteps(self._streaming(), rank, world_size)
            quarantine = Quarantine(self._quarantine_path(), 0, self.max_quarantined, _STREAMING_GRACE)
            return StepLoader(steps, self, quarantine, self.num_workers, self.slot_mib, self.features)
        samples = self.train_samples()
        self._schedule = PackSchedule(
            samples.source_of,
            samples.lengths,
            self.sources,
            self.max_tokens,
            self.seed,
            self.mixture,
            self.packs_per_step,
            samples.costs,
            self.max_media_cost,
        )
        if self._position is not None:
            self._schedule.seek(self._position)
        dataset = StepDataset(samples, self._schedule, self.packs_per_step, rank, world_size)
        return StepLoader(dataset, self, self._quarantine(samples), self.num_workers, self.slot_mib, self.features)

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """Every validation pack once, one per step, split over the processes."""
        if not self.val_sources:
            return []
        samples = self.val_samples()
        rank, world_size = self._ranks()
        quarantine = self._quarantine(samples)
        return EvalLoader(samples, quarantine, self.num_workers, rank, world_size, self.features)

    def state_dict(self) -> dict[str, Any]:
        """The next step, where its round of the mixture begins, and what its content depends on."""
        step, schedule = self.next_step, self._schedule
        position = schedule.position(step * self.packs_per_step) if schedule is not None else None
        return {"next_step": step, "position": position, "order": self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a run.

        Raises:
            ValueError: If the steps of this configuration are not those of the interrupted run.
        """
        order = self._order()
        changed = {
            name: (value, order.get(name)) for name, value in state_dict["order"].items() if order.get(name) != value
        }
        if changed:
            told = ", ".join(f"{name}: expected {old}, got {new}" for name, (old, new) in changed.items())
            raise ValueError(f"the interrupted run's data order cannot be continued: {told}")
        self.next_step, self._position = state_dict["next_step"], state_dict["position"]

    def _order(self) -> dict[str, Any]:
        shares = [[source.weight, source.tasks, source.where, source.max_samples] for source in self.sources]
        order: dict[str, Any] = {
            "reading": self.reading,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "packs_per_step": self.packs_per_step,
            "max_media_cost": self.max_media_cost,
            "oversize": self.oversize,
            "plan": self._known_plan().hash,
        }
        if self.reading == "indexed":
            shards = list(self.train_samples().data_hashes.values())
        else:
            shards = [path for source in self.sources for path in expand(source.path)]
            world_size = self._ranks()[1]
            order |= {"workers": max(1, self.num_workers), "processes": world_size, "buffer": self.shuffle_buffer}
        facts = json.dumps([shards, shares, asdict(self.mixture)])
        return {**order, "data": hashlib.sha256(facts.encode()).hexdigest()[:16]}

    def _known_plan(self) -> BatchPlan:
        if self.plan is None:
            raise ValueError("data: expected the model's plan, got none; link it or call set_plan first")
        return self.plan

    def _streaming(self) -> Streaming:
        return Streaming(
            self.sources,
            self._known_plan(),
            self.mixture,
            self.max_tokens,
            self.max_media_cost,
            self.packs_per_step,
            self.seed,
            self.oversize,
            self.shuffle_buffer,
            self.pad_to,
        )

    def _open(self, sources: Sequence[Source], key: str) -> SampleSet:
        samples = SampleSet(sources, self._known_plan(), self.max_tokens, self.oversize, self.cache, self.pad_to, key)
        for number, source in enumerate(sources):
            if source.weight and not (samples.source_of == number).any():
                reason = samples.bad[-1].reason
                raise ValueError(f"{key}[{number}] '{source.title}': expected usable samples, got none; one: {reason}")
        return samples

    def _quarantine(self, samples: SampleSet) -> Quarantine:
        quarantine = Quarantine(self._quarantine_path(), samples.num_samples, self.max_quarantined)
        quarantine.add(samples.bad)
        return quarantine

    def _quarantine_path(self) -> str | None:
        if self.quarantine_path is None and self.trainer is not None:
            return str(Path(self.trainer.default_root_dir) / "quarantine.jsonl")
        return self.quarantine_path

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
