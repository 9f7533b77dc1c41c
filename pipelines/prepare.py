"""A source -> shards with an index, ready for any recipe.

    uml prepare photos/ --out data/mine                  folder/<class>/<file>
    uml prepare texts.csv --out data/mine --split train  columns text and label
    uml prepare clips/ --out data/mine --split train     files and their CSV
    uml prepare descriptions.json --out data/mine --split train     texts per class
    uml prepare templates.txt --out data/mine --split train         lines with {}
    uml prepare shapes --out data/shapes --train 100     an embedded world

SOURCE is the name of an embedded world, a folder of class folders (also below
train/, val/ and test/), a table (CSV, TSV or Parquet) of texts or of files, a
folder of files with one table, a JSON or YAML file {class: [sentences]}, or a
text file of templates ("a photo of a {}.") for the classes of --out. --out
defaults to data/<name of SOURCE>. Several modalities go into one --out, one call
each; they share its classes.json. Bad files are listed with their cause and nothing is written;
--skip-bad leaves them out. The same source and options give the same bytes.
On a cluster, SOURCE and --out must be visible to every node.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines import cli
from pipelines.files import local_path, new_folder
from pipelines.reporting import terminal
from pipelines.running.lock import alone, content
from pipelines.sources import guards, holdings
from pipelines.sources.class_notes import class_notes, name_notes
from pipelines.sources.decoding import kind_options
from pipelines.sources.descriptions import is_descriptions, read_descriptions
from pipelines.sources.folders import normal
from pipelines.sources.packing import Packing, Ready, check_samples, draw_test, write, write_world
from pipelines.sources.reading import Listing, Reading, read_source
from pipelines.streams import layout
from pipelines.streams.classes import CLASSES_NAME
from pipelines.streams.index import (
    INDEX_NAME,
    MAX_INDEX_BYTES,
    Shard,
    check_out_folder,
    from_json,
    load_shards,
    read_json,
    write_json,
)
from pipelines.streams.shards import PER_SHARD
from uml_core.addresses import is_url
from uml_core.errors import UserError, near
from uml_core.modalities import KINDS
from uml_core.specs import WorldSpec
from uml_core.worlds import WORLDS, World, open_world

SHOWN = 20  # bad samples, unknown classes listed on the screen
WORLD_NAME = "world.json"  # beside the shards of a world: how they were drawn
TEST_SHARE = 0.2
_OWN_DATA_ONLY = {  # options that a world has no use for
    *("modality", "kind", "split", "test_share", "classes", "unlabelled", "skip_bad"),
    *("skip_unknown", "set"),
    *("files", "text_column", "label_column", "file_column", "id_column"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="world, folder or table")
    parser.add_argument(
        "--modality", metavar="NAME", help="name of the modality (default: its kind)"
    )
    parser.add_argument("--kind", choices=sorted(KINDS), help="default: by the files' suffixes")
    parser.add_argument("--split", choices=layout.SPLITS, help="all samples are of this split")
    parser.add_argument(
        "--test-share",
        type=float,
        metavar="SHARE",
        help="share of each class drawn into the test split, where the source names no splits "
        "(default 0.2); samples of equal content stay on one side",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the order, the draw or the world"
    )
    parser.add_argument("--per-shard", type=int, default=PER_SHARD, metavar="N", help="samples")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="class list to use (JSON, names in order)"
    )
    parser.add_argument("--unlabelled", action="store_true", help="take samples without labels")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad samples out")
    parser.add_argument(
        "--skip-unknown",
        action="store_true",
        help="leave out, and list, what is labelled with a name that is no class",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the kind as "
        "in a recipe, e.g. max_seconds=120; its caps decide which samples are bad",
    )
    table = parser.add_argument_group("tables")
    for role in ("text", "label", "file", "id"):
        table.add_argument(f"--{role}-column", metavar="NAME", help=f"name of the {role} column")
    table.add_argument(
        "--files", type=Path, metavar="DIR", help="folder of the files that the table names"
    )
    world = parser.add_argument_group("worlds")
    world.add_argument("--train", type=int, metavar="N", help="training samples per class")
    world.add_argument("--test", type=int, metavar="N", help="test samples per class")


def run(args: argparse.Namespace) -> int:
    """The verb: returns the exit code."""
    if args.source in WORLDS:
        return _run_world(args)
    source = local_path(args.source, "SOURCE") if is_url(args.source) else Path(args.source)
    folder = _out_folder(args.out or Path("data") / source.stem)
    with contextlib.nullcontext() if args.dry_run else alone(folder):
        return _run_source(args, source, _out_folder(folder))


def _run_source(args: argparse.Namespace, source: Path, folder: Path) -> int:
    """The person's own data, into a folder that this process has for itself."""
    columns = (args.text_column, args.label_column, args.file_column, args.id_column)
    try:
        if is_descriptions(source):
            listing = read_descriptions(source, _known_classes(folder, args.classes))
        else:
            reading = Reading(args.kind, *columns, args.files, args.unlabelled)
            listing = read_source(source, reading)
    except UserError as error:
        hint = near(args.source, WORLDS) if not source.exists() else ""
        raise UserError([problem + hint for problem in error.problems]) from None
    if args.skip_unknown:
        _leave_unknown(listing, _known_classes(folder, args.classes))
    options = kind_options(listing.kind, args.set)
    modality = args.modality or listing.kind
    classes, labels = _classes(listing, folder, args.classes)
    _check_request(args, listing, folder, modality)
    if args.dry_run:
        _print_plan(args, folder, modality, listing, classes)
        return 0
    hashes, bad = check_samples(listing, options)
    bad = [*listing.bad, *bad]
    if bad and not args.skip_bad:
        raise UserError(_bad_sentences(source, bad))
    ready = [
        Ready(item, label, digest)
        for item, label, digest in zip(listing.items, labels, hashes, strict=True)
        if digest is not None
    ]
    if not ready:
        raise UserError(f"{source}: no sample is left")
    pack = Packing(folder, modality, listing.kind, classes, args.per_shard, args.seed)
    splits = _splits(ready, args)
    shards = write(pack, splits)
    drawn = not args.split and args.test_share != 0 and not any(i.split for i in listing.items)
    told = [*listing.notes, *class_notes(splits, classes, drawn=drawn)]
    notes = [f"{source}: {note}" for note in told]
    notes += [f"skipped {name}: {cause}" for name, cause in bad[:SHOWN]]
    if len(bad) > SHOWN:
        notes.append(f"skipped {len(bad) - SHOWN} more")
    _print_result(args, folder, shards, notes)
    return 0


