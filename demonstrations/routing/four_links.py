"""Paper 36: what crosses from the language model to an expert head, four ways, on the same tasks at equal budget.

UnifiedMLLM (https://arxiv.org/abs/2408.02503) hands its experts text and boxes; LISA (https://arxiv.org/abs/2308.00692)
a hidden state; VisionLLM v2 (https://arxiv.org/abs/2406.08394) the states of learned queries. Here these are one
argument of the same heads: a scene of digits is given with an order, "cut out the red 7" or "make the 4 green", and the
language model writes a call, whose head cuts out or paints. Every arm has the same frozen image tower, language model,
data, order and number of steps, and the head's loss reaches the language model through states alone. Answers are
measured free-running, and once more with the reference's own calls, which leaves the link as the only bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from data.media import decode_mask, decode_media, decode_target
from data.packing import pack
from data.quickstart import images
from data.records import Message, Part, Record
from data.render import render
from data.shards import Sample, ShardWriter
from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.text_model import TextModel, fit, train
from eval.controls import zeroed
from eval.metrics.boxes import mask_iou
from eval.recogniser import recogniser, to_pixels
from inference.conversation import Conversation
from inference.session import Session
from layers.calls import ImageResult, MaskResult, Result
from layers.head import Head
from models.generalist import Generalist, load_tokenizer
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable

DATA_SEED = 0
TRAIN, TEST = 4000, 160
TOWER_STEPS, STEPS = 300, 320
WIDTH, FEATURES, QUERIES, BINS = 128, 64, 4, 64
BY_MUON = (
    r"^projectors\.",
    r"^heads\..*(layers|projection|query|key|condition|summarise|prompts\.layer)",
)
"""As in the quickstart: with AdamW alone projectors take several times as many steps to pass colours on."""
TOWER: dict[str, Any] = {
    "class_path": "encoders.vision.TimmEncoder",
    "init_args": {
        "model_name": "resnet10t",
        "image_size": 64,
        "stride": 4,
        "hidden_size": FEATURES,
        "out_indices": [1, 2, 3, 4],
        "model_args": {"channels": [32, 48, 64, 96]},
        "norm_groups": 8,
    },
}
LINKS: dict[str, dict[str, Any]] = {
    "text": {"link": "text"},
    "boxes": {"link": "boxes"},
    "hidden": {"link": "hidden"},
    "before": {"link": "hidden", "anchor_state": "before"},
    "queries": {"link": "queries", "num_queries": QUERIES},
}


@dataclass(frozen=True)
class SceneModel(TextModel):
    """A small language model that sees an image, and the two heads.

    Args:
        arm: Which of :data:`LINKS` they are called by.
    """

    arm: str = "hidden"

    def config(self, tokenizer: Path, vocab_size: int) -> dict[str, Any]:
        """Arguments of the Generalist."""
        crossing = {name: value for name, value in LINKS[self.arm].items() if name != "anchor_state"}
        sizes = {"state_size": self.hidden_size, "feature_size": FEATURES, "num_queries": 0, **crossing, "width": 64}
        masks = {**sizes, "channels": [32, 16, 8]}
        painter = {**sizes, "channels": [16, 32, 48], "num_steps": 4}
        projector = {"input_size": FEATURES, "output_size": self.hidden_size, "factor": 4, "num_layers": 2}
        return {
            **super().config(tokenizer, vocab_size),
            "tasks": table(self.arm).to_dict(),
            "encoders": {"image": TOWER},
            "projectors": {"image": {"class_path": "models.projectors.PixelShuffleProjector", "init_args": projector}},
            "heads": {
                "masks": {"class_path": "heads.masks.MaskHead", "init_args": masks},
                "image": {"class_path": "heads.image.FlowImageHead", "init_args": painter},
            },
        }


def table(arm: str) -> TaskTable:
    """The task table of an arm: both tasks by its link."""
    payload = ["prompt", "regions"] if arm == "boxes" else ["prompt"]
    shared = {"needs": ["image"], "payload": payload, **LINKS[arm]}
    tasks = [{"name": "seg", "head": "masks", **shared}, {"name": "edit", "head": "image", **shared}]
    return TaskTable.from_dict({"tasks": tasks, "num_bins": BINS})


def every_token() -> TaskTable:
    """A table with the tokens of every arm, so that they share a tokenizer."""
    made = table("queries")
    return replace(made, tasks=tuple(replace(task, payload=("prompt", "regions")) for task in made))


def asked(split: str, count: int) -> list[tuple[Record, dict[str, bytes]]]:
    """Orders of the quickstart, to cut out and to paint in turn."""
    makers: tuple[Callable[..., Any], ...] = (images.mask, images.edit)
    return [makers[index % 2](split, index // 2, DATA_SEED) for index in range(count)]


def with_region(record: Record) -> Record:
    """The same record with the box of the object that its call is about."""
    box = record.meta["objects"][record.meta["object"]]["box_xyxy"]
    region = {"type": "region", "box_xyxy": box}
    messages = [
        Message(turn.role, tuple(replace(p, groundings=(region,)) if p.type == "call" else p for p in turn.content))
        for turn in record.messages
    ]
    return replace(record, messages=tuple(messages))


def write_shards(folder: Path) -> None:
    """Training orders with regions and without, and scenes for the tower, unless they are there."""
    if list(folder.glob("*.tar")):
        return
    made = asked("train", TRAIN)
    for prefix, change in (("plain", lambda record: record), ("boxes", with_region)):
        with ShardWriter(folder, prefix, 5000) as writer:
            for record, members in made:
                writer.write(change(record), members)
    with ShardWriter(folder / "val", "scenes", 5000) as writer:
        for record, members in asked("val", 64):
            writer.write(record, members)


def prepare(shared: Path) -> tuple[Path, int, Path]:
    """What all arms share: shards, a tokenizer with its number of ids, and the tower."""
    write_shards(shared)
    tokenizer, tower = shared / "tokenizer", shared / "tower" / "tower.safetensors"
    if not (tokenizer / "tokenizer.json").is_file():
        words = [part.text + part.prompt for record, _ in asked("train", 400) for part in _parts(record)]
        save_tokenizer(train_tokenizer(words, 400, every_token()), tokenizer)
    if not tower.is_file():
        objective = {"class_path": "training.towers.scenes.DenseSceneObjective", "init_args": {"hidden_size": FEATURES}}
        recipe = {"encoder": TOWER, "objective": objective, "learning_rate": 3e-3, "warmup_steps": 40}
        data = {"train": str(shared / "plain-*.tar"), "val": str(shared / "val" / "scenes-*.tar"), "batch_size": 32}
        config = {
            "model": {"class_path": "training.towers.TowerRecipe", "init_args": recipe},
            "data": {"class_path": "training.towers.data.TowerData", "init_args": data},
        }
        fit(config, TOWER_STEPS, DATA_SEED, tower.parent)
    return tokenizer, len(load_tokenizer(tokenizer)), tower


def _parts(record: Record) -> list[Part]:
    return [part for turn in record.messages for part in turn.content]


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train one arm; how well its heads answer, free-running and given the reference's calls."""
    shared = folder.parent / "shared"
    tokenizer, vocab_size, tower = prepare(shared)
    prefix = "boxes" if arm == "boxes" else "plain"
    checkpoint = train(
        SceneModel(num_layers=3, arm=arm, max_tokens=1024, block="gemma3_text", by_muon=BY_MUON),
        tokenizer,
        vocab_size,
        {"sources": [{"path": str(shared / f"{prefix}-*.tar")}]},
        STEPS,
        seed,
        folder,
        [{"path": str(tower), "prefix": "encoders.image."}],
        [r"^language_model\.", r"^projectors\.", r"^heads\."],
    )
    samples = test_samples()
    session = Session.from_pretrained(str(checkpoint), max_new_tokens=32, batch_size=50)
    measured = {**free_running(session, samples), **given_calls(session.generalist, samples, arm == "boxes")}
    if arm == "hidden":
        measured |= controls(session, samples)
    return measured


