"""Predicting where the call is given: vectors of tiny models, logged one by one and ranked by the score command."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from PIL import Image
from rich.console import Console

from eval.__main__ import main
from eval.askers.asker import Asker
from eval.askers.choose import choose_asker
from eval.askers.session import Decoding, SessionAsker
from eval.benchmarks.benchmark import Benchmark
from eval.log import read_log
from eval.metrics.verification import equal_error_rate
from eval.predict import Asking, predict
from heads.entity_ranking import EntityRankingHead
from inference.conversation import Conversation
from inference.files import decode_vector
from inference.given import build_index
from models.build import build_generalist
from models.checkpoint import save_checkpoint
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable
from tests.eval.benchmarks.fixture import clip, write
from tests.eval.benchmarks.test_catalogue import made
from tests.heads.generation.tiny_experts import clip_tokenizer
from tests.tiny import CONFIG, WORDS

TASKS = [
    {"name": "embed", "head": "embed", "payload": []},
    {"name": "entity", "head": "entities", "payload": []},
]
HEADS = {
    "embed": {"class_path": "heads.embedding.EmbeddingHead", "init_args": {"state_size": 32, "embedding_size": 16}},
    "entities": {
        "class_path": "heads.entity_ranking.EntityRankingHead",
        "init_args": {"state_size": 32, "embedding_size": 16, "relations": ["likes", "knows"], "model": "transe"},
    },
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    config: dict[str, Any] = copy.deepcopy(CONFIG)
    config["tasks"]["tasks"] += TASKS
    config["heads"] = {name: head for name, head in config["heads"].items() if name != "image"} | HEADS
    config["tasks"]["tasks"] = [task for task in config["tasks"]["tasks"] if task["head"] in config["heads"]]
    save_tokenizer(train_tokenizer([WORDS], 400, TaskTable.from_dict(config["tasks"])), folder / "tokenizer")
    config["tokenizer"] = str(folder / "tokenizer")
    torch.manual_seed(0)
    return save_checkpoint(build_generalist(config), config, folder / "checkpoint")


@pytest.fixture
def asker(checkpoint: Path) -> SessionAsker:
    return SessionAsker(checkpoint, Decoding(device="cpu", batch_size=4))


def ask(asker: Asker, benchmark: Benchmark, out: Path, control: str | None = None) -> str:
    text = io.StringIO()
    predict(asker, {benchmark.name: benchmark}, out, Asking(control, chunk=5), Console(file=text, width=200))
    return text.getvalue()


def scores_of(log: Path, data: Path) -> dict[str, Any]:
    assert main(["score", str(log), "--data", str(data), "--out", str(data / "scores.json")]) == 0
    scores: dict[str, Any] = json.loads((data / "scores.json").read_text())
    return scores


def test_entities_are_ranked_as_the_head_ranks_them(asker: SessionAsker, tmp_path: Path) -> None:
    benchmark = made("wn18rr_vectors", tmp_path)
    ask(asker, benchmark, tmp_path / "log")
    rows = read_log(tmp_path / "log").predictions
    assert len(rows) == 9 and not any(row.failed for row in rows)
    assert {row.results[0]["compare"] for row in rows} == {"l1"}  # type: ignore[index]
    assert rows[0].calls[0]["task"] == "entity" and rows[-1].calls[0]["prompt"] == "inverse of knows"
    assert rows[0].parsed == 16, "the vector stands in the result, once"
    texts = {name: Conversation.ask(f"Entity {name.upper()}") for name in "abcde"}
    index = build_index(asker.session, texts, "entity")
    known = [("a", "likes", "b"), ("a", "likes", "c"), ("b", "likes", "d"), ("c", "knows", "d"), ("d", "knows", "e")]
    head = asker.session.head_of("entity")
    assert isinstance(head, EntityRankingHead)
    ranks = head.ranks(index, [("a", "likes", "d"), ("d", "knows", "a")], known)
    entry = scores_of(tmp_path / "log", tmp_path)["wn18rr_vectors/mrr"]
    assert entry["value"] == pytest.approx(float((1 / ranks).mean()))
    assert (entry["n"], entry["complete"], entry["parse_failure"]["value"]) == (9, True, 0.0)
    assert entry["constant_about"].startswith("fixed before") and entry["controls"]["constant"] is not None


def test_images_and_captions_are_embedded_once_each(asker: SessionAsker, tmp_path: Path) -> None:
    benchmark = made("flickr30k_vectors", tmp_path)
    picture = tmp_path / "flickr30k" / "flickr30k-images" / "2.jpg"
    kept = picture.read_bytes()
    picture.unlink()
    assert "flickr30k_vectors 'image/2': left out" in ask(asker, benchmark, tmp_path / "log")
    entry = scores_of(tmp_path / "log", tmp_path)["flickr30k_vectors/i2t_r1"]
    assert (entry["n"], entry["n_expected"], entry["complete"], entry["skipped"]) == (11, 12, False, 1)
    assert "means nothing on a part" in entry["meaningless"]
    picture.write_bytes(kept)
    assert "11 predictions are there, 1 to go" in ask(asker, benchmark, tmp_path / "log")
    rows = read_log(tmp_path / "log").predictions
    assert len(rows) == 12 and {len(row.media_sha256) for row in rows if row.meta["role"] == "text"} == {0}
    for row in rows[1:3]:
        vector = decode_vector(row.results[0]["float32"])  # type: ignore[index]
        text = row.prompt.removeprefix("user: ")
        alone = build_index(asker.session, {"x": Conversation.ask(text)}, "embed").vectors[0]
        torch.testing.assert_close(vector, alone, atol=1e-5, rtol=1e-4)
    entry = scores_of(tmp_path / "log", tmp_path)["flickr30k_vectors/t2i_r10"]
    assert entry["complete"] and "meaningless" not in entry and entry["value"] == 1.0


def test_clips_are_verified_by_their_vectors(asker: SessionAsker, tmp_path: Path) -> None:
    benchmark = made("voxceleb_vectors", tmp_path)
    for seed, path in enumerate(sorted((tmp_path / "voxceleb" / "wav").rglob("*.wav"))):
        write(path, clip(0.1 + 0.05 * seed, seed=seed))
    ask(asker, benchmark, tmp_path / "log")
    rows = read_log(tmp_path / "log").predictions
    vectors = {row.key: decode_vector(row.results[0]["float32"]).double() for row in rows}  # type: ignore[index]
    trials = [("a/1", "a/2", True), ("a/1", "b/1", False), ("b/1", "b/2", True), ("b/2", "c/1", False)]
    cosines = [float(torch.cosine_similarity(vectors[f"{a}.wav"], vectors[f"{b}.wav"], dim=0)) for a, b, _ in trials]
    entry = scores_of(tmp_path / "log", tmp_path)["voxceleb_vectors/eer"]
    assert entry["value"] == pytest.approx(equal_error_rate(cosines, [match for *_, match in trials]))


def test_zeroed_images_have_one_vector(checkpoint: Path, tmp_path: Path) -> None:
    benchmark = made("flickr30k_vectors", tmp_path)
    ask(SessionAsker(checkpoint, Decoding(device="cpu"), "zeroed"), benchmark, tmp_path / "log", "zeroed")
    rows = read_log(tmp_path / "log").predictions
    assert not any(row.failed for row in rows)
    images = [row.results[0]["float32"] for row in rows if row.meta["role"] == "image"]  # type: ignore[index]
    vectors = torch.stack([decode_vector(image) for image in images])
    assert torch.allclose(vectors, vectors[:1].expand_as(vectors), atol=1e-5) and len(vectors) == 4


def test_a_model_without_the_task_is_refused_by_name(asker: SessionAsker, tmp_path: Path) -> None:
    benchmark = made("flickr30k_vectors", tmp_path)
    benchmark.call = "embed_law"
    with pytest.raises(ValueError, match=r"expected a checkpoint with the task 'embed_law', got one with .*entity"):
        ask(asker, benchmark, tmp_path / "log")
    entities = made("wn18rr_vectors", tmp_path)
    (tmp_path / "wn18rr" / "test.txt").write_text("a\thates\td\n")
    said = ask(asker, entities, tmp_path / "other")
    assert "'query/0/tail': left out: relation: expected one of likes, knows, got 'hates'" in said


def save_clip(directory: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    vision = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    tokenizer = clip_tokenizer()
    CLIPProcessor(vision, tokenizer).save_pretrained(directory)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 20}
    text["eos_token_id"] = tokenizer.eos_token_id
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(directory)
    return directory


def test_a_dual_encoder_of_transformers_is_ranked_alike(tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    directory = save_clip(tmp_path / "clip")
    benchmark = made("flickr30k_vectors", tmp_path)
    asker = choose_asker(None, f"vectors:{directory}", Decoding(device="cpu", batch_size=3))
    ask(asker, benchmark, tmp_path / "log")
    rows = {row.key: row for row in read_log(tmp_path / "log").predictions}
    model, processor = CLIPModel.from_pretrained(directory), CLIPProcessor.from_pretrained(directory)
    image = Image.open(tmp_path / "flickr30k" / "flickr30k-images" / "1.jpg").convert("RGB")
    caption = rows["text/1/1"].prompt.removeprefix("user: ")
    with torch.inference_mode():
        expected = model(**processor(text=[caption], images=image, return_tensors="pt", truncation=True, max_length=20))
    for key, vector in (("image/1", expected.image_embeds), ("text/1/1", expected.text_embeds)):
        ours = decode_vector(rows[key].results[0]["float32"])  # type: ignore[index]
        torch.testing.assert_close(torch.nn.functional.normalize(ours, dim=0), vector[0], atol=1e-5, rtol=1e-4)
    texts = {key: row.prompt.removeprefix("user: ") for key, row in rows.items()}
    lengths = {key: len(processor.tokenizer(text)["input_ids"]) for key, text in texts.items()}
    cut = {key for key, row in rows.items() if (row.results[0] or {}).get("notes")}
    assert cut == {key for key, length in lengths.items() if key.startswith("text") and length > 20} and cut
    assert main(["score", str(tmp_path / "log"), "--data", str(tmp_path)]) == 0

    with pytest.raises(ValueError, match="a model of vectors answers 'embed' and no more"):
        ask(asker, made("flickr30k", tmp_path), tmp_path / "other")


def test_a_speaker_model_of_transformers_verifies(tmp_path: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    directory = tmp_path / "wavlm"
    config = WavLMConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8),
        conv_stride=(10, 8), conv_kernel=(10, 8), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        tdnn_dim=(8, 8), tdnn_kernel=(3, 1), tdnn_dilation=(1, 1), xvector_output_dim=6,
    )  # fmt: skip
    torch.manual_seed(0)
    WavLMForXVector(config).save_pretrained(directory)
    Wav2Vec2FeatureExtractor().save_pretrained(directory)
    benchmark = made("voxceleb_vectors", tmp_path)
    paths = sorted((tmp_path / "voxceleb" / "wav").rglob("*.wav"))
    for seed, path in enumerate(paths):
        write(path, clip(0.1 + 0.05 * seed, seed=seed))
    ask(choose_asker(None, f"vectors:{directory}", Decoding(device="cpu", batch_size=4)), benchmark, tmp_path / "log")
    rows = {row.key: row for row in read_log(tmp_path / "log").predictions}
    model = WavLMForXVector.from_pretrained(directory).eval()
    samples, _ = soundfile.read(paths[0], dtype="float32")
    inputs = Wav2Vec2FeatureExtractor()(samples, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).embeddings[0]
    ours = decode_vector(rows["a/1.wav"].results[0]["float32"])  # type: ignore[index]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert scores_of(tmp_path / "log", tmp_path)["voxceleb_vectors/eer"]["n"] == 5
