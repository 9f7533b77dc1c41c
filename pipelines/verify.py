"""Checks shards before a run does, and exits 0 when they are clean, else 2.

    uml verify data/mine                    a folder of shards
    uml verify 'data/a-*.tar' --kind image
    uml verify shapes data_root=data/x      the shards of a recipe, with its caps

Reads every byte, in parallel on Ray Data: tars are whole, payloads decode,
index.json tells the truth, labels lie within classes.json, no content is in
both train and test, no two modalities come from the same sources. Writes
verify.json into --out, never beside the shards; "lost" marks the samples that a
run would leave out and list in quarantine.jsonl, with the same cause.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from pipelines import cli
from pipelines.files import write_text
from pipelines.prepare import ensure_world
from pipelines.reporting import terminal
from pipelines.sources import guards, holdings
from pipelines.sources.decoding import plain
from pipelines.sources.findings import Findings, Found, by_cause, table
from pipelines.sources.inspection import check_shard, index_differences, kinds_in, why_no_kind
from pipelines.sources.parallel import Job, each
from pipelines.streams import gaps, layout, storage
from pipelines.streams.classes import CLASSES_NAME, read_classes
from pipelines.streams.index import from_json, index_entries
from pipelines.streams.layout import UNSPLIT
from pipelines.streams.shards import Index, chosen_members, expand
from uml_core.addresses import absolute, beside, redacted, redacted_tree
from uml_core.errors import RunError, UserError
from uml_core.modalities import KINDS
from uml_core.specs import Recipe

SHOWN = 20  # problems in the table; verify.json holds all
ALLOWED_OVERLAP = 0.01  # of a test split, where no recipe says otherwise
ANNOTATIONS = frozenset({"cls", "json", "txt"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a recipe, or a folder, tar, glob or url of shards")
    parser.add_argument("overrides", nargs="*", help="more shards, or fields of the recipe")
    parser.add_argument("--kind", choices=sorted(KINDS), help="default: by index, name and suffix")
    parser.add_argument("--split", choices=layout.SPLITS, help="of shards whose names tell none")
    cli.add_member(parser)


@dataclass(frozen=True)
class Part:
    """The shards of one modality and split, and how they decode."""

    modality: str
    split: str
    kind: str
    options: Any
    urls: tuple[str, ...]
    member: tuple[str, ...] = ()  # see `Shard`


def run(args: argparse.Namespace) -> int:
    """The verb: returns the exit code."""
    findings = Findings()
    parts, target, allowed = _parts(args, findings)
    if args.dry_run:
        for part in parts:
            print(f"{part.modality} {part.split}: {len(part.urls)} shards of kind {part.kind}")
        return 0
    out = cli.out_folder(args, "verify")
    results = _check_shards(parts)
    groups = _collect(parts, results, findings)
    findings.warnings += gaps.holes([url for part in parts for url in part.urls])
    findings.warnings += [*guards.copies(groups), *guards.unlabelled(groups)]
    classes = _check_classes(groups, findings)
    _check_index(groups, findings)
    _check_leaks(groups, target, allowed, findings)
    findings.report["modalities"] = {
        name: {split: holdings.facts(index) for split, index in splits.items()}
        for name, splits in groups.items()
    }
    findings.report["classes"] = classes
    _write(out, findings)
    _print(args, out, groups, findings)
    return 2 if findings.problems else 0


# ------------------------------------------------------------------------------- what to check


def _parts(args: argparse.Namespace, findings: Findings) -> tuple[list[Part], str | None, float]:
    """(what to check, the target if known, the share of overlap allowed)."""
    named = args.source in cli.packaged() and not os.path.exists(args.source)
    if named or args.source.endswith((".yaml", ".yml")):
        args.recipe = args.source
        recipe = cli.load_recipe(args)
        return _recipe_parts(recipe), recipe.target, recipe.allow_overlap
    urls: list[str] = []
    for source in [args.source, *args.overrides]:
        urls += _urls(source, findings)
    names = layout.places(urls)
    kinds: dict[str, str] = {}  # of a modality

    def unnamed(urls: Sequence[str]) -> str | None:
        return args.kind or _kind_of(None, urls, findings)

    found = layout.arrange(urls, unnamed, args.split)
    for url, cause in found.problems:
        findings.add(url, None, cause)
    parts = []
    for (modality, split), members in found.groups.items():
        named = any(names[url].modality == modality for url in members)
        kind = args.kind or kinds.get(modality) or _kind_of(modality, members, findings)
        if kind is None:
            continue
        kinds[modality] = kind
        member = chosen_members(kind, args.member)
        options = KINDS[kind].Options()
        parts.append(Part(modality, split or UNSPLIT, kind, options, tuple(members), member))
        if split is None:
            whose = modality if named else "these shards"
            findings.warnings.append(
                f"the names of {whose} tell no split, so nothing was held against other splits: "
                + layout.ADVICE
            )
    return parts, None, ALLOWED_OVERLAP


def _recipe_parts(recipe: Recipe) -> list[Part]:
    assert recipe.data_root is not None  # `load` refuses a recipe without one
    if recipe.world is not None:
        ensure_world(recipe.world, recipe.data_root)
    parts, problems = [], []
    named: dict[tuple[str, str], Any] = {}
    for name, spec in recipe.modalities.items():
        for split in layout.SPLITS:
            if (pattern := getattr(spec, split)) is None:
                continue
            try:
                urls = expand(pattern, recipe.data_root)
                named[name, split] = pattern
                member = chosen_members(spec.kind, spec.member)
                parts.append(Part(name, split, spec.kind, spec.options, tuple(urls), member))
            except UserError as error:
                problems += [f"modalities.{name}.{split}: {p}" for p in error.problems]
    shards = {(part.modality, part.split): part.urls for part in parts}
    problems += layout.misplaced(named, shards, recipe.target)
    if problems:
        raise UserError(problems)
    return parts


def _urls(source: str, findings: Findings) -> list[str]:
    place = absolute(source)
    one = storage.name_of(place).lower().endswith(".tar")
    if one or not (storage.is_remote(place) or os.path.isdir(place)):
        return expand(source)
    shelf = holdings.shards_in(place)
    for path, cause in shelf.problems:
        findings.add(path, None, cause)
    findings.warnings += shelf.notes
    return shelf.urls


def _kind_of(modality: str | None, urls: Sequence[str], findings: Findings) -> str | None:
    """The kind that index.json, the modality's name or the first sample tells; else a problem."""
    entry = index_entries(storage.folder_of(urls[0])).get(storage.name_of(urls[0]))
    if isinstance(entry, dict) and entry.get("kind") in KINDS:
        return entry["kind"]
    if modality is not None and modality.lower() in KINDS:
        return modality.lower()
    for url in urls:
        if found := kinds_in(url):
            if len(found) == 1:
                return next(iter(found))
            findings.add(url, None, f"its samples hold {' and '.join(found)}: give --kind")
            return None
    findings.add(urls[0], None, f"{why_no_kind(urls[0])}: give --kind")
    return None