def _splits(ready: Sequence[Ready], args: argparse.Namespace) -> dict[str, list[Ready]]:
    """Samples by split: as the source says, as asked for, or drawn per class."""
    out: dict[str, list[Ready]] = defaultdict(list)
    if args.split is None and not any(sample.item.split for sample in ready):
        share = TEST_SHARE if args.test_share is None else args.test_share
        tested = draw_test([(s.hash, s.label) for s in ready], share, args.seed)
        for sample in ready:
            out["test" if sample.hash in tested else "train"].append(sample)
        return out
    for sample in ready:
        out[args.split or sample.item.split or "train"].append(sample)
    return out


# ---------------------------------------------------------------------------------- worlds


def ensure_world(spec: WorldSpec, folder: str | Path) -> None:
    """Draws an embedded world into `folder` on first use; shards that are there stay.

    Raises UserError when they are another draw of the same world. Shards that no world drew (the
    person's own in the world's place) are left to the recipe.
    """
    world = open_world(spec.name)
    counts = _counts(world, spec.train, spec.test)
    wanted = _draw_of(world, spec.seed, counts)
    folder = local_path(folder, "data_root of an embedded world:")
    drawn = read_json(str(folder / WORLD_NAME), MAX_INDEX_BYTES)
    if drawn == wanted:
        return
    if drawn is not None:
        raise UserError(
            f"{folder} holds another draw of world {spec.name} (see {WORLD_NAME} there): remove "
            "it, or give another data_root"
        )
    if any(folder.glob("*.tar")):
        return
    with alone(new_folder(folder, "data_root"), wait=True):  # several first runs may want it
        if not any(folder.glob("*.tar")):
            write_world(world, folder, spec.seed, counts)
            write_json(str(folder / WORLD_NAME), wanted)
            return
    ensure_world(spec, folder)  # what another has drawn may be another draw