@cache
def test_samples() -> list[Sample]:
    """Held-out orders: phrasings, scans and scenes that training never saw."""
    return [Sample(record.key, record, members) for record, members in asked("test", TEST)]


def conversation(sample: Sample, image_of: Sample | None = None) -> Conversation:
    """What is asked, of the sample's own image or another's."""
    source = image_of or sample
    media = {name: decode_media(item, source.members[item.file]) for name, item in source.record.media.items()}
    return Conversation.from_record(sample.record, media)


def free_running(session: Session, samples: Sequence[Sample], **options: Any) -> Metrics:
    """The model writes its calls itself; what does not parse, or is another task's, counts nothing."""
    replies = session.generate([conversation(sample) for sample in samples], **options)
    results, right_words = [], []
    for sample, reply in zip(samples, replies, strict=True):
        (wanted,) = (part for part in _parts(sample.record) if part.type == "call")
        called = [call for call in reply.calls if call.task == wanted.task]
        right_words.append(float(len(reply.calls) == 1 and bool(called) and called[0].prompt == wanted.prompt))
        results.append(reply.results[0] if len(reply.results) == 1 else None)
    return {**scores(samples, results), "words": fmean(right_words)}


@torch.inference_mode()
def given_calls(generalist: Generalist, samples: Sequence[Sample], regions: bool) -> Metrics:
    """The heads' answers to the reference's calls, by the states that the model has over them."""
    plan, results = generalist.plan(), list[Result | None]()
    for sample in samples:
        record = with_region(sample.record) if regions else sample.record
        media = {name: decode_media(item, sample.members[item.file]) for name, item in record.media.items()}
        targets = {name: _target(sample, name) for name in record.targets}
        batch = pack([render(record, media, plan, targets)], plan)
        ((name, calls),) = batch.calls.items()
        encoded = generalist.encode_media(batch.media)
        embeds = generalist.embed(batch.input_ids[0])
        embeds = generalist.place(embeds, batch.media["image"].positions, encoded["image"].projected)
        states = generalist.language_model(embeds[None], batch.position_ids, batch.segment_lengths)
        head, contexts = generalist.heads[name], generalist.head_contexts(calls, batch.media, encoded)
        assert isinstance(head, Head)
        crossing = generalist.head_states([item.call for item in calls], states, batch.input_ids[0])
        results += head.decode(head(crossing, [len(item.call.state_positions) for item in calls], contexts), contexts)
    return {f"{name}_given": value for name, value in scores(samples, results).items()}