# ------------------------------------------------------------------------------------ one shard


def _check_shards(parts: Sequence[Part]) -> list[Job]:
    """One result per shard. All shards of a modality are held against the size of its samples."""
    jobs: list[Job] = [
        {
            "url": url,
            "kind": part.kind,
            "options": plain(part.options),
            "member": list(part.member),
        }
        for part in parts
        for url in part.urls
    ]
    names = [part.modality for part in parts for _ in part.urls]
    results = _checked(jobs)
    dims = _dims(parts, results)
    again = [
        i
        for i, (name, result) in enumerate(zip(names, results, strict=True))
        if result.get("dim") not in (None, dims.get(name))
    ]
    for i in again:
        jobs[i]["options"]["dim"] = dims[names[i]]
    if again:
        for i, result in zip(again, _checked([jobs[i] for i in again]), strict=True):
            results[i] = result
    return results


def _checked(jobs: Sequence[Job]) -> list[Job]:
    sizes = [_size(job["url"]) for job in jobs]
    return each(
        check_shard,
        jobs,
        sizes=[1] * len(jobs),
        cost=sum(sizes),
        title="Verifying",
        unit="shards",
    )


def _dims(parts: Sequence[Part], results: Sequence[Job]) -> dict[str, int]:
    """Numbers per sample of each modality: those of the first sample that a run would read."""
    found: dict[str, dict[str, int]] = {}
    left = iter(results)
    for part in parts:
        for _ in part.urls:
            dim = next(left).get("dim")
            if dim is not None:
                found.setdefault(part.modality, {}).setdefault(part.split, dim)
    return {name: by.get("train", next(iter(by.values()))) for name, by in found.items()}


