"""Heads that learn what a denoiser is told: gradients through a frozen UNet, resolution, windows, extending."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from heads.experts.files import ExpertError
from heads.generation.denoising import Condition, guided, sample, starts, windowed
from heads.generation.denoising_head import Drawing, Tokens
from heads.generation.resolution import Resolution, ResolutionImageHead, level_of, level_of_metres, metres_of_level
from heads.generation.state_images import StateImageHead
from layers.calls import Call, HeadContext, ImageResult, ResultRef
from tests.heads.generation.conftest import Saved
from tests.heads.generation.test_pictures import call
from tests.heads.generation.tiny_experts import SOURCE, WIDTH, save_pipeline, unet

STATE = 12
TOKENS = Tokens(count=3, width=8, num_layers=1, num_heads=2)
DRAWING = Drawing(canvas_size=(16, 16), num_steps=2, guidance=3.0, overlap=8)
PIXELS: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}


def state_head(saved: Saved, **options: Any) -> StateImageHead:
    torch.manual_seed(0)
    directory = str(saved("StableDiffusionPipeline"))
    return StateImageHead(STATE, WIDTH, directory, tokens=TOKENS, drawing=DRAWING, **options)


def pixel_head(**options: Any) -> ResolutionImageHead:
    torch.manual_seed(0)
    return ResolutionImageHead(STATE, WIDTH, unet=PIXELS, tokens=TOKENS, drawing=DRAWING, **options)


def images(head: Any, states: Tensor | None, lengths: list[int], contexts: list[HeadContext]) -> list[Tensor]:
    results = head.decode(head(states, lengths, contexts), contexts)
    return [result.image for result in results if isinstance(result, ImageResult)]


def test_a_drawing_is_what_the_pipeline_makes_of_the_tokens(saved: Saved) -> None:
    head = state_head(saved).eval()
    with torch.no_grad():
        head.reader.nothing.normal_()
    states, contexts = torch.randn(5, STATE), [call("a dog", seed=3), call("a 7", seed=4)]
    conditions = head(states, [2, 3], contexts)
    drawn = images(head, states, [2, 3], contexts)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(saved("StableDiffusionPipeline"))
    pipeline.set_progress_bar_config(disable=True)
    for image, tokens, seed in zip(drawn, conditions.tokens, (3, 4), strict=True):
        expected = pipeline(
            prompt_embeds=tokens[None].detach(),
            negative_prompt_embeds=head.reader.nothing[None].detach(),
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        ).images[0]
        assert ((expected * 255).round() - image).abs().max() <= 1
    assert torch.equal(images(head, states[:2], [2], contexts[:1])[0], images(head, states[:2], [2], contexts[:1])[0])


def test_gradients_reach_the_states_through_the_frozen_denoiser(saved: Saved) -> None:
    head = state_head(saved, num_queries=2)
    states = torch.randn(4, STATE, requires_grad=True)
    contexts = [call("a dog"), call("a 7")]
    targets = [head.target_processor(SOURCE, []) for _ in contexts]
    term = head.eval().loss(head(states, [2, 2], contexts), targets)
    assert term.count == 2 and head.queries is not None and head.queries.shape == (2, STATE)
    term.total.backward()
    assert states.grad is not None and (states.grad.abs().sum(dim=1) > 0).all()
    assert all(p.grad is not None for name, p in head.named_parameters() if not name.endswith(("queries", "nothing")))
    assert not [name for name in head.state_dict() if "unet" in name or "vae" in name]
    with head.denoiser() as denoiser:
        assert all(p.grad is None and not p.requires_grad for p in denoiser.unet.parameters())


@pytest.mark.parametrize("owns", [False, True], ids=["frozen denoiser", "own denoiser"])
def test_training_lowers_the_loss(owns: bool, saved: Saved) -> None:
    head = pixel_head() if owns else state_head(saved)
    states, contexts = torch.randn(2, STATE), [call("a dog"), call("a 7")]
    targets = [head.target_processor(image, []) for image in (SOURCE, 255 - SOURCE)]
    optimizer = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], lr=1e-2)

    def loss() -> Tensor:
        torch.manual_seed(1)  # the same times and noise every step
        return head.loss(head(states, [1, 1], contexts), targets).total

    first = float(loss().detach())
    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert float(loss().detach()) < (0.9 if owns else 0.999) * first


def test_states_are_dropped_in_training_alone(saved: Saved) -> None:
    head = state_head(saved, condition_dropout=0.5)
    told, untold = torch.ones(400, 3, WIDTH), torch.zeros(400, 3, WIDTH)
    dropped = head.dropped(Condition(told), Condition(untold)).tokens
    assert 0.4 < float(dropped.mean()) < 0.6 and set(dropped.flatten(1).mean(1).tolist()) == {0.0, 1.0}


def test_text_and_level_are_dropped_independently() -> None:
    head = pixel_head(condition_dropout=0.3, resolution=Resolution(dropout=0.4))
    count = 4000
    told = Condition(torch.ones(count, 3, WIDTH), torch.full((count,), 15.0))
    kept = head.dropped(told, Condition(torch.zeros(count, 3, WIDTH), told.labels))
    text, level = kept.tokens[:, 0, 0] == 1, kept.labels == 15
    assert abs(float(text.float().mean()) - 0.7) < 0.03 and abs(float(level.float().mean()) - 0.6) < 0.03
    assert abs(float((text & level).float().mean()) - 0.42) < 0.03


def test_guidance_by_text_and_level_is_the_sum_written_out() -> None:
    head = pixel_head(resolution=Resolution(guidance=2.0)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    noisy, time = torch.randn(1, 3, 16, 16), torch.tensor(500)
    tokens, untold, level = torch.randn(1, 3, WIDTH), torch.zeros(1, 3, WIDTH), torch.tensor([15.0])

    def expected(words: Tensor, label: float) -> Tensor:
        assert head.unet is not None
        labels = torch.tensor([label])
        return head.unet(noisy, time, encoder_hidden_states=words, class_labels=labels).sample

    with torch.no_grad():
        nothing, known, full = expected(untold, 0), expected(untold, 15), expected(tokens, 15)
        for context, wanted in (
            (call("it"), nothing + 2 * (known - nothing) + 3 * (full - known)),
            (call("it", resolution_guidance=3.0), nothing + 3 * (full - nothing)),  # the paper's joint guidance
            (call("it", resolution_guidance=1.0, guidance=1.0), full),
        ):
            guides = head.guides(Condition(tokens, level), Condition(untold, level), context)
            torch.testing.assert_close(guided(head.unet, *guides)(noisy, time), wanted, atol=1e-5, rtol=1e-5)
    assert not torch.equal(known, nothing) and not torch.equal(full, known)


@pytest.mark.parametrize(
    ("prompt", "parameters", "expected"),
    [
        ("15_GOOGLE_LEVEL_a harbour", {}, (15.0, "a harbour")),
        ("a harbour at 4 m/pixel", {}, (15.0, "a harbour")),
        ("a harbour, 0.5 m per px, at noon", {}, (18.0, "a harbour, at noon")),
        ("a harbour of 4 m", {}, (0.0, "a harbour of 4 m")),
        ("15_GOOGLE_LEVEL_a harbour", {"level": 12.5}, (12.5, "a harbour")),
        ("15_GOOGLE_LEVEL_a harbour", {"level": 0.0}, (0.0, "a harbour")),
    ],
)
def test_levels_are_read_from_prompts(prompt: str, parameters: dict[str, float], expected: tuple[float, str]) -> None:
    assert level_of(call(prompt, **parameters), Resolution()) == expected


def test_levels_are_scaled_before_they_are_encoded() -> None:
    head = pixel_head(resolution=Resolution(scale=50.0))
    asked = [call("15_GOOGLE_LEVEL_a harbour"), call("a harbour")]
    labels = head(torch.randn(2, STATE), [1, 1], asked).labels
    assert labels is not None and labels.tolist() == [750.0, 0.0]


def test_a_level_out_of_range_is_refused() -> None:
    for prompt in ("9_GOOGLE_LEVEL_a harbour", "a harbour at 0 m/pixel", "a harbour at 0.1 m/pixel"):
        with pytest.raises(ValueError, match=r"expected 10 to 18 .128 to 0.5 m/pixel., or 0 for unknown"):
            level_of(call(prompt), Resolution())
    assert level_of_metres(metres_of_level(13.0)) == 13.0


def test_prompts_are_read_by_the_experts_text_encoder_and_a_denoiser_begins_where_it_was(
    saved: Saved, tmp_path: Path
) -> None:
    """A pretrained UNet gets an embedding of levels that adds nothing at first: the drawing is the pipeline's."""
    directory = saved("StableDiffusionPipeline")
    options: dict[str, Any] = {"unet": {"pretrained": str(directory / "unet")}, "drawing": DRAWING}
    head = ResolutionImageHead(STATE, WIDTH, str(directory), **options).eval()
    assert head.links == {"text"} and dict(head.bases) == {"unet.": str(directory / "unet")}
    context = call("15_GOOGLE_LEVEL_a harbour", seed=3)
    (image,) = images(head, None, [0], [context])
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": generator, "output_type": "pt"}
    expected = pipeline("a harbour", **options).images[0]
    assert torch.equal((expected * 255).round().to(torch.uint8), image)
    with torch.no_grad():
        head.unet.class_embedding.linear_2.weight.normal_()
    other = call("a harbour", seed=3)
    assert not torch.equal(images(head, None, [0], [context])[0], images(head, None, [0], [other])[0])
    target = head.target_processor(SOURCE, [])
    head.train().loss(head(None, [0], [context]), [target]).total.backward()
    assert all(p.grad is not None for p in head.parameters())
    with pytest.raises(ValueError, match="reads no states"):
        head(torch.zeros(1, STATE), [1], [context])
    knows_nothing = ResolutionImageHead(STATE, WIDTH, str(directory), drawing=DRAWING)
    with pytest.raises(ExpertError, match="expected a UNet with class_embed_type timestep"):
        images(knows_nothing, None, [0], [context])
    knows = save_pipeline(tmp_path / "StableDiffusionPipeline", "StableDiffusionPipeline", class_embed_type="timestep")
    frozen = ResolutionImageHead(STATE, WIDTH, str(knows), drawing=DRAWING)
    assert images(frozen, None, [0], [context])[0].shape == (3, 16, 16) and frozen.state_dict() == {}


