"""What a run will take before it starts: steps, memory, time, money, and what it waits for.

    uml plan shapes                                        on this machine
    uml plan shapes --cluster cluster/aws.yaml train.device=cuda train.workers=4 \\
        --price head=0.23 --price data=0.15 --price train=0.40

For this machine it is a short run of the recipe that says how long a step takes. For a cluster that
is not there yet it is a sum of parts: speed of CPUs, decoding and the host's work at each step are
measured here on the recipe's own data; GPUs and networks are taken as their makers state them
(pipelines/running/hardware.py), GPUs at the share of their peak that --utilisation says. Prices are
yours, per node and hour, one for each node type of the cluster's file. Writes plan.json into --out.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines import cli
from pipelines.reporting import terminal
from pipelines.running import forecast_time, hardware
from pipelines.running.data import make_round, open_data, resolved, rounds_of, write_json
from pipelines.running.forecast_time import Place
from pipelines.running.hardware import MACHINES, gpu_named
from pipelines.running.need import count_parameters, worker_memory
from pipelines.running.rehearsal import rehearse
from uml_core.errors import UserError, near
from uml_core.specs import Recipe
from uml_core.typed import MAX_TEXT, read_yaml

TAKES_RECIPE = True
AROUND_SECONDS = 45.0  # what a run takes beside its steps; measured on two cores
MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("--cluster", help="a cluster's file, e.g. cluster/aws.yaml")
    parser.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="TYPE=AMOUNT",
        help="what a node of a type costs per hour, in any currency; once per type",
    )
    parser.add_argument("--gpu", help=f"another GPU: {', '.join(hardware.GPUS)}")
    parser.add_argument("--gbit", type=float, help="another network, Gbit/s per node")
    parser.add_argument(
        "--utilisation", type=float, default=0.3, help="share of a GPU's peak (default 0.3)"
    )


def run(args: argparse.Namespace) -> int:
    """The verb: returns the exit code."""
    recipe = cli.load_recipe(args)
    prices = _prices(args.price)
    nodes = _nodes(args.cluster) if args.cluster else {}
    if unknown := [n for n in prices if n not in nodes]:
        known = f"node types are {', '.join(nodes)}" if nodes else "give --cluster with it"
        raise UserError([f"--price {n}: {known}{near(n, nodes)}" for n in unknown])
    out = cli.out_folder(args, f"{recipe.name}-plan")
    data = open_data(recipe)
    recipe = resolved(recipe, data)
    (shots, seed), *_ = rounds_of(recipe)
    at = make_round(recipe, data, seed, shots)
    place, used = _place(recipe, nodes, args)
    if args.dry_run:
        print(f"would measure a step of {recipe.name} here, for {place.workers} workers")
        return 0
    terminal.note("Measuring steps on this machine ...")
    here = forecast_time.cores()
    found = forecast_time.measure(
        recipe, data, at, place.workers, place.train_cpus if place.gpu is None else here
    )
    parameters = count_parameters(recipe, data)
    step = forecast_time.step_of(recipe, at, found, parameters, place)
    schedule, size = recipe.schedule(), recipe.train.batch_size
    taken = schedule.consumed(schedule.total)
    out.mkdir(parents=True, exist_ok=True)
    short = None
    if not nodes:
        terminal.note("A short run of it ...")
        short = rehearse(recipe, step.total, step.validation * recipe.train.validate_every, out)
    seconds = short.step if short else step.total
    around = short.around if short else AROUND_SECONDS
    steps_per_epoch = max(1.0, len(at.train[recipe.target]) / size)
    hours = seconds * schedule.total / 3600
    cost = _cost(used, prices, 1.0)
    plan: dict[str, Any] = {
        "recipe": recipe.name,
        "cluster": args.cluster,
        "workers": place.workers,
        "nodes": used,
        "steps": schedule.total,
        "steps_per_epoch": steps_per_epoch,
        "tokens": forecast_time.tokens_of_a_step(recipe, found.tokens) * schedule.total,
        "flops": sum(found.flops[n] * taken[n] for n in recipe.active),
        "parameters": parameters,
        "memory_per_worker": worker_memory(recipe, data, parameters),
        "bytes_read": sum(found.bytes[n] * taken[n] * size for n in recipe.active),
        "step_seconds": seconds,
        "short_run": None if short is None else asdict(short),
        "step_parts": step.parts,
        "step_validation": step.validation,
        "bottleneck": step.bottleneck,
        "epoch_seconds": seconds * steps_per_epoch,
        "training_seconds": hours * 3600,
        "around_seconds": around,
        "cost_per_epoch": None if cost is None else cost * seconds * steps_per_epoch / 3600,
        "cost": None if cost is None else cost * (hours + around / 3600),
        "assumptions": _assumptions(place, args, here),
    }
    write_json(out / "plan.json", plan)
    if args.json:
        print(json.dumps(plan))
        return 0
    _tell(plan, out)
    return 0


def _prices(given: list[str]) -> dict[str, float]:
    found, problems = {}, []
    for text in given:
        name, _, amount = text.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            problems.append(f"--price {text}: write TYPE=AMOUNT, e.g. train=0.40")
    if problems:
        raise UserError(problems)
    return found


def _nodes(path: str) -> dict[str, dict[str, Any]]:
    """Node types of a cluster's file: {name: {"machine", "most", "resources"}}."""
    try:
        raw = read_yaml(Path(path).read_text(encoding="utf-8")[:MAX_TEXT])
        types = raw["available_node_types"]
    except (OSError, ValueError) as error:
        raise UserError(f"--cluster {path}: {error}") from error
    except (KeyError, TypeError):
        raise UserError(
            f"--cluster {path}: no available_node_types in it; machines of your own are planned "
            "by `uml plan RECIPE` on one of them"
        ) from None
    found = {}
    for name, node in types.items():
        config = node["node_config"]
        machine = config.get("InstanceType") or config.get("machineType")
        if machine not in MACHINES:
            raise UserError(
                f"--cluster {path}: nothing is known of {machine}{near(str(machine), MACHINES)}; "
                "add it to pipelines/running/hardware.py"
            )
        found[name] = {
            "machine": machine,
            "most": 1 if name == raw["head_node_type"] else node["max_workers"],
            "resources": node["resources"],
        }
    return found