def _run_world(args: argparse.Namespace) -> int:
    world = open_world(args.source)
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in vars(args).items()
        if name in _OWN_DATA_ONLY and value not in (None, False, [])
    ]
    if given:
        raise UserError(f"{', '.join(given)}: not for an embedded world")
    if args.per_shard < 1:
        raise UserError("--per-shard: at least 1")
    counts = _counts(world, args.train, args.test)
    for (modality, split), n in counts.items():
        world.sample(modality, split, n, args.seed)  # raises for more than there is
    folder = _out_folder(args.out or Path("data") / world.name)
    wanted = _draw_of(world, args.seed, counts)
    with contextlib.nullcontext() if args.dry_run else alone(folder):
        if content(folder):
            if read_json(str(folder / WORLD_NAME), MAX_INDEX_BYTES) != wanted:
                raise UserError(f"{folder} already holds data: choose another --out, or remove it")
            print(f"{holdings.shown_path(folder)} already holds just this draw: nothing to do")
            return 0
        if args.dry_run:
            for (modality, split), n in counts.items():
                print(f"{modality} {split}: {n} samples of {len(world.class_names)} classes")
            print(f"would be written to {folder}")
            return 0
        shards = write_world(world, folder, args.seed, counts, args.per_shard)
        write_json(str(folder / WORLD_NAME), wanted)
        _print_result(args, folder, shards, [])
    return 0


def _counts(world: World, train: int | None, test: int | None) -> dict[tuple[str, str], int]:
    """Samples per (modality, split); train and test are per class, None = the world's default."""
    classes = len(world.class_names)
    out = {}
    for modality in world.kinds:
        for split, per_class in (("train", train), ("test", test)):
            size = world.default_size(modality, split)
            out[modality, split] = size if per_class is None else per_class * classes
    return {place: n for place, n in out.items() if n}


def _draw_of(world: World, seed: int, counts: dict[tuple[str, str], int]) -> dict[str, Any]:
    sizes = {f"{modality}-{split}": n for (modality, split), n in counts.items()}
    return {"world": world.name, "seed": seed, "samples": sizes}


# --------------------------------------------------------------------------------- requests


def _out_folder(out: str | Path) -> Path:
    """Where shards go: a new or empty folder, or one that already holds shards of ours."""
    folder = new_folder(out)
    check_out_folder(str(folder), content(folder))
    return folder


def _check_request(args: argparse.Namespace, listing: Listing, folder: Path, modality: str) -> None:
    problems = []
    if not modality.replace("_", "").replace("-", "").isalnum() or not modality.isascii():
        problems.append(f"--modality {modality}: use letters, digits, - and _ only")
    elif layout.place(f"{modality}-train-000000.tar").modality != modality:
        problems.append(f"--modality {modality}: a split's name inside it, or no letter, misleads")
    named = {item.split for item in listing.items if item.split}
    if named and (args.split or args.test_share is not None):
        problems.append(
            f"the source names its splits itself ({', '.join(sorted(named))}): leave out --split "
            "and --test-share"
        )
    if args.split and args.test_share is not None:
        problems.append("give --split or --test-share, not both")
    if args.test_share is not None and not 0 <= args.test_share < 1:
        problems.append(f"--test-share {args.test_share}: from 0 up to, but not including, 1")
    if args.per_shard < 1:
        problems.append("--per-shard: at least 1")
    if args.train is not None or args.test is not None:
        problems.append("--train and --test are for embedded worlds")
    wanted = named or ({args.split} if args.split else {"train", "test"})
    for split in sorted(wanted):
        if list(folder.glob(f"{modality}-{split}-*.tar")):
            problems.append(
                f"{folder} already holds {modality}-{split} shards: choose another --modality or "
                "--out, or remove them"
            )
    if problems:
        raise UserError(problems)


def _classes(
    listing: Listing, folder: Path, given: Path | None
) -> tuple[list[str] | None, list[int | None]]:
    """The class list (None without labels) and the label of each item."""
    names = [item.label for item in listing.items]
    found = {name for name in names if name is not None}
    known = _known_classes(folder, given)
    if not found:
        return known, [None] * len(names)
    if known is None:
        numbers = all(name.isdecimal() for name in found)
        known = sorted(found, key=lambda name: (int(name), name) if numbers else (0, name))
    elif all(name.isdecimal() and int(name) < len(known) for name in found - set(known)):
        places = {str(i): i for i in range(len(known))} | {n: i for i, n in enumerate(known)}
        if not found & set(known) or found <= set(known):
            return known, [None if n is None else places[n] for n in names]
    counts = Counter(names)
    unknown = sorted(found - set(known))
    if unknown:
        where = given or folder / CLASSES_NAME
        problems = [
            f"class '{name}' of {counts[name]} {_plural(counts[name], 'sample')} is not in "
            f"{where}{near(name, known)}"
            for name in unknown[:SHOWN]
        ]
        if len(unknown) > SHOWN:
            problems.append(f"{len(unknown) - SHOWN} more classes are not in {where}")
        problems[-1] += ". Mend the names, or leave them out with --skip-unknown"
        raise UserError(problems)
    place = {name: i for i, name in enumerate(known)}
    return known, [None if name is None else place[name] for name in names]


