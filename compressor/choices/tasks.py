"""Named sets of lm-eval tasks, each task with its number of examples in the prompt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TaskSet:
    """A set of tasks that is called by one name.

    Attributes:
        help: One line for those who choose.
        tasks: lm-eval's name of each task -> shots; None where the task says it itself.
        headline: The metric that a table shows of each, as lm-eval calls it with its filter.
    """

    help: str
    tasks: dict[str, int | None]
    headline: dict[str, str]


# Shots as in the tables of Muralidharan et al., arXiv 2407.14679. Code and summaries are left out: they are
# run, or judged, by other programs.
TASK_SETS: dict[str, TaskSet] = {
    "published": TaskSet(
        help="the tasks of Minitron's tables that score by likelihood or exact match",
        tasks={
            "winogrande": 5,
            "arc_challenge": 25,
            "mmlu": 5,
            "hellaswag": 10,
            "gsm8k": 5,
            "truthfulqa_mc2": 0,
        },
        headline={
            "winogrande": "acc,none",
            "arc_challenge": "acc_norm,none",
            "mmlu": "acc,none",
            "hellaswag": "acc_norm,none",
            "gsm8k": "exact_match,strict-match",
            "truthfulqa_mc2": "acc,none",
        },
    ),
    "instruct": TaskSet(
        help="IFEval, whether instructions are followed; meant for the model's chat template",
        tasks={"ifeval": None},
        headline={"ifeval": "prompt_level_strict_acc,none"},
    ),
}
HEADLINES = {name: metric for chosen in TASK_SETS.values() for name, metric in chosen.headline.items()}
# Of a task that is in no set: the first of these that it has, else its first metric.
_USUAL = ("acc_norm,none", "acc,none", "exact_match,strict-match", "exact_match,none")


def headline_of(task: str, metrics: list[str]) -> str:
    """The metric that stands for a task, of those it has."""
    wanted = (HEADLINES.get(task, ""), *_USUAL)
    return next((name for name in wanted if name in metrics), metrics[0])


def expand_tasks(specs: tuple[str, ...]) -> dict[str, int | None]:
    """`published`, `piqa` or `arc_easy:5` as lm-eval's names and shots; None leaves them to the task.

    Raises:
        ValueError: for shots that are no number, or a task that is named twice.
    """
    found: dict[str, int | None] = {}
    for spec in specs:
        name, colon, shots = spec.partition(":")
        if colon and not (shots.isascii() and shots.isdecimal() and len(shots) <= 3):  # noqa: PLR2004
            raise ValueError(f"{spec!r} is not TASK or TASK:SHOTS, such as arc_easy:5")
        own = TASK_SETS[name].tasks if name in TASK_SETS else {name: int(shots) if colon else None}
        if name in TASK_SETS and colon:
            raise ValueError(f"{name} sets the shots of its tasks, and {spec!r} gives others")
        if doubled := sorted(found.keys() & own.keys()):
            raise ValueError(f"the task {doubled[0]!r} is named twice")
        found |= own
    return found
