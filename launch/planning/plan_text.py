"""A plan as text, from the JSON values of `launch/planning/plan.py`."""

import json
from pathlib import Path
from typing import Any

from launch.planning.analysis_plan import analysis_lines
from launch.planning.findings import disk_text
from launch.planning.needs import Disk
from train.accounting.cost import GENERATE_UTILISATION, TRAIN_UTILISATION


def format_plan(plan: dict[str, Any], commands: bool = False) -> str:
    """The plan as text. `commands`: with the exact command, files and processes of every stage."""
    lines = [f"{plan['study']} -> {plan['directory']}", ""]
    shown: set[str] = set()
    for stage in plan["stages"]:
        reasons = f"  ({'; '.join(stage['reasons'])})" if stage["reasons"] else ""
        lines.append(f"  {stage['state']:<8} {stage['name']}{reasons}")
        if commands:
            lines += [f"           {stage['topology']}", f"           {stage['command']}"]
            for path, content in stage["files"].items():
                text = json.dumps({key: value for key, value in content.items() if key != "main_process_port"})
                lines.append(f"           {path}" + ("" if Path(path).name in shown else f": {text}"))
                shown.add(Path(path).name)
            lines += [f"           reads {', '.join(stage['reads'])}"] if stage["reads"] else []
            lines.append(f"           writes {stage['writes']}")
    if plan["parameters"]:
        tokens = plan["pretraining_tokens"]
        pretraining = "" if tokens is None else f", {tokens:,} pre-training tokens"
        lines += ["", f"base: about {plan['parameters']:,} parameters{pretraining}"]
    width = max([20, *(len(name) + 2 for name in plan["arms"])])
    if plan["arms"]:
        lines += [
            "",
            f"{'arm':<{width}}{'runs':>6}{'updates':>9}{'problems':>10}{'completions':>13}{'generated tokens':>20}"
            f"{'TFLOPs':>16}{'lr':>10}" + (f"{'GPU-hours':>12}{'disk, GB':>10}" if plan["gpu"] else ""),
        ]
    for name, arm in plan["arms"].items():
        flops = "?" if arm["teraflops_at_most"] is None else f"{arm['teraflops_at_most']:,.1f}"
        lines.append(
            f"{name:<{width}}{arm['runs']:>6}{arm['updates']:>9,}{arm['problems_presented']:>10,}{arm['completions']:>13,}"
            f"{arm['generated_tokens_at_most']:>20,}{flops:>16}{arm['learning_rate']:>10.1e}"
            + _hours_and_disk(plan, arm)
        )
    if plan["arms"]:
        lines.append("tokens and FLOPs are upper bounds from the length limits, for one run")
        if plan["gpu"]:
            hours = [arm["gpu_hours"] and arm["gpu_hours"] * arm["runs"] for arm in plan["arms"].values()]
            if None not in hours:
                lines.append(f"all runs: {sum(hours):,.0f} GPU-hours")
            lines.append(
                f"GPU-hours of one run on {plan['gpu']}, assuming {TRAIN_UTILISATION:.0%} of its peak while training "
                f"and {GENERATE_UTILISATION:.0%} while generating, and completions as long as "
                "resources.expected_completion_tokens"
            )
            lines += _comparison_lines(plan)
            between = {n: arm["hours_between_checkpoints"] for n, arm in plan["arms"].items()}
            if None not in between.values():
                each = ", ".join(f"{name} {value:.1f}" for name, value in between.items())
                lines.append(f"hours of work between two checkpoints, on all GPUs of a run: {each}")
        lines += ["", *_memory_lines(plan)]
    if plan["teacher"]:
        lines.append(_teacher_line(plan["teacher"], recipe_gpu=plan["gpu"]))
    if plan["responses_at_most"]:
        hours = plan["evaluation_gpu_hours"]
        cost = "" if hours is None else f", {hours:,.0f} GPU-hours if they are as long as completions"
        lines.append(f"evaluation: at most {plan['responses_at_most']:,} responses" + cost)
    lines += analysis_lines(plan)
    lines += _whole_study_lines(plan)
    if plan["certainty"]:
        more = plan["certainty"]
        text = f"certainty: one more training seed of every arm {more['seed']:,.0f} GPU-hours"
        if "response" in more:
            text += f", one more response to every question {more['response']:,.0f}"
        lines.append(f"{text}; transfer power says what differences they let you see")
    if plan["dropped_problems"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in plan["dropped_problems"].items() if count)
        lines.append(f"problems left out: {reasons}")
    used = {kind for arm in plan["arms"].values() for kind in arm["attention"]}
    lines += [f"attention of finished runs: {', '.join(sorted(used))}"] if used else []
    if plan["arms"]:
        matched = "matched: the arms differ only in what the study varies"
        lines += ["", "UNMATCHED:" if plan["differences"] else matched]
    lines += [f"  {text}" for text in plan["differences"]]
    lines += [f"cannot work: {text}" for text in plan["obstacles"]]
    lines += [f"before it can run: {text}" for text in plan["unresolved"]]
    lines += [f"warning: {text}" for text in plan["warnings"]]
    lines += [f"note: {text}" for text in plan["notes"]]
    return "\n".join(lines)