def controls(session: Session, samples: Sequence[Sample]) -> Metrics:
    """Of the arm ``hidden``: another's image, features of zeros, and the mask that most training orders want."""
    cut = [sample for sample in samples if sample.record.messages[-1].content[0].task == "seg"]
    donors = cut[1:] + cut[:1]
    asked_of_others = [conversation(sample, donor) for sample, donor in zip(cut, donors, strict=True)]
    replies = session.generate(asked_of_others)
    shuffled = [reply.results[0] if len(reply.results) == 1 else None for reply in replies]
    wanted = torch.stack([_target(sample, "t0") for sample in cut])
    share = torch.stack([decode_mask(record.targets["t0"].value) for record, _ in asked("train", 400)[::2]]).float()
    options = [share.mean(0) >= level * share.mean(0).max() for level in (0.1, 0.3, 0.5, 0.7, 0.9)]
    return {
        "shuffled": scores(cut, shuffled)["mask_giou"],
        "zeroed": free_running(session, cut, feature_transform=zeroed)["mask_giou"],
        "constant": max(fmean(mask_iou(option, mask) for mask in wanted) for option in options),
    }


def scores(samples: Sequence[Sample], results: Sequence[Result | None]) -> Metrics:
    """``mask_giou`` over the orders to cut out, ``edit_right`` and ``edit_colour`` over those to paint."""
    masks, edits, colours = list[float](), list[float](), list[float]()
    judge = recogniser(DATA_SEED)[0]
    for sample, result in zip(samples, results, strict=True):
        wanted = _target(sample, "t0")
        if wanted.ndim == 2:
            masks.append(mask_iou(result.mask, wanted) if isinstance(result, MaskResult) else 0.0)
        elif isinstance(result, ImageResult):
            meta = sample.record.meta
            before = decode_media(sample.record.media["image"], sample.members["image.png"])
            assert isinstance(before, Tensor)
            mask = decode_mask(meta["objects"][meta["object"]]["mask"]).numpy()
            after = to_pixels(result.image)
            verdict = judge.judge_edit(to_pixels(before), after, mask, int(meta["digit"]), str(meta["new_colour"]))
            edits.append(float(verdict.right))
            colours.append(float(verdict.colour and verdict.untouched))
        else:
            edits.append(0.0)
            colours.append(0.0)
    found = {"mask_giou": masks, "edit_right": edits, "edit_colour": colours}
    return {name: fmean(values) for name, values in found.items() if values}


def _target(sample: Sample, name: str) -> Any:
    target = sample.record.targets[name]
    return decode_target(target, sample.members[target.file] if target.file else None)


DEMONSTRATION = Demonstration(
    paper=36,
    address="https://arxiv.org/abs/2408.02503",
    shows="masks and edits of scenes by heads that get text, text and boxes, a hidden state, or states of queries",
    arms={
        "text": "the prompt's words, read by a text encoder of the head's own; no gradient to the language model",
        "boxes": "the same, and the box that the language model writes; no gradient to the language model",
        "hidden": "the state at the anchor, with gradient",
        "before": "the state before the anchor, which predicts it, with gradient",
        "queries": f"the states of {QUERIES} learned queries after the anchor, with gradient",
    },
    measure=measure,
    claims=[
        Claim(
            "given the calls, every link cuts out better than one mask for all, by .1 gIoU",
            lambda mean: all(mean(arm, "mask_giou_given") >= mean("hidden", "constant") + 0.1 for arm in LINKS),
        ),
        Claim(
            "by a hidden state, another's image costs .1 gIoU at least",
            lambda mean: mean("hidden", "mask_giou") - 0.1 >= mean("hidden", "shuffled"),
        ),
    ],
    controls={
        "shuffled": ("hidden", "shuffled"),
        "zeroed": ("hidden", "zeroed"),
        "constant": ("hidden", "constant"),
    },
    controls_na={
        "blind": "without an image neither task can be called",
        "random_weights": "a model that was never trained writes no call",
    },
)
