import pytest
import torch
from transformers import PreTrainedTokenizerFast

from layers.calls import Call, NodeRef, Region, ResultRef, TimeSpan
from routers.constraint import CallConstraint, never_sampled_mask
from routers.grammar import Grammar, State, grammar_of
from routers.parser import parse
from routers.rendering import render_call
from routers.tasks import TaskSpec, TaskTable
from routers.vocabulary import Vocabulary, add_task_tokens

PADDING = 5  # columns of logits beyond the tokenizer, as models round up


def legal(constraint: CallConstraint, vocabulary, batch: int) -> torch.Tensor:
    return constraint.mask(torch.zeros(batch, len(vocabulary.tokenizer) + PADDING)).isfinite()


def availabilities(vocabulary, batch: int, generator: torch.Generator) -> list[list[str]]:
    names = list(vocabulary.open_ids)
    return [[name for name in names if torch.rand((), generator=generator) < 0.6] for _ in range(batch)]


def sample(logits: torch.Tensor, constraint: CallConstraint, generator: torch.Generator) -> list[int]:
    """As a decode loop does: the mask, a draw, and the query tokens placed."""
    drawn = torch.multinomial(constraint.mask(logits).softmax(-1), 1, generator=generator)[:, 0].tolist()
    return [d if f is None else f for d, f in zip(drawn, constraint.forced_ids(), strict=True)]


