"""The decode loop against transformers' own generation, and its invariants."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from inference.choosing import DecodingOptions
from inference.decoding import Decoded, Start, decode
from inference.reading.generic import GenericReader, left_pad

VOCABULARY = 40
STOP = 2


class CachedLlama:
    """A tiny Llama behind the two methods that the generic reader uses; counts its steps."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=STOP,
            pad_token_id=0,
            initializer_range=0.4,
        )
        self.model = LlamaForCausalLM(config).eval()
        self.batch_sizes: list[int] = []

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(input_ids)

    def step(self, inputs_embeds, attention_mask, position_ids, cache, conditions=None):
        assert conditions is None
        self.batch_sizes.append(inputs_embeds.shape[0])
        output = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        return SimpleNamespace(
            logits_last=output.logits[:, -1], hidden_states=output.hidden_states[-1], cache=output.past_key_values
        )


@pytest.fixture(scope="module")
def llama() -> CachedLlama:
    return CachedLlama()


def prompts(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in [5, 1, 9, 3, 7, 2, 6, 4][:count]]


def run(llama: CachedLlama, ids: list[Tensor], *, max_new_tokens: int = 24, **arguments) -> list[Decoded]:
    options = DecodingOptions(max_new_tokens, **arguments.pop("options", {}))
    each = [arguments.pop(name, [None] * len(ids)) for name in ("past", "follower", "stream", "limit")]
    starts = [Start(llama.embed(row), *own) for row, *own in zip(ids, *each, strict=True)]
    return decode(GenericReader(llama), starts, options, stop_ids=[STOP], **arguments)


def oracle(llama: CachedLlama, ids: Tensor, max_new_tokens: int = 24) -> tuple[list[int], str]:
    with torch.inference_mode():
        out = llama.model.generate(
            ids[None], attention_mask=torch.ones_like(ids)[None], max_new_tokens=max_new_tokens, do_sample=False
        )
    new = out[0, len(ids) :].tolist()
    return (new[:-1], "stop") if new[-1] == STOP else (new, "length")


def test_a_left_padded_batch_equals_generation_of_each_alone(llama):
    ids = prompts(8)
    decoded = run(llama, ids)
    reasons = set()
    for row, item in zip(ids, decoded, strict=True):
        expected, reason = oracle(llama, row)
        assert (item.token_ids, item.finish_reason) == (expected, reason)
        reasons.add(reason)
    assert reasons == {"stop", "length"}, "the random weights no longer cover both endings"


def test_batch_of_one_equals_batch_of_eight(llama):
    ids = prompts(8, seed=1)
    together = run(llama, ids)
    for row, item in zip(ids, together, strict=True):
        (alone,) = run(llama, [row])
        assert alone.token_ids == item.token_ids
        torch.testing.assert_close(alone.hidden_states, item.hidden_states, rtol=1e-4, atol=1e-4)


def test_log_probabilities_are_those_of_the_whole_sequence(llama):
    ids = prompts(8)
    plain, counted = run(llama, ids), run(llama, ids, options={"log_probabilities": True})
    for row, item, other in zip(ids, counted, plain, strict=True):
        assert item.token_ids == other.token_ids and other.log_probability is None
        ended = [STOP] if item.finish_reason == "stop" else []
        whole = torch.cat([row, torch.tensor(item.token_ids + ended)])
        with torch.inference_mode():
            scores = llama.model(whole[None]).logits[0, len(row) - 1 : -1].log_softmax(-1)
        expected = scores.gather(-1, whole[len(row) :, None]).sum().item()
        assert item.log_probability == pytest.approx(expected, rel=1e-3)


def test_hidden_states_are_those_at_the_generated_tokens(llama):
    ids = prompts(3)
    for row, item in zip(ids, run(llama, ids, max_new_tokens=6), strict=True):
        whole = torch.cat([row, torch.tensor(item.token_ids, dtype=torch.long)])
        with torch.inference_mode():
            states = llama.model(whole[None], output_hidden_states=True).hidden_states[-1][0, len(row) :]
        torch.testing.assert_close(item.hidden_states, states, rtol=1e-4, atol=1e-4)


def test_ended_rows_leave_the_batch_without_changing_the_others(llama):
    ids = prompts(8)
    stops = {STOP, 7, 11, 19}
    options = {"temperature": 2.0}  # varied tokens, so that the rows end at different times
    free = run(llama, ids, options=options)
    llama.batch_sizes.clear()
    starts = [Start(llama.embed(row)) for row in ids]
    decoded = decode(GenericReader(llama), starts, DecodingOptions(24, **options), stop_ids=sorted(stops))
    assert llama.batch_sizes[0] == 8 and llama.batch_sizes[-1] <= 2
    for item, whole in zip(decoded, free, strict=True):
        end = next((place for place, token in enumerate(whole.token_ids) if token in stops), len(whole.token_ids))
        assert item.token_ids == whole.token_ids[:end]


def test_never_sampled_tokens_do_not_appear(llama):
    ids = prompts(8)
    favourite = run(llama, ids)[0].token_ids[0]
    banned = run(llama, ids, never_sampled=torch.arange(VOCABULARY) == favourite)
    assert all(favourite not in item.token_ids for item in banned)


class Forced:
    """After ``trigger``, these tokens must follow."""

    def __init__(self, trigger: int, tokens: list[int]) -> None:
        self.trigger, self.tokens, self.queue = trigger, tokens, []

    def feed(self, token_id: int) -> None:
        if self.queue:
            assert token_id == self.queue.pop(0)
        elif token_id == self.trigger:
            self.queue = list(self.tokens)

    @property
    def forced_id(self) -> int | None:
        return self.queue[0] if self.queue else None


