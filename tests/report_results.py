"""Invented results of evaluations, for the tests of what is shown of them."""

from __future__ import annotations

import numpy as np

CONDITIONS = {  # invented; how far each pulls accuracy down
    "clean": 0.0,
    "role": 0.01,
    "semantic": 0.04,
    "deepwordbug": 0.07,
    "textbugger": 0.09,
    "textfooler": 0.08,
    "checklist": 0.03,
    "stresstest": 0.05,
    "attack-textbugger": 0.2,
}
TASKS = {  # {task: (fields, answers, majority, accuracy)}
    "sst2": (("content",), ("negative", "positive"), 0.51, 0.88),
    "cola": (("content",), ("unacceptable", "acceptable"), 0.69, 0.74),
    "qqp": (("first", "second"), ("not a duplicate", "duplicate"), 0.63, 0.79),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), 0.35, 0.71),
    "qnli": (("question", "content"), ("entailment", "no entailment"), 0.5, 0.82),
    "rte": (("premise", "hypothesis"), ("yes", "no"), 0.53, 0.66),
    "mrpc": (("first", "second"), ("different", "equivalent"), 0.68, 0.78),
    "wnli": (("premise", "hypothesis"), ("no", "yes"), 0.56, 0.52),
}
OPENINGS = (
    "Decide which answer fits what follows and give it without any explanation:",
    "Please read this with care, then say what holds:",
    "You are a patient referee of language. Judge what stands below and reply with one label:",
)
GROUPS = {"coin": 0.02, "baseline": -0.02}


def make_results(groups=("coin", "baseline"), seeds=3, tasks=tuple(TASKS), scoring=("likelihood",)):
    """Results as the runner writes them, of invented prompts and seeded random numbers."""
    random = np.random.default_rng(0)
    runs = [
        {"name": f"{group}-{seed}" if seeds > 1 else group, "checkpoint": "", "group": group}
        for group in groups
        for seed in range(seeds)
    ]
    names = {"seed": 0, "sample": 200, "clean": "clean", "notes": [], "name": "glue"}
    suite = names | {
        "conditions": list(CONDITIONS),
        "tasks": list(tasks),
        "majority": {task: TASKS[task][2] for task in tasks},
        "instances": {task: 71 if task == "wnli" else 200 for task in tasks},
        "answers": {task: list(TASKS[task][1]) for task in tasks},
    }
    results = {"version": 1, "created": "2026-01-02T03:04:05+00:00", "suite": suite, "runs": runs}
    results |= {"scoring": list(scoring), "cells": [], "averages": [], "prompts": [], "flips": []}
    results |= {"comparisons": [], "gaps": [], "map": [], "attacks": []}
    for run in runs:
        for how in scoring:
            for task in tasks:
                _add_task(results, run, task, how, random)
            for condition in [*CONDITIONS, "all"]:
                members = [
                    cell
                    for cell in results["cells"]
                    if (cell["run"], cell["condition"], cell["scoring"])
                    == (run["name"], condition, how)
                ]
                row = {"run": run["name"], "condition": condition, "scoring": how}
                for field in members[0].keys() - {"run", "task", "condition", "scoring"}:
                    values = [cell[field] for cell in members if cell[field] is not None]
                    row[field] = float(np.mean(values)) if values else None
                results["averages"].append(row)
        _add_states(results, run, tasks, random)
    for other in groups[1:]:
        for how in scoring:
            for task in [*tasks, "average"]:
                for condition in [*CONDITIONS, "all"]:
                    _add_comparison(results, task, condition, how, (groups[0], other), random)
    return results


def wordings(task, condition):
    fields, answers = TASKS[task][:2]
    for index, opening in enumerate(OPENINGS):
        origin = f"{opening} {' or '.join(answers)}?\n" + "\n".join(
            f"{field.title()}: {{{field}}}" for field in fields
        )
        changes = {
            "role": ("give", "hand me"),
            "semantic": ("what", "all that"),
            "deepwordbug": ("answer", "anwser"),
            "textbugger": ("which", "wh ich"),
            "textfooler": ("explanation", "clarification"),
            "attack-textbugger": ("read this with care", "re ad thsi with cаre"),
        }
        if condition in changes:
            yield index, origin.replace(*changes[condition]).replace("Judge", "Jugde")
        elif condition == "clean":
            yield index, origin
        else:
            yield index, f"{origin} xJ3kQ and true is true"