def _size(url: str) -> int:
    try:
        return storage.stat(url).size
    except (OSError, RunError):
        return 0


# --------------------------------------------------------------------------------- all together


def _collect(parts: Sequence[Part], results: Sequence[Job], findings: Findings) -> holdings.Groups:
    """The indices as the tars themselves tell them; per-shard problems go into `findings`."""
    groups: holdings.Groups = {}
    others: Counter[str] = Counter()
    notes: list[Found] = []
    left = iter(results)
    for part in parts:
        shards = []
        for url in part.urls:
            result = next(left)
            for key, cause, lost, note in result["problems"]:
                if note:
                    notes.append(Found(url, key, cause, lost))
                else:
                    findings.add(url, key, cause, lost)
            if "shard" not in result:
                continue
            shard = from_json(result["shard"], url)
            assert shard is not None
            shards.append(shard)
            known = {*KINDS[part.kind].suffixes, *ANNOTATIONS, *part.member}
            others.update({s: n for s, n in result["suffixes"].items() if s not in known})
        if shards:
            index = Index(tuple(shards), _classes_beside(part.urls[0], findings))
            groups.setdefault(part.modality, {})[part.split] = index
    for first, count in by_cause(notes):
        key = f" ({first.key})" if first.key else ""
        more = f"; {count - 1} more like this" if count > 1 else ""
        findings.warnings.append(f"{storage.name_of(first.shard)}{key}: {first.cause}{more}")
    if others:
        listed = ", ".join(f"{n} .{suffix}" for suffix, n in sorted(others.items()))
        findings.warnings.append(f"members that nothing reads: {listed}")
    return groups


def _classes_beside(url: str, findings: Findings) -> tuple[str, ...] | None:
    """The names in classes.json beside a shard; what is wrong with it becomes a problem, once."""
    path = beside(url, CLASSES_NAME)
    try:
        return read_classes(storage.folder_of(url))
    except (OSError, UserError, RunError) as error:
        problem = Found(path, None, str(error).removeprefix(f"{path}: "), False)
        if problem not in findings.problems:
            findings.problems.append(problem)
        return None


def _check_classes(groups: holdings.Groups, findings: Findings) -> list[str] | None:
    """Class lists agree, labels lie within them, no class is without training samples."""
    every = [(f"{name} ({split})", i) for name, s in groups.items() for split, i in s.items()]
    lists = {where: index.classes for where, index in every if index.classes is not None}
    lost = sum(problem.lost for problem in findings.problems)
    if not lists and lost <= sum(len(index) for _, index in every):  # else too few to judge by
        _, problems = guards.unnamed_classes([index for _, index in every])
        whole = any("train" in splits or UNSPLIT in splits for splits in groups.values())
        if whole:
            for problem in problems:
                findings.add("labels", None, problem)
        else:
            findings.warnings += problems  # those of the training split may be others
    try:
        guards.check_classes(lists)
    except UserError as error:
        for problem in error.problems:
            findings.add(CLASSES_NAME, None, problem)
    for where, index in every:
        if index.classes is None:
            continue
        if hint := guards.counted_from_one(index.labels, len(index.classes)):
            findings.add(where, None, hint)
        for row in (index.labels >= len(index.classes)).nonzero()[0]:
            shard, place = index.locate(int(row))
            label, last = shard.labels[place], len(index.classes) - 1
            findings.add(
                shard.url, shard.keys[place], f"label {label} is out of range: classes 0 to {last}"
            )
    for name, splits in groups.items():
        train = splits.get("train")
        if train is not None and train.classes and (train.labels >= 0).any():
            used = {int(k) for index in splits.values() for k in np.unique(index.labels)}
            empty = [c for k, c in enumerate(train.classes) if k not in used]
            if empty:
                findings.warnings.append(
                    f"{name}: no training sample of {len(empty)} classes, e.g. '{empty[0]}'"
                )
    findings.warnings += guards.lopsided(groups)
    return list(next(iter(lists.values()))) if lists else None