def _leave_unknown(listing: Listing, known: Sequence[str] | None) -> None:
    """Takes out the samples of names that are no class, and notes every such name."""
    if known is None:
        raise UserError("--skip-unknown: there is no class list yet: give --classes FILE")
    counts = Counter(i.label for i in listing.items if i.label and i.label not in known)
    listing.items = [item for item in listing.items if item.label not in counts]
    for name, count in sorted(counts.items()):
        listing.notes.append(
            f"left out: {count} {_plural(count, 'sample')} of '{name}', which is no class"
            f"{near(name, known)}"
        )


def _known_classes(folder: Path, given: Path | None) -> list[str] | None:
    lists = {}
    for path in (given, folder / CLASSES_NAME):
        if path is None or (path is not given and not path.exists()):
            continue
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as a list of names: {error}") from error
        if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
            raise UserError(f"{path} must be a JSON list of different names")
        lists[str(path)] = [normal(name) for name in names]
    guards.check_classes(lists)
    return next(iter(lists.values()), None)


# ---------------------------------------------------------------------------------- printing


def _bad_sentences(source: Path, bad: Sequence[tuple[str, str]]) -> list[str]:
    lines = [f"{name}: {cause}" for name, cause in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"{len(bad) - SHOWN} more bad samples")
    lines[-1] += f". Mend or remove what is bad in {source}, or leave it out with --skip-bad"
    return lines


def _print_plan(
    args: argparse.Namespace,
    folder: Path,
    modality: str,
    listing: Listing,
    classes: Sequence[str] | None,
) -> None:
    share = TEST_SHARE if args.test_share is None else args.test_share
    split = args.split or f"train and test ({share:.0%} of each class drawn)"
    counts = Counter(item.split or split for item in listing.items)
    for part, count in sorted(counts.items()):
        print(f"{modality} {part}: {count} {listing.kind} samples")
    labels = Counter(item.label for item in listing.items if item.label is not None)
    for name in classes or ():
        print(f"  {name}: {labels[name]}")
    for note in [*listing.notes, *name_notes(classes or ())]:
        print(note)
    for name, cause in listing.bad[:SHOWN]:
        print(f"bad: {name}: {cause}")
    print(f"would be checked and written to {folder}")


def _print_result(
    args: argparse.Namespace, folder: Path, shards: Sequence[Shard], notes: list[str]
) -> None:
    """What was written, what the guards say of all that the folder now holds, and what is next."""
    groups = _groups(folder)
    found = guards.overlaps(groups)
    notes += [guards.overlap_sentence(name, o) for name, o in found.items() if o["shared"]]
    parts = {name: list(splits.values()) for name, splits in groups.items()}
    notes += [guards.source_sentence(item) for item in guards.shared_sources(parts)]
    notes += guards.lopsided(groups)
    written = {layout.place(shard.url).modality for shard in shards}
    shown = {name: splits for name, splits in groups.items() if name in written}
    if args.json:
        facts = {n: {k: holdings.facts(i) for k, i in s.items()} for n, s in shown.items()}
        print(json.dumps({"out": str(folder), "written": facts, "notes": notes}, indent=1))
        return
    out = terminal.console()
    out.print(holdings.summary(shown))
    for note in notes:
        out.print(f"Note: {note}", soft_wrap=True)
    out.print(
        f"\nWritten to {folder}\nNext: uml verify {holdings.shown_path(folder)}", soft_wrap=True
    )


def _groups(folder: Path) -> holdings.Groups:
    """Everything that the folder's index lists."""
    found = read_json(str(folder / INDEX_NAME), MAX_INDEX_BYTES) or {}
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, entry in found["shards"].items():
        if (listed := from_json(entry, str(folder / name))) is not None:
            kinds[listed.kind].append(listed.url)
    # As they are now: an older modality's shards may have been written anew since.
    shards = [shard for kind, urls in kinds.items() for shard in load_shards(urls, kind)]
    names = read_json(str(folder / CLASSES_NAME), MAX_INDEX_BYTES)
    return holdings.group(shards, tuple(names) if names else None)


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


if __name__ == "__main__":
    raise SystemExit(cli.main(["prepare", *sys.argv[1:]]))
