"""A tiny Generalist with every modality and head, and records that use them all."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from data.media import RawMedia, encode_flac, encode_graph, encode_mask, encode_png
from data.records import Media, Message, Part, Record, Target
from data.render import Rendered, render
from data.shards import ShardWriter
from layers.media import Audio, Graph
from models.build import build_generalist
from models.generalist import Generalist
from models.plan import BatchPlan
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable

WORDS = "where is the red 7 ? cut out draw a blue 4 make it green what family does module belong to say hello yes no"
TASKS: dict[str, Any] = {
    "num_bins": 64,
    "max_nodes": 16,
    "tasks": [
        {"name": "ground", "head": "boxes", "needs": ["image"], "payload": ["prompt", "regions"]},
        {"name": "seg", "head": "masks", "needs": ["image"], "payload": ["prompt"], "prompt_tokens": "states"},
        {
            "name": "draw",
            "head": "image",
            "link": "queries",
            "num_queries": 2,
            "payload": ["prompt"],
            "prompt_tokens": "embeddings",
        },
        {
            "name": "edit",
            "head": "image",
            "link": "queries",
            "num_queries": 2,
            "needs": ["image"],
            "payload": ["prompt", "regions"],
        },
        {"name": "node_class", "head": "node_class", "needs": ["graph"], "payload": []},
        {"name": "link", "head": "link", "needs": ["graph", "graph"], "payload": []},
    ],
}
STATE = {"state_size": 32}
CONFIG: dict[str, Any] = {
    "tasks": TASKS,
    "language_model": {
        "model_type": "llama",
        "config": {
            "vocab_size": 640,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
        },
    },
    "encoders": {
        "image": {
            "class_path": "encoders.vision.TimmEncoder",
            "init_args": {
                "model_name": "resnet10t",
                "image_size": 32,
                "stride": 4,
                "hidden_size": 16,
                "out_indices": [1, 2],
                "norm_groups": 4,
            },
        },
        "audio": {
            "class_path": "encoders.speech.SpeechEncoder",
            "init_args": {
                "whisper": {
                    "d_model": 16,
                    "encoder_layers": 1,
                    "encoder_attention_heads": 2,
                    "encoder_ffn_dim": 32,
                    "max_source_positions": 100,
                    "num_mel_bins": 20,
                    "decoder_layers": 1,
                }
            },
        },
        "graph": {
            "class_path": "encoders.graph.GraphTransformerEncoder",
            "init_args": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "text_width": 32, "max_nodes": 16},
        },
    },
    "projectors": {
        "image": {
            "class_path": "models.projectors.PixelShuffleProjector",
            "init_args": {"input_size": 16, "output_size": 32, "factor": 4},
        },
        "audio": {
            "class_path": "models.projectors.FrameStackProjector",
            "init_args": {"input_size": 16, "output_size": 32, "factor": 4},
        },
        "graph": {
            "class_path": "models.projectors.MLPProjector",
            "init_args": {"input_size": 16, "output_size": 32},
        },
    },
    "heads": {
        "boxes": {
            "class_path": "heads.boxes.BoxHead",
            "init_args": STATE | {"feature_size": 16, "width": 16, "num_layers": 1, "num_heads": 2},
        },
        "masks": {
            "class_path": "heads.masks.MaskHead",
            "init_args": STATE
            | {"feature_size": 16, "width": 16, "num_layers": 1, "num_heads": 2, "channels": [8, 8, 8]},
        },
        "image": {
            "class_path": "heads.image.FlowImageHead",
            "init_args": STATE
            | {
                "feature_size": 16,
                "num_queries": 2,
                "canvas_size": [16, 16],
                "channels": [32, 32, 32],
                "num_steps": 2,
            },
        },
        "node_class": {
            "class_path": "heads.graph.NodeClassHead",
            "init_args": STATE
            | {"feature_size": 16, "classes": ["xml", "json"], "width": 16, "num_heads": 2, "dropout": 0.0},
        },
        "link": {
            "class_path": "heads.graph.LinkHead",
            "init_args": STATE | {"feature_size": 16, "width": 16, "num_heads": 2, "dropout": 0.0},
        },
    },
}


def tiny_tokenizer(directory: Path) -> str:
    """A tokenizer directory for the tiny task table."""
    tokenizer = train_tokenizer([WORDS, json.dumps(WORDS)], 400, TaskTable.from_dict(TASKS))
    save_tokenizer(tokenizer, directory)
    return str(directory)


def tiny_config(directory: Path) -> dict[str, Any]:
    """A configuration of the tiny Generalist, with its tokenizer under ``directory``."""
    if not (directory / "tokenizer").exists():
        tiny_tokenizer(directory / "tokenizer")
    return {"tokenizer": str(directory / "tokenizer"), **copy.deepcopy(CONFIG)}


def tiny_generalist(directory: Path, seed: int = 0) -> Generalist:
    """The tiny Generalist with random weights."""
    torch.manual_seed(seed)
    return build_generalist(tiny_config(directory))


def raw_media(seed: int = 0) -> dict[str, RawMedia]:
    """One image of 32x32, one clip of 0.31 s and two graphs."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    return {
        "scene": torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=generator),
        "clip": Audio(torch.randn(5000, generator=generator) * 0.1, 16000),
        "first": Graph(("reads json", "writes", "parses"), edges),
        "second": Graph(("a server", "http", "sockets", "ssl"), edges),
    }