def test_windows_cover_a_canvas_and_average_to_what_they_agree_on() -> None:
    assert starts(8, 8, 2) == [0] and starts(20, 8, 2) == [0, 6, 12] and starts(9, 8, 2) == [0, 1]
    noisy, time = torch.randn(2, 3, 20, 13), torch.tensor(1)
    seen: list[tuple[int, ...]] = []

    def denoise(window: Tensor, time: Tensor) -> Tensor:
        seen.append(tuple(window.shape[-2:]))
        return 2 * window

    torch.testing.assert_close(windowed(denoise, (8, 8), 2)(noisy, time), 2 * noisy)
    assert set(seen) == {(8, 8)} and len(seen) == 3 * 2
    assert torch.equal(windowed(denoise, (13, 20), 2)(noisy, time), 2 * noisy)
    with pytest.raises(ValueError, match="overlap: expected 0 to 7 latents, got 8"):
        windowed(denoise, (8, 8), 8)


def test_a_large_canvas_is_drawn_in_windows(saved: Saved) -> None:
    head = state_head(saved).eval()
    states, context = torch.randn(1, STATE), call("a dog", width=40, height=24)
    assert images(head, states, [1], [context])[0].shape == (3, 24, 40)
    with pytest.raises(ValueError, match="expected multiples of 4, got 18x16"):
        images(head, states, [1], [call("a dog", width=18)])


