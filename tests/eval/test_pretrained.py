"""Models of transformers under our benchmarks: their replies are those of their own generate, whatever the batches."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tokenizers import AddedToken
from transformers import (
    CLIPImageProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from data.media import encode_flac
from eval.askers.asker import question_of
from eval.askers.choose import choose_asker
from eval.askers.directory import directory_sha256
from eval.askers.pretrained import TransformersAsker
from eval.askers.session import Decoding
from eval.benchmarks.inputs import InputFiles
from eval.benchmarks.quickstart import quickstart_benchmarks
from eval.log import read_log
from eval.predict import Asking, predict
from models.tokenizer import train_tokenizer
from routers.tasks import TaskTable
from tests.eval.conftest import answer_sample, picture, write_shards
from tests.models.test_llava import CLIP, TEXT
from tests.models.test_qwen2_audio import TEXT as AUDIO_TEXT
from tests.models.test_qwen2_audio import TOWER
from tests.tiny import WORDS

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}{% else %}MARK{% endif %}{% endfor %} {% endfor %}say "
)


def tokenizer_with(*tokens: str) -> Any:
    tokenizer = train_tokenizer([WORDS] * 4, 300, TaskTable.from_dict({"tasks": []}))
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    return tokenizer


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llava")
    tokenizer = tokenizer_with("<picture>")
    vision = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    processor = LlavaProcessor(
        vision,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE.replace("MARK", "<picture>"),
        image_token="<picture>",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(directory)
    text = {**TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    image_token = tokenizer.convert_tokens_to_ids("<picture>")
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=CLIP, image_token_id=image_token))
    for parameter in model.parameters():
        parameter.data *= 3
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    samples = [
        answer_sample("image_qa", i, "no", image=picture(i, 24 + i), question=WORDS[: 9 + 7 * i]) for i in range(6)
    ]
    write_shards(tmp_path, "test", "image_qa", samples)
    return tmp_path


def replies(asker: TransformersAsker, data: Path) -> list[Any]:
    (benchmark,) = quickstart_benchmarks(data, "test", ["image_qa"]).values()
    questions = [question_of(sample, place) for place, sample in enumerate(benchmark.records())]
    return asker.ask(benchmark, questions)


def test_replies_are_those_of_the_models_own_generate(llava: Path, data: Path) -> None:
    decoding = Decoding(max_new_tokens=6, batch_size=4, device="cpu")
    rows = replies(TransformersAsker(llava, decoding), data)
    alone = replies(TransformersAsker(llava, Decoding(max_new_tokens=6, batch_size=1, device="cpu")), data)
    assert [row.raw for row in rows] == [row.raw for row in alone] and len({row.raw for row in rows}) > 1
    processor, model = LlavaProcessor.from_pretrained(llava), LlavaForConditionalGeneration.from_pretrained(llava)
    (benchmark,) = quickstart_benchmarks(data, "test", ["image_qa"]).values()
    for row, sample in zip(rows, benchmark.records(), strict=True):
        image = Image.open(io.BytesIO(sample.members["image.png"]))
        text = f"user: <picture>{sample.record.messages[0].content[1].text} say "
        inputs = processor(text=text, images=image, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=6, do_sample=False)[
                0, inputs["input_ids"].shape[1] :
            ].tolist()
        ended = processor.tokenizer.eos_token_id in out
        assert row.rendered == text and row.finish_reason == ("stop" if ended else "length")
        kept = out[: out.index(processor.tokenizer.eos_token_id)] if ended else out
        assert row.raw == processor.tokenizer.decode(kept)


def test_a_log_says_which_model_it_was_and_random_weights_are_another(llava: Path, data: Path, tmp_path: Path) -> None:
    benchmarks = quickstart_benchmarks(data, "test", ["image_qa"])
    decoding = Decoding(max_new_tokens=3, device="cpu")
    for control in (None, "random_weights", "blind"):
        asker = choose_asker(None, f"transformers:{llava}", decoding, control, boxes="thousand")
        predict(asker, benchmarks, tmp_path / str(control), Asking(control), Console(file=io.StringIO()))
    logs = {name: read_log(tmp_path / str(name)) for name in (None, "random_weights", "blind")}
    identity = logs[None].header.identity
    assert identity["checkpoint_sha256"] == directory_sha256(llava) and identity["session"]["by"] == "transformers"
    assert identity["generation"]["image_qa"] == {"decoding": "greedy", "max_new_tokens": 3, "boxes": "thousand"}
    own, random = ([row.raw for row in logs[name].predictions] for name in (None, "random_weights"))
    assert own != random
    assert all("<picture>" not in row.rendered for row in logs["blind"].predictions)
    with pytest.raises(ValueError, match="'zeroed' means nothing for TransformersAsker"):
        predict(
            choose_asker(None, f"transformers:{llava}", decoding, "zeroed"),
            benchmarks,
            tmp_path / "z",
            Asking("zeroed"),
        )


def test_an_audio_model_hears_clips_at_its_own_rate(tmp_path: Path) -> None:
    directory = tmp_path / "audio"
    tokenizer = tokenizer_with("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    template = TEMPLATE.replace("MARK", "<|audio_bos|><|AUDIO|><|audio_eos|>")
    Qwen2AudioProcessor(extractor, tokenizer, chat_template=template).save_pretrained(directory)
    config = Qwen2AudioConfig(
        audio_config={**TOWER, "model_type": "qwen2_audio_encoder"},
        text_config={**AUDIO_TEXT, "vocab_size": len(tokenizer)},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    torch.manual_seed(0)
    Qwen2AudioForConditionalGeneration(config).save_pretrained(directory)
    clip = torch.from_numpy(np.sin(np.arange(8_000) / 20).astype(np.float32))
    files = tmp_path / "clips"
    files.mkdir()
    (files / "a.flac").write_bytes(encode_flac(clip, 8_000))
    (files / "b.flac").write_bytes(encode_flac(clip[:4_000], 8_000))

    benchmark = InputFiles("clips", [files], "what is it ?")
    asker = TransformersAsker(directory, Decoding(max_new_tokens=3, device="cpu"))
    rows = asker.ask(benchmark, [question_of(sample, i) for i, sample in enumerate(benchmark.records())])
    assert all(not isinstance(row, str) and "<|AUDIO|>" in row.rendered for row in rows)
    picture_asked = [question_of(answer_sample("image_qa", 0, "x"), 0)]
    assert asker.ask(benchmark, picture_asked) == ["expected media that the model takes, got an image"]


def test_a_language_model_takes_words_alone(tmp_path: Path) -> None:
    tokenizer = tokenizer_with()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    config = LlamaConfig(**{**TEXT, "vocab_size": len(tokenizer)})
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    asker = TransformersAsker(tmp_path, Decoding(max_new_tokens=3, device="cpu"))
    benchmark = quickstart_benchmarks(tmp_path, "test", ["caption"])["caption"]
    words = question_of(answer_sample("caption", 0, "x", image=None), 0)
    seen = question_of(answer_sample("caption", 1, "x"), 1)
    first, second = asker.ask(benchmark, [words, seen])
    assert not isinstance(first, str) and first.rendered == "user: what is it? "
    assert second == "expected words or media that the model takes, got tensor"
    with pytest.raises(ValueError, match=r"with config\.json"):
        TransformersAsker(tmp_path / "nothing", Decoding())
    with pytest.raises(ValueError, match="need a checkpoint of ours"):
        TransformersAsker(tmp_path, Decoding(constrained=True))
