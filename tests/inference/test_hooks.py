"""Probes: what they see, what they change, and that nothing stays behind."""

from __future__ import annotations

import pytest
import torch

from inference.conversation import Conversation
from inference.hooks import hooked_layers
from inference.session import Session
from tests.inference.conftest import WIDTH

IMAGE = torch.randint(0, 256, (3, 20, 40), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
ASKED = [Conversation.ask("where is the red 7?", images=[IMAGE])]


def test_layers_are_seen_and_changed_and_left_as_they_were(generalist):
    session = Session(generalist, max_new_tokens=6, shared_prefix=0)
    (plain,) = session.generate(ASKED)
    seen = []
    with hooked_layers(generalist.language_model, {0: lambda states: seen.append(states.shape)}):
        assert session.generate(ASKED)[0].token_ids == plain.token_ids
    steps = len(plain.token_ids) + (plain.finish_reason == "stop")
    assert seen[0] == (1, len(plain.prompt_ids), WIDTH)
    assert seen[1:] == [(1, 1, WIDTH)] * (len(seen) - 1) and abs(len(seen) - 1 - steps) <= 1
    with hooked_layers(generalist.language_model, {-1: lambda states: torch.zeros_like(states)}):
        (emptied,) = session.generate(ASKED)
    assert len(set(emptied.token_ids)) == 1 and emptied.token_ids != plain.token_ids
    with pytest.raises(RuntimeError, match="mine"), hooked_layers(generalist.language_model, {0: _fail}):
        session.generate(ASKED)
    assert session.generate(ASKED)[0].token_ids == plain.token_ids
    assert not any(block._forward_hooks for block in generalist.language_model.blocks)
    number = len(generalist.language_model.blocks)
    with pytest.raises(ValueError, match=f"got {number}"), hooked_layers(generalist.language_model, {number: _fail}):
        pass


def _fail(states):
    raise RuntimeError("mine")


def test_the_input_transform_changes_what_encoders_and_heads_see(generalist):
    session = Session(generalist, max_new_tokens=12)
    seen = []

    def dark(kind, inputs):
        seen.append((kind, inputs["pixel_values"].shape))
        return {name: torch.zeros_like(value) for name, value in inputs.items()}

    plain = session.generate(ASKED)[0].token_ids
    changed = session.generate(ASKED, input_transform=dark)[0].token_ids
    assert changed != plain and seen == [("image", (3, 16, 16))]
    black = [Conversation.ask("where is the red 7?", images=[torch.zeros_like(IMAGE)])]
    unpadded = session.generate(black, input_transform=lambda kind, inputs: dark(kind, inputs))[0].token_ids
    assert unpadded == changed  # whatever the picture was
    assert session.generate(ASKED)[0].token_ids == plain


def test_the_prompt_is_told_as_the_model_read_it(generalist):
    session = Session(generalist, max_new_tokens=2)
    (reply,) = session.generate([Conversation.ask("the 9", images=[IMAGE, IMAGE])])
    text = session.prompt_text(reply)
    placeholder = session.plan.vocabulary.media_ids["image"]
    assert "x8the 9" in text  # two pictures of four positions, side by side
    assert reply.prompt_ids.count(placeholder) == 8
    written = session.plan.tokenizer.decode([placeholder], skip_special_tokens=False)
    assert text.count(written) == 1