def test_forced_tokens_follow_their_trigger_although_never_sampled(llama):
    ids = prompts(4)
    trigger = run(llama, ids)[2].token_ids[1]
    banned = torch.isin(torch.arange(VOCABULARY), torch.tensor([30, 31]))
    decoded = run(llama, ids, never_sampled=banned, follower=[Forced(trigger, [30, 31]) for _ in ids])
    assert trigger in decoded[2].token_ids
    for item in decoded:
        for place, token in enumerate(item.token_ids[:-2]):
            if token == trigger:
                assert item.token_ids[place + 1 : place + 3] == [30, 31]
        assert item.token_ids.count(30) == 0 or trigger in item.token_ids
        assert item.hidden_states.shape[0] == len(item.token_ids)


def test_sampling_does_not_depend_on_the_batch(llama):
    ids = prompts(6)
    options = {"temperature": 1.3, "top_p": 0.9, "seed": 5}
    together = run(llama, ids, options=options)
    for number, row in enumerate(ids):
        (alone,) = run(llama, [row], options=options, stream=[number])
        assert alone.token_ids == together[number].token_ids
    assert [item.token_ids for item in run(llama, ids, options={**options, "seed": 6})] != [
        item.token_ids for item in together
    ]


def test_sampling_follows_the_nucleus():
    """4,000 draws of one step: frequencies match the renormalised nucleus, nothing falls outside it."""
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])

    class Constant:
        def embed(self, input_ids):
            return torch.zeros(*input_ids.shape, 1)

        def step(self, inputs_embeds, attention_mask, position_ids, cache, conditions=None):
            size = inputs_embeds.shape[0]
            return SimpleNamespace(
                logits_last=probabilities.log().expand(size, -1), hidden_states=inputs_embeds, cache=None
            )

    options = DecodingOptions(1, temperature=1.0, top_p=0.7, seed=0)
    decoded = decode(GenericReader(Constant()), [Start(torch.zeros(1, 1))] * 4000, options, stop_ids=[9])
    counts = torch.bincount(torch.tensor([item.token_ids[0] for item in decoded]), minlength=4) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.625, 0.375, 0.0, 0.0]), rtol=0, atol=0.03)


def test_reading_on_from_a_past_equals_reading_all(llama):
    """Rows with pasts of several lengths, and without one, in one batch."""
    ids = prompts(8)
    lengths = [3, 0, 8, 1, 4, 0, 5, 2]
    begun = [(row[:length], row[length:]) for row, length in zip(ids, lengths, strict=True)]
    read = iter(GenericReader(llama).read_pasts([llama.embed(first) for first, _ in begun if len(first)]))
    pasts = [next(read) if len(first) else None for first, _ in begun]
    assert [0 if past is None else past.length for past in pasts] == lengths
    for on, whole in zip(run(llama, [rest for _, rest in begun], past=pasts), run(llama, ids), strict=True):
        assert (on.token_ids, on.finish_reason) == (whole.token_ids, whole.finish_reason)
        torch.testing.assert_close(on.hidden_states, whole.hidden_states, rtol=1e-4, atol=1e-4)


class Watching:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.prompts_read, self.tokens, self.pasts = False, {}, {}

    def prefilled(self) -> None:
        self.prompts_read = True

    def appended(self, new) -> None:
        for row, token, state in new:
            self.tokens.setdefault(row, []).append((token, state))

    def ended(self, row, past) -> None:
        self.pasts[row] = past()


def test_a_watcher_sees_every_token_and_the_past_that_a_reply_leaves(llama):
    ids = prompts(8)
    watch = Watching()
    decoded = run(llama, ids, watcher=watch, options={"temperature": 2.0})
    assert watch.prompts_read and {item.finish_reason for item in decoded} == {"stop", "length"}
    for row, item in enumerate(decoded):
        assert [token for token, _ in watch.tokens.get(row, [])] == item.token_ids
        said = torch.cat([ids[row], torch.tensor(item.token_ids, dtype=torch.long)])
        (fresh,) = GenericReader(llama).read_pasts([llama.embed(said)])
        for kept, expected in zip(watch.pasts[row].keys, fresh.keys, strict=True):
            torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-4)


def test_a_reply_is_cut_at_its_own_limit(llama):
    ids = prompts(4)
    free = run(llama, ids, options={"temperature": 2.0})
    cut = run(llama, ids, options={"temperature": 2.0}, limit=[3, None, 1, 50])
    for item, whole, limit in zip(cut, free, [3, 24, 1, 24], strict=True):
        assert item.token_ids == whole.token_ids[:limit]
        assert item.finish_reason == ("length" if len(whole.token_ids) >= limit else "stop")


def test_a_router_steers_before_the_choice(llama):
    ids = prompts(8)
    seen = []

    def steer(logits, states, rows):
        seen.append((logits.shape[0], states.shape[0], list(rows)))
        return logits.index_fill(1, torch.tensor([9]), 50.0) if len(seen) == 3 else logits

    decoded = run(llama, ids, steer=steer, options={"temperature": 1.0})
    assert all(a == b == len(rows) for a, b, rows in seen) and seen[0][2] == list(range(8))
    assert all(item.token_ids[2] == 9 for item in decoded if len(item.token_ids) > 2)


def test_left_padding():
    embeds, mask, positions = left_pad([torch.ones(2, 3), torch.ones(4, 3)], room=1)
    assert embeds[0, :2].abs().sum() == 0 and embeds[0, 2:].all()
    assert mask.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_options_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DecodingOptions(**wrong)


def test_an_empty_prompt_is_refused(llama):
    with pytest.raises(ValueError, match="prompt 1"):
        run(llama, [torch.tensor([3]), torch.tensor([], dtype=torch.long)])