MEDIA = {
    "scene": Media("image", "scene.png", (32, 32)),
    "clip": Media("audio", "clip.flac", (5000,), 16000),
    "first": Media("graph", "first.json", (3,)),
    "second": Media("graph", "second.json", (4,)),
}


def sample(name: str) -> tuple[Record, dict[str, Any]]:
    """A record by kind ("text", "box", "mask", "draw", "edit", "audio", "node", "link", "two") and its targets."""

    def say(text: str) -> Part:
        return Part("text", text=text)

    def call(task: str, prompt: str = "", target: str | None = "t0", box: list[float] | None = None) -> Part:
        groundings = ({"type": "region", "box_xyxy": box},) if box else ()
        return Part("call", task=task, prompt=prompt, groundings=groundings, target=target)

    box, scene = [4.0, 6.0, 20.0, 25.0], Part("image", media="scene")
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[6:25, 4:20] = True
    picture = torch.full((3, 32, 32), 90, dtype=torch.uint8)
    two = [call("seg", "red 7"), call("draw", "blue 4", "t1")]
    users = {
        "text": [say("say hello")],
        "box": [scene, say("where is the red 7?")],
        "mask": [scene, say("cut out the red 7")],
        "draw": [say("draw a blue 4")],
        "edit": [scene, say("make the 7 green")],
        "audio": [Part("audio", media="clip"), say("what is it?")],
        "node": [Part("graph", media="first"), say("what family?")],
        "link": [Part("graph", media="first"), Part("graph", media="second"), say("does it?")],
        "two": [scene, say("cut out the red 7 and draw a blue 4")],
    }
    answers = {
        "text": [say("hello hello")],
        "box": [call("ground", "red 7", box=box)],
        "mask": [call("seg", "red 7")],
        "draw": [call("draw", "blue 4")],
        "edit": [call("edit", "7 green", box=box)],
        "audio": [say("yes")],
        "node": [call("node_class")],
        "link": [call("link")],
        "two": two,
    }
    values: dict[str, dict[str, Any]] = {
        "box": {"t0": box},
        "mask": {"t0": mask},
        "draw": {"t0": picture[:, :16, :16]},
        "edit": {"t0": picture},
        "node": {"t0": "json"},
        "link": {"t0": 1.0},
        "two": {"t0": mask, "t1": picture[:, :16, :16]},
    }
    kinds = {"box": "box", "mask": "mask", "draw": "image", "edit": "image", "node": "label", "link": "score"}
    used = {part.media for part in users[name] if part.media}
    record = Record(
        key=f"{name}-0",
        task=name,
        source="tests",
        license="CC0-1.0",
        split="train",
        messages=(Message("user", tuple(users[name])), Message("assistant", tuple(answers[name]))),
        media={key: MEDIA[key] for key in MEDIA if key in used},
        targets={key: Target(kinds.get(name, "mask"), value="given") for key in values.get(name, {})},
    )
    return record, values.get(name, {})


SAMPLES = ("text", "box", "mask", "draw", "edit", "audio", "node", "link", "two")


def rendered(name: str, plan: BatchPlan, seed: int = 0) -> Rendered:
    """A rendered sample of one kind."""
    record, targets = sample(name)
    media = {key: value for key, value in raw_media(seed).items() if key in record.media}
    return render(record, media, plan, targets)


def write_shard(directory: Path, names: tuple[str, ...] = SAMPLES, copies: int = 2) -> Path:
    """A shard with ``copies`` records of each kind, their media and targets as members."""
    with ShardWriter(directory, "tiny") as writer:
        for number in range(copies):
            raw = raw_media(number)
            encoded = {
                "scene.png": encode_png(raw["scene"]),
                "clip.flac": encode_flac(raw["clip"].waveform),
                "first.json": encode_graph(raw["first"]),
                "second.json": encode_graph(raw["second"]),
            }
            for name in names:
                record, values = sample(name)
                targets, members = {}, {item.file: encoded[item.file] for item in record.media.values()}
                for key, value in values.items():
                    kind = "image" if isinstance(value, torch.Tensor) and value.ndim == 3 else record.targets[key].type
                    if kind == "image":
                        members[f"{key}.png"] = encode_png(value)
                        targets[key] = Target("image", file=f"{key}.png")
                    else:
                        targets[key] = Target(kind, value=encode_mask(value) if kind == "mask" else value)
                writer.write(replace(record, key=f"{name}-{number}", targets=targets), members)
    return directory / "tiny-000000.tar"


def training_arguments(root: Path, shard: Path, steps: int, **init_args: Any) -> list[str]:
    """Command line of ``train.py`` for the tiny Generalist."""
    config = {
        "model": {
            "class_path": "training.recipe.Recipe",
            "init_args": {"generalist": tiny_config(root.parent), "trainable": ["."], "warmup_steps": 2, **init_args},
        },
        "data": {
            "class_path": "data.datamodule.PackedDataModule",
            "init_args": {"sources": [{"path": str(shard)}], "max_tokens": 256, "packs_per_step": 2},
        },
        "trainer": {
            "default_root_dir": str(root),
            "max_steps": steps,
            "accelerator": "cpu",
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "training.callbacks.ResumePoint", "init_args": {"every_n_steps": 2}}],
        },
    }
    root.mkdir(parents=True, exist_ok=True)
    path = root / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return ["fit", "--config", str(path)]