@pytest.mark.parametrize("side", ["right", "left", "down", "up"])
@pytest.mark.parametrize("latent", [False, True], ids=["pixels", "latents"])
def test_an_image_goes_on_beyond_a_side(side: Any, latent: bool, saved: Saved) -> None:
    options: dict[str, Any] = {"extending_tasks": ["extend"], "side": side}
    if latent:
        directory = str(saved("StableDiffusionPipeline"))
        options |= {
            "expert": directory,
            "unet": {"pretrained": f"{directory}/unet"},
            "drawing": DRAWING,
            "tokens": TOKENS,
        }
        head = ResolutionImageHead(STATE, WIDTH, **options).eval()
    else:
        head = pixel_head(**options).eval()
    earlier = [ImageResult(Call("draw", "it"), SOURCE.repeat(1, 1, 2))]
    context = HeadContext(Call("extend", "a dog", (ResultRef(0),)), [], earlier, {"seed": 1})
    (image,) = images(head, torch.randn(1, STATE), [1], [context])
    expected = (3, 16, 40) if side in ("left", "right") else (3, 24, 32)
    assert image.shape == expected
    kept = {"right": (0, 0), "left": (2, 8), "down": (0, 0), "up": (1, 8)}[side]
    source = earlier[0].image
    there = image.narrow(kept[0], kept[1], source.shape[kept[0]]) if kept[1] else image[:, :16, :32]
    beside = {"right": there[..., :-8], "left": there[..., 8:], "down": there[:, :-8], "up": there[:, 8:]}[side]
    same = {"right": source[..., :-8], "left": source[..., 8:], "down": source[:, :-8], "up": source[:, 8:]}[side]
    assert torch.equal(beside, same)
    if not latent:  # in pixels what is known stays known within the strip, too
        assert torch.equal(there, source)