def _whole_study_lines(plan: dict[str, Any]) -> list[str]:
    """Disk and hours of all stages together."""
    lines = []
    if plan["gpu"] and plan["disk"] is not None:
        need = {name: value for name, value in plan["disk"].items() if name != "total"}
        lines.append(f"the study at its fullest: up to {disk_text(Disk(**need))}")
    clock = plan["wall_clock"]
    if clock["hours"]:
        parts = ", ".join(f"{phase} {hours:,.0f} h" for phase, hours in clock["hours"].items())
        lines.append(f"wall clock on one node with {clock['gpus']} GPU(s), stages of one GPU side by side: {parts}")
    return lines


def _teacher_line(teacher: dict[str, Any], recipe_gpu: str | None) -> str:
    if teacher["samples"] is None:
        return f"teacher {teacher['model']}: its samples are known once the corpus has counted its problems"
    how = "spent" if teacher["spent"] else "at most"
    text = f"teacher {teacher['model']}, {how}: {teacher['samples']:,} samples, {teacher['generated_tokens']:,} tokens"
    text += "" if teacher["teraflops"] is None else f", {teacher['teraflops']:,.1f} TFLOPs"
    return text + ("" if teacher["gpu_hours"] is None else f", {teacher['gpu_hours']:,.0f} GPU-hours on {recipe_gpu}")


def _hours_and_disk(plan: dict[str, Any], arm: dict[str, Any]) -> str:
    if not plan["gpu"]:
        return ""
    hours = "?" if arm["gpu_hours"] is None else f"{arm['gpu_hours']:,.0f}"
    return f"{hours:>12}" + (f"{arm['disk_bytes'] / 1e9:>10,.0f}" if arm["disk_bytes"] else f"{'?':>10}")


def _comparison_lines(plan: dict[str, Any]) -> list[str]:
    """What the arms cost beside the cheapest, with the teacher's samples on the arms that read them."""
    teacher = (plan["teacher"] or {}).get("gpu_hours")
    hours = {
        name: arm["gpu_hours"] * arm["runs"] + (teacher or 0.0) * (arm["generated_tokens_at_most"] == 0)
        for name, arm in plan["arms"].items()
        if arm["gpu_hours"]
    }
    if len(hours) < 2:
        return []
    least = min(hours.values())
    each = ", ".join(f"{name} {value / least:.1f}" for name, value in hours.items())
    told = "with the teacher's samples" if teacher else "without the teacher's samples"
    gpus = plan["gpus"]
    return [
        f"cost beside the cheapest, all seeds, {told}: {each}",
        f"a run occupies {gpus['train']} GPU(s) on {gpus['nodes']} node(s), the evaluation of a model "
        f"{gpus['evaluate']}",
    ]


def _memory_lines(plan: dict[str, Any]) -> list[str]:
    """Memory per rank, one line for all arms that need the same."""
    by_need: dict[str, list[str]] = {}
    for name, arm in plan["arms"].items():
        memory = arm["memory_per_rank"]
        if memory is None:
            return ["memory: unknown until `transfer fetch` has brought the model's config.json to this machine"]
        parts = ", ".join(f"{part.replace('_', ' ')} {value / 1e9:.2f}" for part, value in memory.items() if value)
        text = f"memory per rank, GB: {parts}"
        if sampling := arm["sampling_memory"]:
            text += (
                f"; while sampling, vLLM: weights {sampling['weights'] / 1e9:.2f}, KV cache "
                f"{sampling['kv_cache'] / 1e9:.2f} ({sampling['cached_tokens']:,} tokens), so "
                f"{min(sampling['sequences_at_once'], sampling['sequences_asked']):,} of "
                f"{sampling['sequences_asked']:,} sequences of the expected length at a time"
            )
        by_need.setdefault(text, []).append(name)
    return [text if len(by_need) == 1 else f"{text}  ({', '.join(names)})" for text, names in by_need.items()]
