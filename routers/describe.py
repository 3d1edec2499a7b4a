"""A task table as a page of documentation."""

from __future__ import annotations

from routers.tasks import TaskSpec, TaskTable


def describe_tasks(table: TaskTable) -> str:
    """A Markdown table with one row per task: how its call is written, what it needs and which head answers."""
    header = ["task", "written as", "needs", "link", "head", "loss weight", "what it does"]
    rows = [header, ["---"] * len(header), *(_row(task, table) for task in table)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"


def call_syntax(task: TaskSpec, table: TaskTable) -> str:
    """The shape of a task's call, such as ``<ground> prompt region* <anchor> </ground>``."""
    groundings = {
        "regions": "<region> x1,y1,x2,y2 </region>" if table.coordinates == "decimals" else "<region> x1 y1 x2 y2",
        "time_spans": "<span> start end",
        "nodes": "<node> index",
        "results": "<result> earlier-call",
    }
    parts = [task.open_token]
    parts += ["prompt"] if "prompt" in task.payload else []
    choices = [written for payload, written in groundings.items() if payload in task.payload]
    parts += [f"({' or '.join(choices)})*"] if choices else []
    parts += ["<anchor>"] if task.has_anchor else []
    parts += [f"{task.num_queries} queries"] if task.num_queries else []
    return " ".join([*parts, task.close_token])


def _row(task: TaskSpec, table: TaskTable) -> list[str]:
    needs = ", ".join(task.needs) or "nothing"
    link = f"queries ({task.num_queries})" if task.link == "queries" else task.link
    weight = f"{task.loss_weight:g}"
    return [f"`{task.name}`", f"`{call_syntax(task, table)}`", needs, link, task.head, weight, task.description]
