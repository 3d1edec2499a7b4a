"""A task table as a page of documentation: its tasks, how their calls are written, the tokens that this takes."""

from __future__ import annotations

from routers.tasks import TaskSpec, TaskTable
from routers.vocabulary import MEDIA_KINDS, task_tokens

_GROUNDINGS = {
    "regions": ("<region> x1 y1 x2 y2", "a box of the latest image"),
    "time_spans": ("<span> start end", "a stretch of the latest audio or video"),
    "nodes": ("<node> index", "a node of the latest graph"),
    "results": ("<result> earlier-call", "the result of an earlier call of the reply, counted from 0"),
}
_LINKS = {
    "text": "the prompt alone",
    "boxes": "the prompt and the groundings",
    "hidden": "the hidden state at the anchor, with its gradient",
    "queries": "the states of the head's learned queries, with their gradient",
}


def describe(table: TaskTable, title: str) -> str:
    """The page, in Markdown.

    Args:
        table: The task table.
        title: What it is the table of.
    """
    parts = [
        f"# Tasks of {title}\n",
        describe_tasks(table),
        "## How a call is written\n",
        _grammar(table),
        "## What reaches the heads\n",
        "".join(f"- `{link}`: {what}: {_names(table, link)}\n" for link, what in _LINKS.items() if _names(table, link)),
        "## Tokens\n",
        _tokens(table),
    ]
    return "\n".join(parts)


def describe_tasks(table: TaskTable) -> str:
    """A Markdown table with one row per task: how its call is written, what it needs and which head answers."""
    header = ["task", "written as", "needs", "link", "head", "loss weight", "what it does"]
    rows = [header, ["---"] * len(header), *(_row(task, table) for task in table)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"


def call_syntax(task: TaskSpec, table: TaskTable) -> str:
    """The shape of a task's call, such as ``<ground> prompt region* <anchor> </ground>``."""
    parts = [task.open_token]
    parts += ["prompt"] if "prompt" in task.payload else []
    choices = [_written(payload, table) for payload in _GROUNDINGS if payload in task.payload]
    parts += [f"({' or '.join(choices)})*"] if choices else []
    parts += ["<anchor>"] if task.has_anchor else []
    parts += [f"{task.num_queries} queries"] if task.num_queries else []
    return " ".join([*parts, task.close_token])


def _row(task: TaskSpec, table: TaskTable) -> list[str]:
    needs = ", ".join(task.needs) or "nothing"
    link = f"queries ({task.num_queries})" if task.link == "queries" else task.link
    link += " (state before the anchor)" if task.anchor_state == "before" else ""
    link += f", prompt as {task.prompt_tokens}" if task.reads_prompt else ""
    weight = f"{task.loss_weight:g}"
    return [f"`{task.name}`", f"`{call_syntax(task, table)}`", needs, link, task.head, weight, task.description]


def _written(payload: str, table: TaskTable) -> str:
    if payload == "regions" and table.coordinates == "decimals":
        return "<region> x1,y1,x2,y2 </region>"
    return _GROUNDINGS[payload][0]


def _grammar(table: TaskTable) -> str:
    lines = [
        "A reply is text with calls in between, in order. A call is its opening token, the prompt as ordinary text,",
        "groundings in any number and order, the anchor where the head reads a state, and its closing token.\n",
    ]
    used = [payload for payload in _GROUNDINGS if any(payload in task.payload for task in table)]
    lines += [f"- `{_written(payload, table)}`: {_GROUNDINGS[payload][1]}" for payload in used]
    if "regions" in used and table.coordinates == "bins":
        lines.append(f"- each of `x1 y1 x2 y2` is one of {table.num_bins} bins along its side, `<loc_0>` first")
    if "time_spans" in used:
        lines.append(f"- `start` and `end` are each one of {table.num_time_bins} bins of the clip")
    return "\n".join(lines) + "\n"


def _names(table: TaskTable, link: str) -> str:
    return ", ".join(f"`{task.name}`" for task in table if task.link == link)


def _tokens(table: TaskTable) -> str:
    kinds = {
        "placeholders of media": len(MEDIA_KINDS),
        "opening and closing tokens": 2 * len(table),
        "queries": sum(task.num_queries for task in table),
        "location bins": table.num_bins if table.uses("regions") and table.coordinates == "bins" else 0,
        "time bins": table.num_time_bins if table.uses("time_spans") else 0,
        "nodes": table.max_nodes if table.uses("nodes") else 0,
        "earlier results": table.max_results if table.uses("results") else 0,
    }
    total = len(task_tokens(table))
    kinds["markers"] = total - sum(kinds.values())
    rows = [f"| {name} | {count} |" for name, count in kinds.items() if count]
    return (
        "\n".join(["| kind | tokens |", "| --- | --- |", *rows, f"| all that the tokenizer gains | {total} |"]) + "\n"
    )
