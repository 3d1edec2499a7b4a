"""Qwen2-Audio of transformers: converted, asked, exported; and clips that its own processor would cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    WhisperFeatureExtractor,
)

from data.packing import pack
from data.records import Message, Part
from data.render import render_prompt
from encoders.qwen_audio import PooledAudioProcessor, Qwen2AudioTower
from inference.conversation import Conversation
from inference.session import Session
from layers.layout import Layout
from layers.media import Audio
from models.__main__ import main as models_main
from models.generalist import Generalist
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable
from tests.tiny import WORDS

POSITIONS = 50  # one second per chunk
TOWER = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 16}
TOWER |= {"max_source_positions": POSITIONS}
TEXT = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "eos_token_id": 1}
SAMPLES = [
    16_000,
    15_999,
    1_500,
    8_001,
    12_345,
    1_281,
]  # two tokens at least: theirs merges a lone one in a way of its own


def saved(directory: Path) -> Any:
    tokenizer = train_tokenizer([WORDS] * 4, 300, TaskTable.from_dict({"tasks": []}))
    save_tokenizer(tokenizer, directory)
    text = {**TEXT, "vocab_size": len(tokenizer) + 3, "tie_word_embeddings": False}
    audio = {**TOWER, "model_type": "qwen2_audio_encoder"}
    config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=len(tokenizer))
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data *= 3
    model.save_pretrained(directory)
    return model


def clip(samples: int) -> Audio:
    return Audio(torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * 0.1, 16_000)


def test_logits_and_replies_are_those_of_transformers(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "theirs")
    assert models_main(["convert", "qwen2_audio", str(tmp_path / "theirs"), "--out", str(tmp_path / "ours")]) == 0
    generalist = Generalist.from_pretrained(tmp_path / "ours")
    plan, extractor = generalist.plan(), WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    words = theirs.config.text_config.vocab_size - 3
    for samples in SAMPLES:
        audio = clip(samples)
        messages = [Message("user", (Part("audio", media="a"), Part("text", text="say hello")))]
        rendered = render_prompt(messages, {"a": audio}, plan)
        ids = torch.tensor([rendered.input_ids])
        ids[ids == plan.vocabulary.media_ids["audio"]] = theirs.config.audio_token_id
        features = extractor(
            audio.waveform.numpy(),
            sampling_rate=16_000,
            return_attention_mask=True,
            padding="max_length",
            return_tensors="pt",
        )
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "input_features": features["input_features"],
        }
        inputs["feature_attention_mask"] = features["attention_mask"]
        batch = pack([rendered], plan)
        with torch.no_grad():
            expected = theirs(**inputs).logits[0, :, :words]
            encoded = generalist.encode_media(batch.media)["audio"]
            places = batch.media["audio"].positions
            embeds = generalist.place(generalist.embed(batch.input_ids[0]), places, encoded.projected)
            states = generalist.language_model(embeds[None], batch.position_ids, batch.segment_lengths)
            found = generalist.language_model.logits(states)[:, :words]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        (reply,) = Session(generalist, max_new_tokens=6).generate([Conversation.ask("say hello", audio=[audio])])
        with torch.no_grad():
            ids = theirs.generate(
                **inputs, max_new_tokens=6, do_sample=False, suppress_tokens=list(range(words, words + 3))
            )
        written = ids[0, inputs["input_ids"].shape[1] :].tolist()
        assert list(reply.token_ids) == (written[: written.index(1)] if 1 in written else written)


def test_what_is_exported_is_loaded_by_transformers(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "theirs")
    paths = [str(tmp_path / name) for name in ("theirs", "ours", "back")]
    assert models_main(["convert", "qwen2_audio", paths[0], "--out", paths[1]]) == 0
    assert models_main(["convert", "qwen2_audio", paths[0], "--back", paths[1], "--out", paths[2]]) == 0
    state = Qwen2AudioForConditionalGeneration.from_pretrained(paths[2]).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())


def test_long_clips_are_whole_chunks_and_items_do_not_meet() -> None:
    torch.manual_seed(0)
    tower = Qwen2AudioTower(config=TOWER).eval()
    clips = [clip(samples) for samples in (16_000, 53_211, 900)]
    items, layouts = zip(*[tower.processor(item) for item in clips], strict=True)
    layout = Layout(layouts)
    with torch.no_grad():
        together = layout.split(tower(tower.collate(items), layout))
        for item, own, found in zip(items, layouts, together, strict=True):
            torch.testing.assert_close(tower(tower.collate([item]), Layout([own])), found, atol=1e-5, rtol=1e-4)
        first, own = tower.processor(Audio(clips[1].waveform[:16_000], 16_000))
        torch.testing.assert_close(together[1][:25], tower(tower.collate([first]), Layout([own])), atol=1e-5, rtol=1e-4)


def test_every_length_is_known_beforehand() -> None:
    processor = PooledAudioProcessor(num_mel_bins=16, chunk_features=POSITIONS)
    for samples in (321, 640, 641, 16_000, 16_001, 16_640, 95 * 16_000):
        inputs, layout = processor(clip(samples))
        assert layout == processor.layout((samples,)) and int((inputs["lengths"] // 2).sum()) == layout.num_features
    with pytest.raises(ValueError, match="at least 321 samples, got 1"):
        processor(clip(1))