def test_too_small_an_image_cannot_be_continued() -> None:
    head = pixel_head(extending_tasks=["extend"]).eval()
    earlier = [ImageResult(Call("draw", "it"), SOURCE[..., :4])]
    context = HeadContext(Call("extend", "a dog", (ResultRef(0),)), [], earlier, {})
    with pytest.raises(ValueError, match="at least 8 pixels on its right, got 4"):
        images(head, torch.randn(1, STATE), [1], [context])


def test_arguments_that_do_not_fit_are_refused(saved: Saved) -> None:
    directory = str(saved("StableDiffusionPipeline"))
    with pytest.raises(ExpertError, match="expected cross-attention of width 24, got 16"):
        head = StateImageHead(STATE, 24, directory, tokens=TOKENS, drawing=DRAWING)
        images(head, torch.randn(1, STATE), [1], [call("a dog")])
    with pytest.raises(ValueError, match="expected an expert, or a unet and tokens"):
        ResolutionImageHead(STATE, WIDTH)
    with pytest.raises(ValueError, match="side: expected one of"):
        pixel_head(side="north")
    with pytest.raises(ValueError, match="condition_dropout"):
        state_head(saved, condition_dropout=1.0)
    with pytest.raises(ValueError, match="expected levels above 0"):
        pixel_head(resolution=Resolution(lowest=0))
    with pytest.raises(ValueError, match="reads hidden states"):
        state_head(saved)(None, [0], [call("a dog")])


def test_schedulers_that_add_noise_go_as_in_a_pipeline(saved: Saved) -> None:
    """An ancestral sampler, with what is known put in at each step."""
    from diffusers import EulerAncestralDiscreteScheduler

    torch.manual_seed(0)
    denoiser, tokens = unet(), torch.randn(1, 3, WIDTH)
    known, mask = torch.randn(1, 4, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    mask[:, :3] = True
    noise = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        drawn = [
            sample(
                guided(denoiser, [Condition(tokens)], []),
                EulerAncestralDiscreteScheduler(),
                noise,
                3,
                [torch.Generator().manual_seed(seed)],
                (known, mask),
            )
            for seed in (0, 0, 1)
        ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[0][..., :3], known[..., :3])