def _check_index(groups: holdings.Groups, findings: Findings) -> None:
    """index.json, where there is one, against what the tars hold."""
    shards = [shard for s in groups.values() for index in s.values() for shard in index.shards]
    for folder in dict.fromkeys(storage.folder_of(shard.url) for shard in shards):
        entries = index_entries(folder)
        inside = [shard for shard in shards if storage.folder_of(shard.url) == folder]
        if not entries:
            continue
        for shard in inside:
            entry = entries.get(storage.name_of(shard.url))
            if entry is None:
                findings.warnings.append(f"{shard.url} is not in index.json: it will be scanned")
            else:
                for cause in index_differences(entry, shard):
                    findings.add(shard.url, None, f"index.json: {cause}")
        there = [shard.url for shard in inside]
        for url in gaps.gone({folder: entries}, dict.fromkeys(there, ""), lambda url: True):
            findings.add(url, None, gaps.LISTED)


def _check_leaks(
    groups: holdings.Groups, target: str | None, allowed: float, findings: Findings
) -> None:
    """Content in train and test, and pairs in disguise.

    Without a recipe any data may be the target, except texts: equal short ones are no leak, people
    just write the same things twice.
    """
    overlap = guards.overlaps(groups)
    kinds = {name: next(iter(splits.values())).shards[0].kind for name, splits in groups.items()}
    every = [(name, name.removesuffix(" (val)"), found) for name, found in overlap.items()]
    every += [(where, where.partition(",")[0], found) for where, found in guards.strays(groups)]
    for name, modality, found in every:
        strict = name == target if target else kinds[modality] != "text"
        if found["share"] > allowed and strict:
            findings.add(name, None, guards.overlap_sentence(name, found))
        elif found["shared"]:
            findings.warnings.append(guards.overlap_sentence(name, found))
    shared = guards.shared_sources({n: list(s.values()) for n, s in groups.items()})
    for item in shared:
        findings.add(" and ".join(item["modalities"]), None, guards.source_sentence(item))
    findings.report |= {"overlap": overlap, "shared_sources": shared}


# ------------------------------------------------------------------------------------- telling


def _write(out: Path, findings: Findings) -> None:
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "clean": not findings.problems,
        "causes": [
            {"cause": first.cause, "count": count, "shard": first.shard, "key": first.key}
            for first, count in by_cause(findings.problems)
        ],
        "problems": [problem._asdict() for problem in findings.problems],
        "warnings": findings.warnings,
        **findings.report,
    }
    write_text(out / "verify.json", json.dumps(redacted_tree(content), indent=1) + "\n")


def _print(
    args: argparse.Namespace, out: Path, groups: holdings.Groups, findings: Findings
) -> None:
    if args.json:
        print((out / "verify.json").read_text(encoding="utf-8"), end="")
        return
    (screen := terminal.console()).print(holdings.summary(groups))
    if findings.problems:
        count = len(findings.problems)
        screen.print(Text(f"\n{count} problem{'s' * (count != 1)}", style="bold red"))
        causes = by_cause(findings.problems)
        screen.print(table(causes[:SHOWN]))
        if len(causes) > SHOWN:
            screen.print(f"... and {len(causes) - SHOWN} more causes in verify.json")
    for warning in findings.warnings:
        screen.print(f"Note: {redacted(warning)}", soft_wrap=True)
    if not findings.problems:
        screen.print(Text("\nNo problem found.", style="bold green"))
    screen.print(f"Details: {holdings.shown_path(out / 'verify.json')}", soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(cli.main(["verify", *sys.argv[1:]]))
