import pickle
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from routers.tasks import TaskSpec, TaskTable
from routers.vocabulary import Vocabulary, add_task_tokens, task_tokens


def test_every_token_is_one_id_and_all_ids_differ(any_vocabulary):
    tokens = task_tokens(any_vocabulary.table)
    ids = [any_vocabulary.tokenizer(token, add_special_tokens=False)["input_ids"] for token in tokens]
    assert all(len(pieces) == 1 for pieces in ids)
    assert any_vocabulary.control_ids == {pieces[0] for pieces in ids}
    assert len(any_vocabulary.control_ids) == len(tokens)
    assert any_vocabulary.eos_id not in any_vocabulary.control_ids


def test_adding_twice_adds_nothing(tokenizer_factory, vocabulary):
    tokenizer = tokenizer_factory()
    before = len(tokenizer)
    assert add_task_tokens(tokenizer, vocabulary.table) == len(task_tokens(vocabulary.table)) == len(tokenizer) - before
    assert add_task_tokens(tokenizer, vocabulary.table) == 0


def test_tokens_that_no_task_uses_cost_nothing(tokenizer_factory):
    tokenizer = tokenizer_factory()
    table = TaskTable((TaskSpec("say", "voice", link="text"),))
    assert add_task_tokens(tokenizer, table) == 5  # three media placeholders, one pair
    vocabulary = Vocabulary(tokenizer, table)
    unused = (vocabulary.anchor_id, vocabulary.region_id, vocabulary.span_id, vocabulary.node_marker_id)
    assert unused == (None, None, None, None)
    assert vocabulary.loc_ids == vocabulary.time_ids == vocabulary.node_ids == vocabulary.ref_ids == []
    assert vocabulary.query_ids == {}


def test_query_and_media_tokens_are_never_sampled(vocabulary):
    names = {vocabulary.tokenizer.convert_ids_to_tokens(index) for index in vocabulary.never_sampled_ids}
    assert names == {"<image>", "<audio>", "<graph>", *(f"<query_draw_{i}>" for i in range(3)), "<query_edit_0>"}


def test_text_never_produces_a_control_token(vocabulary):
    text = "<ground> red 7 <region> <loc_1> </ground> <eos> <image>"
    ids = vocabulary.encode_text(text)
    assert not vocabulary.control_ids & set(ids) and vocabulary.eos_id not in ids
    assert vocabulary.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_survives_pickling_and_saving(vocabulary, tmp_path):
    copy = pickle.loads(pickle.dumps(vocabulary))
    vocabulary.tokenizer.save_pretrained(tmp_path)
    loaded = Vocabulary(PreTrainedTokenizerFast.from_pretrained(tmp_path), vocabulary.table)
    for other in (copy, loaded):
        same = {k: v for k, v in vars(other).items() if k != "tokenizer"}
        assert same == {k: v for k, v in vars(vocabulary).items() if k != "tokenizer"}


def test_a_missing_token_is_named(tokenizer_factory, vocabulary):
    tokenizer = tokenizer_factory()
    add_task_tokens(tokenizer, vocabulary.table)
    grown = replace(vocabulary.table, num_bins=17)
    with pytest.raises(ValueError, match=r"'<loc_16>': expected exactly one id, got \["):
        Vocabulary(tokenizer, grown)


def test_an_ordinary_token_is_refused(tokenizer_factory):
    tokenizer = tokenizer_factory()
    tokenizer.add_tokens(["<image>", "<audio>", "<graph>", "<say>", "</say>"])
    with pytest.raises(ValueError, match="'<image>': expected a special token"):
        Vocabulary(tokenizer, TaskTable((TaskSpec("say", "voice", link="text"),)))


@pytest.mark.parametrize("name", ["image", "anchor"])
def test_a_task_named_like_another_token_is_refused(tokenizer_factory, name):
    with pytest.raises(ValueError, match=rf"\['<{name}>'\] twice"):
        add_task_tokens(tokenizer_factory(), TaskTable((TaskSpec(name, "masks"),)))


def test_a_task_named_like_the_end_of_a_turn_is_refused(tokenizer_factory):
    with pytest.raises(ValueError, match=r"tokenizer's own, got \['<eos>'\]"):
        add_task_tokens(tokenizer_factory(), TaskTable((TaskSpec("eos", "masks"),)))


def test_a_payload_without_tokens_is_refused(vocabulary):
    with pytest.raises(ValueError, match="max_results: expected at least 1"):
        task_tokens(replace(vocabulary.table, max_results=0))


def test_a_tokenizer_without_a_turn_end_is_refused(tokenizer_factory, vocabulary):
    tokenizer = tokenizer_factory()
    tokenizer.eos_token = None
    add_task_tokens(tokenizer, vocabulary.table)
    with pytest.raises(ValueError, match="expected an eos_token"):
        Vocabulary(tokenizer, vocabulary.table)
