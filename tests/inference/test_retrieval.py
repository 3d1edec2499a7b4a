"""Beam search under a corpus: exhaustive on a small one, and the decode loop under the same constraint."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from inference.choosing import DecodingOptions
from inference.conversation import Conversation
from inference.decoding import Start, decode
from inference.reading.fused import FusedReader
from inference.reading.generic import GenericReader
from inference.retrieval import NgramRetriever, beam_search
from routers.retrieve import NgramIndex, PrefixConstraint, PrefixTree
from tests.inference.test_session import IMAGE

QUESTIONS = [Conversation.ask("where is the red 7?", images=[IMAGE]), Conversation.ask("it")]


def log_probability(generalist, question, ids):
    """Of a whole reply, by one forward over prompt and reply."""
    from data.render import render_prompt
    from inference.encoding import PromptReader, media_keys

    plan = generalist.plan()
    rendered = render_prompt(question.messages, question.media, plan)
    (prompt,) = PromptReader(generalist, 1).read([rendered], [media_keys(rendered)], [question.media])
    total = 0.0
    for place, token in enumerate(ids):
        written = generalist.embed(torch.tensor(ids[:place], dtype=torch.long))
        reading = GenericReader(generalist).read([torch.cat([prompt.embeds, written])], [None])
        total += float(reading.logits.float().log_softmax(-1)[0, token])
    return total


@torch.inference_mode()
def test_with_enough_beams_every_ngram_is_found_with_its_probability(generalist):
    corpus = [[100, 101, 102], [101, 100]]
    found = beam_search(generalist, QUESTIONS, NgramIndex(corpus), beams=20, length=2)
    for question, own in zip(QUESTIONS, found, strict=True):
        expected = {(100,), (101,), (102,), (100, 101), (101, 102), (101, 100)}
        assert {item.ids for item in own} == expected
        for item in own:
            assert item.log_probability == pytest.approx(log_probability(generalist, question, item.ids), abs=1e-3)


@torch.inference_mode()
def test_names_are_whole_and_the_likeliest_is_found_first(generalist):
    names = [list(pair) for pair in product((100, 101, 102), (103, 104))]
    eos = generalist.vocabulary.eos_id
    for own, question in zip(beam_search(generalist, QUESTIONS, PrefixTree(names), 6, 4), QUESTIONS, strict=True):
        assert sorted(list(item.ids) for item in own) == sorted(names)
        best = max(names, key=lambda name: log_probability(generalist, question, [*name, eos]))
        assert max(own, key=lambda item: item.log_probability).ids == tuple(best)
    assert beam_search(generalist, [], PrefixTree(names), 1, 1) == []


def test_the_decode_loop_takes_the_constraint(generalist):
    """Rows that end leave the batch, and the constraint's rows with them."""
    index = NgramIndex([[100, 101, 102, 103], [104, 105]])
    prompts = [torch.randn(length, 32) for length in (3, 5, 2, 4)]
    constraint = PrefixConstraint(index, 4, generalist.vocabulary.eos_id, max_tokens=3)
    options = DecodingOptions(8, temperature=3.0)
    stop = [generalist.vocabulary.eos_id]
    starts = [Start(item) for item in prompts]
    decoded = decode(FusedReader.of(generalist), starts, options, stop_ids=stop, constraint=constraint)
    assert all(index.count(item.token_ids) > 0 and item.finish_reason == "stop" for item in decoded)
    assert len({tuple(item.token_ids) for item in decoded}) > 1


def test_documents_are_retrieved_best_first(generalist):
    corpus = [[100, 101, 102], [103, 104], [105, 106, 107, 108]]
    retriever = NgramRetriever(generalist, NgramIndex(corpus), beams=3, length=3, smoothing=0.0)
    for found in retriever.retrieve(QUESTIONS, count=2):
        assert len(found) <= 2 and found == sorted(found, key=lambda item: -item.score)
    with pytest.raises(ValueError, match="beams, length"):
        NgramRetriever(generalist, NgramIndex(corpus), beams=0)