def _add_task(results, run, task, how, random):
    name, skill = run["name"], TASKS[task][3] + GROUPS.get(run["group"], 0.0)
    everything = []
    for condition, loss in CONDITIONS.items():
        accuracies = []
        for index, text in wordings(task, condition):
            right = 1 - loss * random.uniform(0.5, 1.5) - random.uniform(0, 0.06)
            accuracy = round(200 * max(skill * right, 0.02)) / 200
            place = {"run": name, "task": task, "condition": condition, "index": index}
            origin = None if condition in ("clean", "role", "semantic") else index
            accuracies.append(accuracy)
            results["prompts"].append(
                place
                | {"text": text, "origin": origin, "scoring": how, "accuracy": accuracy}
                | {"invalid": 0.0 if how == "likelihood" else random.uniform(0, 0.1)}
            )
        place = {"run": name, "task": task, "condition": condition, "scoring": how}
        worst = int(np.argmin(accuracies))
        answers = TASKS[task][1]
        for number in range(2):
            results["flips"].append(
                place
                | {"index": worst, "instance": f"{task}-{number}"}
                | {"input": dict.fromkeys(TASKS[task][0], f"Invented sentence {number}.")}
                | {"label": answers[0], "clean_prediction": answers[0], "prediction": answers[1]}
            )
        clean = results["cells"][-1]["clean"] if everything else float(np.mean(accuracies))
        results["cells"].append(place | _statistics(accuracies, task, random) | {"clean": clean})
        results["cells"][-1]["drop_rate"] = (
            None if condition == "clean" else 1 - float(np.mean(accuracies)) / clean
        )
        everything += accuracies
        if condition.startswith("attack"):
            for index, text in wordings(task, condition):
                attack = {"run": name, "task": task, "condition": condition, "index": index}
                attack |= {"text": text, "origin": index, "clean_accuracy": clean}
                attack |= {"accuracy": accuracies[index], "queries": 480}
                results["attacks"].append(attack)
    place = {"run": name, "task": task, "condition": "all", "scoring": how}
    place |= {"clean": clean, "drop_rate": None}
    results["cells"].append(place | _statistics(everything, task, random))


def _statistics(accuracies, task, random):
    best, worst = max(accuracies), min(accuracies)
    return {
        "mean": float(np.mean(accuracies)),
        "std": float(np.std(accuracies)),
        "best": best,
        "worst": worst,
        "spread": best - worst,
        "item_worst": worst * 0.7,
        "sensitivity": random.uniform(0.05, 0.3),
        "consistency": random.uniform(0.7, 0.95),
        "posix": random.uniform(0.1, 0.6),
        "ece": random.uniform(0.02, 0.2),
        "invalid": 0.0,
        "majority": TASKS[task][2],
        "wordings": len(accuracies),
        "instances": 200,
    }


def _add_comparison(results, task, condition, how, pair, random):
    difference, width = random.normal(0.03, 0.03), 0.03 if task == "average" else 0.06
    resolvable = bool(abs(difference) > width or task == "average")
    p = float(np.clip(2 * np.exp(-3 * (difference / width) ** 2), 0.0002, 1))
    results["comparisons"].append(
        {"task": task, "condition": condition, "scoring": how, "a": pair[0], "b": pair[1]}
        | {"difference": difference, "low": difference - width, "high": difference + width}
        | {"p": p, "p_holm": min(1.0, 3 * p), "resolvable": resolvable, "smallest": width}
        | {"items": sum(results["suite"]["instances"].values()) if task == "average" else 200}
    )


def _add_states(results, run, tasks, random):
    tight = 0.5 if run["group"] == "coin" else 1.2
    for pooling, shift in (("decoder-first", 0.0), ("encoder-mean", 0.2)):
        positive, negative = 0.9 - tight / 10 + shift / 10, 0.3 + tight / 4 + shift
        gap = {"positive": positive, "negative": negative, "gap": positive - negative}
        results["gaps"].append({"run": run["name"], "pooling": pooling} | gap)
    points = []
    for number in range(2 * len(tasks)):
        task, instance = tasks[number // 2], number % 2
        centre = random.normal(0, 3, 2)
        for condition in ("clean", "role", "semantic", "semantic"):
            x, y = centre + random.normal(0, tight, 2)
            point = {"x": x, "y": y, "task": task, "instance": instance, "condition": condition}
            points.append(point | {"label": TASKS[task][1][instance]})
    results["map"].append({"run": run["name"], "points": points})


def bare(**changed):
    """One run on one task, by hand: nothing but what must be there."""
    place = {"run": "only", "task": "rte", "condition": "clean", "scoring": "likelihood"}
    statistics = {"mean": 0.625, "worst": 0.5, "best": 0.75, "std": 0.125, "invalid": 0.0}
    suite = {"name": "mine", "seed": 0, "sample": None, "clean": "clean", "notes": []}
    suite |= {"conditions": ["clean"], "tasks": ["rte"], "majority": {"rte": 0.55}}
    suite |= {"instances": {"rte": 8}, "answers": {"rte": ["yes", "no"]}}
    prompts = [
        place | {"index": i, "text": f"{{text}} Yes or no? {i}", "origin": None, "accuracy": a}
        for i, a in enumerate((0.5, 0.75))
    ]
    return {
        "version": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "suite": suite,
        "runs": [{"name": "only", "checkpoint": "runs/only", "group": "only"}],
        "scoring": ["likelihood"],
        "cells": [place | statistics | {"drop_rate": None, "sensitivity": None, "posix": None}],
        "averages": [place | statistics | {"drop_rate": None, "sensitivity": None}],
        "prompts": [prompt | {"invalid": 0.0} for prompt in prompts],
    } | changed
