"""The Generalist over packs: mixtures of modalities, exactness of packing with media, loss normalisation."""

from pathlib import Path

import pytest
import torch

from data.packing import pack
from layers.calls import Call
from models.generalist import Generalist
from tests.tiny import SAMPLES, rendered, tiny_generalist


@pytest.fixture(scope="module")
def generalist(tmp_path_factory: pytest.TempPathFactory) -> Generalist:
    return tiny_generalist(tmp_path_factory.mktemp("tiny"))


def gradients(model: Generalist) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def total(losses: dict, scale: dict[str, float]) -> torch.Tensor:
    return torch.stack([term.total / scale[name] for name, term in losses.items()]).sum()


@pytest.mark.parametrize("names", [[name] for name in SAMPLES] + [list(SAMPLES)], ids=lambda names: "+".join(names))
def test_every_mixture_trains(generalist: Generalist, names: list[str]) -> None:
    plan = generalist.plan()
    batch = pack([rendered(name, plan) for name in names], plan)
    generalist.train().zero_grad(set_to_none=True)
    generalist.in_step = "visits"
    trained = {name: p for name, p in generalist.named_parameters() if p.requires_grad}
    nodes = {name: p.view_as(p).grad_fn.next_functions[0][0] for name, p in trained.items()}  # as DDP finds them
    visited: set[str] = set()
    hooks = [node.register_hook(lambda *_, name=name: visited.add(name)) for name, node in nodes.items()]
    losses = generalist(batch)
    assert {name: term.count for name, term in losses.items()} == {k: v for k, v in batch.counts.items() if v}
    total(losses, {name: term.count for name, term in losses.items()}).backward()
    for hook in hooks:
        hook.remove()
    generalist.in_step = False
    assert not trained.keys() - visited, "took no part: processes with other modalities would wait"
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained.values())
    for head in losses.keys() - {"token"}:
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in generalist.heads[head].parameters()), head


def test_mixed_precision_trains_every_head(generalist: Generalist) -> None:
    plan = generalist.plan()
    batch = pack([rendered(name, plan) for name in SAMPLES], plan)
    generalist.train().zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = generalist(batch)
        total(losses, {name: term.count for name, term in losses.items()}).backward()
    assert all(parameter.dtype == torch.float32 for parameter in generalist.parameters())
    assert all(p.grad.isfinite().all() for p in generalist.parameters() if p.grad is not None)


def test_packed_equals_single_samples(tmp_path: Path) -> None:
    model = tiny_generalist(tmp_path).double().train()
    plan = model.plan()
    samples = [rendered(name, plan) for name in SAMPLES if name not in ("draw", "edit", "two")]  # those draw noise
    packed = pack(samples, plan)
    counts = {name: float(count) for name, count in packed.counts.items()}
    losses = model(packed)
    total(losses, counts).backward()
    together = gradients(model)

    model.zero_grad()
    for item in samples:
        total(model(pack([item], plan)), counts).backward()
    apart = gradients(model)
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, apart[name], rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_batch_size_does_not_change_the_features(generalist: Generalist) -> None:
    plan = generalist.plan()
    generalist.eval()
    samples = [rendered(name, plan, seed) for seed, name in enumerate(("box", "audio", "link", "mask", "audio"))]
    together = generalist.encode_media(pack(samples, plan).media)
    seen = dict.fromkeys(together, 0)
    for item in samples:
        for kind, alone in generalist.encode_media(pack([item], plan).media).items():
            length = alone.projected.shape[0]
            part = together[kind].projected[seen[kind] : seen[kind] + length]
            torch.testing.assert_close(part, alone.projected, rtol=1e-5, atol=1e-5)
            seen[kind] += length


def test_queries_carry_gradient_and_their_labels_are_not_learned(generalist: Generalist) -> None:
    plan = generalist.plan()
    batch = pack([rendered("draw", plan)], plan)
    ids = plan.vocabulary.query_ids["draw"]
    at_queries = torch.isin(batch.input_ids[0], torch.tensor(ids))
    assert at_queries.sum() == len(ids)
    assert (batch.labels[0][at_queries] == -100).all()
    generalist.train().zero_grad()
    generalist(batch)["image"].total.backward()
    queries = generalist.heads["image"].queries
    assert (queries.grad.abs().sum(dim=1) > 0).all()


def test_queries_enter_at_the_scale_of_the_embeddings(generalist: Generalist, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.tensor(generalist.plan().vocabulary.query_ids["draw"])
    queries = generalist.heads["image"].queries
    assert torch.equal(generalist.embed(ids), queries)
    embedding = generalist.language_model.model.get_input_embeddings()
    monkeypatch.setattr(embedding, "scalar_embed_scale", 4.0, raising=False)  # Gemma's attribute
    assert torch.equal(generalist.embed(ids), 4.0 * queries)


def test_a_missing_encoder_is_named(generalist: Generalist) -> None:
    plan = generalist.plan()
    media = pack([rendered("audio", plan)], plan).media
    with pytest.raises(ValueError, match="no encoder for 'video'"):
        generalist.encode_media({"video": media["audio"]})


def test_frozen_parts_stay_in_eval(tmp_path: Path) -> None:
    model = tiny_generalist(tmp_path)
    model.encoders["audio"].requires_grad_(False)
    model.train()
    assert not model.encoders["audio"].training
    assert model.encoders["image"].training and model.language_model.training


def test_heads_read_embeddings_of_the_prompt_where_the_task_says_so(generalist: Generalist) -> None:
    plan = generalist.plan()
    vocabulary = plan.vocabulary
    prompt = vocabulary.encode_text("blue 4")
    states = torch.randn(12, generalist.language_model.head_weight.shape[1])
    for task, last in (("draw", vocabulary.query_ids["draw"]), ("seg", [vocabulary.anchor_id])):
        ids = torch.tensor([5, vocabulary.open_ids[task], *prompt, *last])
        positions = tuple(range(2, len(ids)))
        read = generalist.head_states([Call(task, "blue 4", state_positions=positions)], states[: len(ids)], ids)
        assert torch.equal(read[len(prompt) :], states[2 + len(prompt) : len(ids)])
        if task == "draw":
            embeddings = generalist.language_model.embed(torch.tensor(prompt))
            scale = embeddings.square().mean(dim=1, keepdim=True).add(torch.finfo(torch.float32).eps).rsqrt()
            torch.testing.assert_close(read[: len(prompt)], embeddings * scale)
        else:
            assert torch.equal(read[: len(prompt)], states[2 : 2 + len(prompt)])
    assert generalist.head_states([Call("draw", "x")], states, torch.zeros(12, dtype=torch.long)) is None