@pytest.mark.parametrize("seed", range(6))
def test_random_logits_never_make_a_parse_error(any_vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    batch, size = 24, len(any_vocabulary.tokenizer)
    available = availabilities(any_vocabulary, batch, generator)
    constraint = CallConstraint(any_vocabulary, available)
    never = never_sampled_mask(any_vocabulary, size + PADDING)
    bias = torch.zeros(size + PADDING)
    bias[sorted(any_vocabulary.control_ids)] = 3.0
    bias[size:] = 9.0
    replies: list[list[int]] = [[] for _ in range(batch)]
    ended = [False] * batch
    for _ in range(150):
        logits = torch.randn(batch, size + PADDING, generator=generator) * 2 + bias
        forced = constraint.forced_ids()
        tokens = sample(logits.masked_fill(never, float("-inf")), constraint, generator)
        constraint.advance(torch.tensor(tokens))
        for row, token in enumerate(tokens):
            assert ended[row] or forced[row] == token or token not in any_vocabulary.never_sampled_ids
            if not ended[row]:
                replies[row].append(token)
            ended[row] = ended[row] or token == any_vocabulary.eos_id
    counts = {"calls": 0, "groundings": 0, "references": 0}
    for reply, names, done in zip(replies, available, ended, strict=True):
        parsed = parse(reply, any_vocabulary, names)
        assert [error.kind for error in parsed.errors] in ([[]] if done else [[], ["unfinished"]])
        assert all(error.token_span[1] == len(reply) for error in parsed.errors)
        counts["calls"] += len(parsed.calls)
        counts["groundings"] += sum(len(call.groundings) for call in parsed.calls)
        counts["references"] += sum(isinstance(g, ResultRef) for call in parsed.calls for g in call.groundings)
    assert counts["calls"] > 50 and counts["groundings"] > 20 and counts["references"] > 0


def test_the_mask_is_the_grammar(any_vocabulary):
    """At every state of a random walk, the mask allows exactly the tokens that the automaton takes."""
    grammar = grammar_of(any_vocabulary)
    generator = torch.Generator().manual_seed(0)
    batch, size = 8, len(any_vocabulary.tokenizer)
    available = availabilities(any_vocabulary, batch, generator)
    constraint = CallConstraint(any_vocabulary, available)
    bias = torch.zeros(size + PADDING)
    bias[sorted(any_vocabulary.control_ids)] = 3.0
    bias[any_vocabulary.eos_id] = -9.0
    states, referred = [State() for _ in range(batch)], [False] * batch
    refer = {task.name for task in any_vocabulary.table if task.refers}
    visited = set()
    for _ in range(30):
        allowed = legal(constraint, any_vocabulary, batch)
        for row, state in enumerate(states):
            visited.add(grammar.nodes[state.node].place)
            if grammar.forced_id(state) is not None:
                assert not allowed[row, sorted(any_vocabulary.control_ids)].any() and allowed[row].any()
                continue
            begin = set(available[row]) | (refer if state.begun else set())
            barred = {index for name, index in any_vocabulary.open_ids.items() if name not in begin}
            task = grammar.nodes[state.node].task
            if task is not None and task.name not in available[row] and not referred[row]:
                barred |= {any_vocabulary.anchor_id, any_vocabulary.close_ids[task.name]}
            taken = {i for i in range(size + PADDING) if isinstance(grammar.step(state, i), State)} - barred
            assert set(allowed[row].nonzero()[:, 0].tolist()) == taken
        logits = torch.randn(batch, size + PADDING, generator=generator) * 2 + bias
        tokens = sample(logits, constraint, generator)
        constraint.advance(tokens)
        steps = [grammar.step(state, token) for state, token in zip(states, tokens, strict=True)]
        referred = [
            token in any_vocabulary.ref_ids or (was and step.begun == state.begun)
            for was, state, step, token in zip(referred, states, steps, tokens, strict=True)
        ]
        states = [step for step in steps if isinstance(step, State)]
    boxes = "value" if any_vocabulary.end_region_id is None else "decimals"
    assert visited >= {"outside", "prompt", "grounded", "anchored", "query", boxes}


def test_every_rendered_reply_is_allowed(any_vocabulary):
    box = Region((0.1, 0.25, 0.1, 1.0))
    calls = [
        Call("draw", "a blue 4"),
        Call("edit", "red", (ResultRef(0), box, box)),
        Call("speak", "", (TimeSpan(0.0, 0.9), ResultRef(1))),
        Call("layout", "", (NodeRef(4), box)),
        Call("classify", ""),
    ]
    ids = any_vocabulary.encode_text("so: ")
    for call in calls:
        ids += render_call(call, any_vocabulary, any_vocabulary.tokenizer).ids
    constraint = CallConstraint(any_vocabulary, [list(any_vocabulary.open_ids)])
    for token in [*ids, any_vocabulary.eos_id]:
        assert constraint.forced_ids() == [token] or legal(constraint, any_vocabulary, 1)[0, token]
        constraint.advance([token])
    assert legal(constraint, any_vocabulary, 1)[0].nonzero().tolist() == [[any_vocabulary.eos_id]]


def test_a_call_can_always_be_closed(any_vocabulary):
    """From wherever a random walk stands, a model that wants to stop gets to the end of its turn."""
    generator = torch.Generator().manual_seed(1)
    batch, size = 16, len(any_vocabulary.tokenizer)
    constraint = CallConstraint(any_vocabulary, [list(any_vocabulary.open_ids)] * batch)
    bias = torch.zeros(size)
    bias[sorted(any_vocabulary.control_ids)] = 3.0
    for _ in range(40):
        constraint.advance(sample(torch.randn(batch, size, generator=generator) + bias, constraint, generator))
    wish = torch.zeros(size)
    for strength, index in enumerate([any_vocabulary.anchor_id, *any_vocabulary.close_ids.values()]):
        wish[index] = 10.0 + strength
    if any_vocabulary.end_region_id is not None:
        wish[any_vocabulary.end_region_id] = 40.0
    wish[any_vocabulary.eos_id] = 50.0
    wish[any_vocabulary.encode_text("a")[0]] = -1.0
    for _ in range(40):
        chosen = constraint.mask(wish.expand(batch, -1)).argmax(-1).tolist()
        constraint.advance([c if f is None else f for c, f in zip(chosen, constraint.forced_ids(), strict=True)])
    ends = legal(constraint, any_vocabulary, batch)
    assert ends.sum(-1).tolist() == [1] * batch and ends[:, any_vocabulary.eos_id].all()


def test_only_available_tasks_begin(vocabulary):
    constraint = CallConstraint(vocabulary, [["seg"], [], list(vocabulary.open_ids)])
    allowed = legal(constraint, vocabulary, 3)
    opens = torch.tensor(list(vocabulary.open_ids.values()))
    assert allowed[:, opens].sum(-1).tolist() == [1, 0, len(opens)]
    assert allowed[0, vocabulary.open_ids["seg"]]
    assert allowed[:, vocabulary.eos_id].all() and allowed[:, vocabulary.encode_text("a")[0]].all()
    assert not allowed[:, vocabulary.tokenizer.pad_token_id].any()


def test_a_task_that_is_not_available_begins_after_a_call_and_ends_when_it_has_referred_to_it(vocabulary):
    """An edit of what was drawn: the conversation has no image, the reply has."""
    constraint = CallConstraint(vocabulary, [["draw"], ["draw", "edit"]])
    edit, close = vocabulary.open_ids["edit"], vocabulary.close_ids["edit"]
    assert legal(constraint, vocabulary, 2)[:, edit].tolist() == [False, True]
    drawn = render_call(Call("draw", "a 4"), vocabulary, vocabulary.tokenizer).ids
    for token in [*drawn, edit, *vocabulary.encode_text("red")]:
        constraint.advance([token, token])
    ends = [vocabulary.anchor_id, vocabulary.result_id]
    assert legal(constraint, vocabulary, 2)[:, ends].tolist() == [[False, True], [True, True]]
    rest = [vocabulary.result_id, vocabulary.ref_ids[0], vocabulary.anchor_id, *vocabulary.query_ids["edit"], close]
    for token in rest:
        assert constraint.forced_ids()[0] == token or legal(constraint, vocabulary, 2)[0, token]
        constraint.advance([token, token])
    ids = [*drawn, edit, *vocabulary.encode_text("red"), *rest]
    assert [call.task for call in parse(ids, vocabulary, ["draw"]).calls] == ["draw", "edit"]
    assert not legal(constraint, vocabulary, 2)[0, vocabulary.open_ids["seg"]], "it cannot refer to anything"


def test_boxes_are_ordered_by_the_mask(vocabulary):
    constraint = CallConstraint(vocabulary, [["ground"]])
    locs = torch.tensor(vocabulary.loc_ids)
    for token in (vocabulary.open_ids["ground"], vocabulary.region_id, vocabulary.loc_ids[3], vocabulary.loc_ids[9]):
        constraint.advance([token])
    assert legal(constraint, vocabulary, 1)[0, locs].nonzero()[:, 0].tolist() == list(range(3, 16))
    constraint.advance([vocabulary.loc_ids[15]])
    assert legal(constraint, vocabulary, 1)[0, locs].nonzero()[:, 0].tolist() == list(range(9, 16))


def test_an_illegal_token_is_refused_naming_the_reply(vocabulary):
    constraint = CallConstraint(vocabulary, [[], []])
    with pytest.raises(ValueError, match="reply 1: expected a token that the mask allows"):
        constraint.advance([vocabulary.eos_id, vocabulary.anchor_id])


def test_wrong_shapes_and_names_are_refused(vocabulary):
    with pytest.raises(ValueError, match="available tasks: expected some of"):
        CallConstraint(vocabulary, [["paint"]])
    with pytest.raises(ValueError, match="expected 1 rows, one per reply, got 2"):
        CallConstraint(vocabulary, [[]]).mask(torch.zeros(2, len(vocabulary.tokenizer)))
    with pytest.raises(ValueError, match="expected at least"):
        CallConstraint(vocabulary, [[]]).mask(torch.zeros(1, 10))
    with pytest.raises(ValueError, match="token_ids: expected 1"):
        CallConstraint(vocabulary, [[]]).advance([1, 2])


def test_unconstrained_decoding_bans_placeholders_queries_and_rows_without_a_token(vocabulary):
    size = len(vocabulary.tokenizer)
    banned = set(never_sampled_mask(vocabulary, size + PADDING).nonzero()[:, 0].tolist())
    assert banned == vocabulary.never_sampled_ids | set(range(size, size + PADDING))


def test_a_table_without_tasks_leaves_text(tokenizer_factory):
    tokenizer = tokenizer_factory()
    add_task_tokens(tokenizer, TaskTable())
    vocabulary = Vocabulary(tokenizer, TaskTable())
    allowed = legal(CallConstraint(vocabulary, [[]]), vocabulary, 1)[0]
    assert allowed.sum() == len(tokenizer) - 3 - 3 + 1  # neither placeholders nor special tokens, but the end
    assert [node.place for node in Grammar(vocabulary).nodes] == ["outside", "ended"]


def test_decimals_need_a_tokenizer_that_can_write_them(tokenizer_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1, "0": 2, ".": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")
    table = TaskTable((TaskSpec("ground", "boxes", payload=("regions",)),), coordinates="decimals")
    add_task_tokens(tokenizer, table)
    with pytest.raises(ValueError, match="use coordinates 'bins'"):
        Grammar(Vocabulary(tokenizer, table))
