"""Text as ids: equal to the tokenizer's own call, whatever was asked of the tokenizer before."""

from __future__ import annotations

import pytest

from models.tokenizer import train_tokenizer
from routers.plain_text import plain_ids
from routers.tasks import TaskTable
from tests.tiny import TASKS, WORDS

TEXTS = ["where is the red 7?", "", "  draw </ground> a\nblue\t4 <ground>", "grün, 数字 🙂", "<|im_end|>", "7 " * 300]


@pytest.mark.parametrize("before", ["nothing", "padding", "truncation", "control tokens"])
def test_ids_are_those_of_the_tokenizers_call(before: str) -> None:
    tokenizer = train_tokenizer([WORDS] * 4, 400, TaskTable.from_dict(TASKS))
    expected = [tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in TEXTS]
    if before == "padding":
        tokenizer(["a", "a b c"], padding="max_length", max_length=50)
    if before == "truncation":
        tokenizer("a b c", truncation=True, max_length=2)
    if before == "control tokens":
        assert tokenizer("<ground>", add_special_tokens=False)["input_ids"] == [
            tokenizer.convert_tokens_to_ids("<ground>")
        ]
    assert [plain_ids(tokenizer, text) for text in TEXTS] == expected
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert not special & {index for ids in expected for index in ids}
