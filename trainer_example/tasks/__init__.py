"""The tasks by name: `rules`, `fog`, `reasoning_gym:chain_sum`, `arc_agi_1_easy`, `math`, `mbpp_to_humaneval`.

A name may carry options, as `rules:hard=true,seed=3`: keyword arguments of the task, their values written as in YAML.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import yaml

from trainer_example.tasks.task import Problem, Task

# Each is imported when asked for: none needs another's requirements.
TASKS = {
    "rules": "trainer_example.tasks.rules:Rules",
    "fog": "trainer_example.tasks.fog:Fog",
    "reasoning_gym": "trainer_example.tasks.reasoning_gym:ReasoningGym",
    "arc_agi_1_easy": "trainer_example.tasks.arc:ArcAgi1Easy",
    "math": "trainer_example.tasks.math:HendrycksMath",
    "mbpp_to_humaneval": "trainer_example.tasks.code:MbppToHumanEval",
}


def task_named(text: str) -> Task:
    """The task that `text` names, made with the options it carries.

    Args:
        text: NAME or NAME:OPTION=VALUE,...; of reasoning_gym the first may be the generator's name alone.

    Raises:
        ValueError: there is no such task, or the options are not its own.
    """
    name, _, options = text.partition(":")
    if name not in TASKS:
        raise ValueError(f"task: is {name!r}; must be one of {', '.join(TASKS)}")
    module, _, noun = TASKS[name].partition(":")
    kind = getattr(importlib.import_module(module), noun)
    positional, named = _arguments(options)
    taken = inspect.signature(kind).parameters
    for option, value in named.items():
        default = taken[option].default if option in taken else None
        if option not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            raise ValueError(f"task: {name} has no option {option!r}; it has {', '.join(taken)}")
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError(f"task: {option} is {value!r}; must be true or false")
    try:
        task: Task = kind(*positional, **named)
    except TypeError as error:
        raise ValueError(f"task: {name} does not take {options!r}: {error}") from error
    return task


def _arguments(options: str) -> tuple[list[str], dict[str, Any]]:
    positional, named = [], {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if equals:
            named[key.strip()] = yaml.safe_load(value)
        else:
            positional.append(key.strip())
    return positional, named


__all__ = ["TASKS", "Problem", "Task", "task_named"]