def _place(
    recipe: Recipe, nodes: dict[str, dict[str, Any]], args: argparse.Namespace
) -> tuple[Place, dict[str, int]]:
    """Where the workers go, and how many nodes of each type that takes."""
    workers = recipe.train.most_workers
    if not nodes:
        return Place(workers, forecast_time.cores(), utilisation=args.utilisation), {}
    head = next(name for name, node in nodes.items() if not node["resources"].get("CPU"))
    with_gpu = [name for name, node in nodes.items() if node["resources"].get("GPU")]
    others = [n for n, node in nodes.items() if n != head and n not in with_gpu]
    on_gpus = recipe.train.device != "cpu" and bool(with_gpu)
    trains = with_gpu[0] if on_gpus else others[0]
    node = nodes[trains]
    machine = MACHINES[node["machine"]]
    each = machine.gpus if on_gpus else 1
    count = -(-workers // each)
    if count > node["most"]:
        raise UserError(
            f"train.workers: {workers} workers need {count} nodes of type {trains}, the cluster "
            f"has at most {node['most']}"
        )
    used = {head: 1, trains: count}
    data_cpus = 0.0
    if on_gpus and others:
        used[others[0]] = nodes[others[0]]["most"]
        data_cpus = float(used[others[0]] * MACHINES[nodes[others[0]]["machine"]].cpus)
    gpu = gpu_named(args.gpu or machine.gpu) if on_gpus and machine.gpu else None
    gbit = args.gbit or machine.gbit
    return (
        Place(workers, float(count * machine.cpus), data_cpus, gpu, gbit, args.utilisation),
        used,
    )


def _cost(used: dict[str, int], prices: dict[str, float], hours: float) -> float | None:
    """What the nodes cost; None where a price is missing."""
    if not used or any(name not in prices for name in used):
        return None
    return sum(count * prices[name] for name, count in used.items()) * hours


def _assumptions(place: Place, args: argparse.Namespace, here: int) -> list[str]:
    said = [f"CPU times are those of a core of this machine ({here} cores)"]
    if place.gpu is not None:
        said.append(
            f"a GPU does {place.gpu.fp32 / 1e12:g} (fp32) or {place.gpu.bf16 / 1e12:g} (bf16) "
            f"TFLOP/s at its peak and reaches {place.utilisation:.0%} of it"
        )
    if place.gbit:
        said.append(f"{place.gbit:g} Gbit/s per node, all of them for this run")
    if args.cluster:
        said.append("all data nodes that the cluster's file allows are there and paid for")
        said.append("neither Ray nor processes on one node slow training down: a lower bound")
    return said


def _tell(plan: dict[str, Any], out: Path) -> None:
    nodes = ", ".join(f"{count} {name}" for name, count in plan["nodes"].items())
    rows: dict[str, Path | str] = {
        "where": f"{plan['workers']} workers" + (f" on {nodes}" if nodes else ", this machine"),
        "steps": f"{plan['steps']:,} ({plan['steps_per_epoch']:.1f} per epoch of the target)",
        "tokens": f"{plan['tokens']:.3g}",
        "operations": f"{plan['flops']:.3g}",
        "parameters": f"{plan['parameters']:,}",
        "memory": f"about {plan['memory_per_worker'] // MIB} MiB per worker",
        "read": f"{plan['bytes_read'] / MIB:,.0f} MiB",
        "a step": f"{plan['step_seconds'] * 1e3:.3g} ms"
        + (f", in a run of {short['steps']}" if (short := plan["short_run"]) else ""),
        "an epoch": terminal.clock(plan["epoch_seconds"])
        if plan["epoch_seconds"] >= 60
        else f"{plan['epoch_seconds']:.2f} s",
        "the run": f"{terminal.clock(plan['training_seconds'])} of training, "
        f"{terminal.clock(plan['around_seconds'])} to start, to test and to report",
        "waits for": f"{plan['bottleneck']} ("
        + ", ".join(f"{k} {v * 1e3:.3g} ms" for k, v in plan["step_parts"].items())
        + f"; a step's share of a validation {plan['step_validation'] * 1e3:.3g} ms)",
    }
    if plan["cost"] is not None:
        rows["cost"] = f"{plan['cost']:.2f} for the run, {plan['cost_per_epoch']:.4f} per epoch"
    elif plan["nodes"]:
        rows["cost"] = "give --price for " + ", ".join(plan["nodes"])
    terminal.print_paths(rows)
    for text in plan["assumptions"]:
        terminal.note(f"Assumed: {text}.")
    terminal.print_paths({"details": out / "plan.json"})


if __name__ == "__main__":
    raise SystemExit(cli.main(["plan", *sys.argv[1:]]))
