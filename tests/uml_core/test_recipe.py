import copy
import math
from pathlib import Path

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from uml_core.errors import UserError
from uml_core.recipe import from_dict, load
from uml_core.schedule import Warmup
from uml_core.specs import CompareSpec, Recipe, grid_points

SMALL = {
    "name": "small",
    "target": "image",
    "data_root": "/data",
    "modalities": {
        "image": {"kind": "image", "train": "i-*.tar"},
        "text": {"kind": "text", "train": "t-*.tar"},
    },
}


def small(**changes):
    """The small recipe with changes (a__b is b in a); ... removes a field."""
    raw = copy.deepcopy(SMALL)
    for place, value in changes.items():
        *parents, last = place.split("__")
        node = raw
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is ...:
            node.pop(last)
        else:
            node[last] = value
    return raw


def problems(raw) -> list[str]:
    with pytest.raises(UserError) as caught:
        from_dict(raw)
    return caught.value.problems


def only(raw) -> str:
    (problem,) = problems(raw)
    return problem


def write(folder: Path, raw) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw, sort_keys=False))
    return path


# ------------------------------------------------------------------------------- defaults


def test_a_recipe_that_names_only_kinds_and_files_is_complete():
    recipe = from_dict(SMALL)
    assert recipe.setting == "supervised" and recipe.seeds == [0, 1, 2, 3, 4]
    assert recipe.model.width == 64 and recipe.train.steps == 300
    assert recipe.modalities["image"].options.size == 32
    assert recipe.modalities["text"].ratio == 1.0 and recipe.modalities["text"].weight == 1.0
    assert recipe.auxiliaries == ["text"] and recipe.active == ["image", "text"]


def test_numbers_written_without_a_dot_are_numbers():
    """YAML 1.1 reads 1e-3 as a string."""
    recipe = from_dict(small(train={"lr": "1e-3", "steps": "20"}, modalities__text__ratio="5e-1"))
    assert recipe.train.lr == 1e-3 and recipe.train.steps == 20
    assert recipe.modalities["text"].ratio == 0.5


def test_off_is_a_word_and_still_no_for_a_switch(tmp_path):
    path = write(tmp_path, f"{yaml.safe_dump(small())}\ntrace: off\nmodel: {{positions: off}}\n")
    recipe = load(path)
    assert recipe.model.positions == "off" and recipe.trace is False
    over = load(path, ["model.positions=off", "trace=true", "name=trueish"])
    assert over.model.positions == "off" and over.trace is True and over.name == "trueish"
    assert load(write(tmp_path, over.to_yaml())) == over


def test_active_leaves_out_what_the_schedule_never_takes():
    assert from_dict(small(modalities__text__ratio=0)).active == ["image"]
    assert from_dict(small(modalities__text__ratio=[[0, 0], [5, 0]])).active == ["image"]
    assert from_dict(small(modalities__text__ratio=[[0, 0], [5, 1]])).active == ["image", "text"]
    assert from_dict(small(modalities__text__weight=0)).active == ["image"]
    warm = {"warmup": {"modality": "text", "steps": 5}}
    recipe = from_dict(small(modalities__text__ratio=0, train=warm))
    assert recipe.active == ["image", "text"]
    assert recipe.schedule().consumed(305) == {"image": 300, "text": 5}


def test_the_schedule_is_the_recipes():
    raw = small(
        modalities__text__ratio=[[0, 1], [10, 0.5]],
        train={"steps": 40, "warmup": {"modality": "image", "steps": 4}},
    )
    schedule = from_dict(raw).schedule()
    assert (schedule.target, schedule.steps, schedule.warmup) == ("image", 40, Warmup("image", 4))
    assert schedule.ratios == {"text": ((0, 1.0), (10, 0.5))}


def test_a_warm_up_of_nothing_is_none():
    for warm in ({"steps": 0}, {"epochs": 0}):
        raw = small(modalities__text__ratio=0, train__warmup={"modality": "text", **warm})
        recipe = from_dict(raw)
        assert recipe.active == ["image"] and recipe.schedule().warmup is None


def test_a_sample_must_fit_the_position_table():
    def text(**changes):
        return small(modalities__text__stem="tokens", model={"positions": "learned", **changes})

    said = only(text(max_positions=63))
    assert said.startswith("modalities.text: ") and " 64 " in said and " 63: " in said
    assert "model.max_positions" in said and "max_tokens" in said
    from_dict(text(max_positions=64))
    from_dict(small(modalities__text__stem="tokens", model={"max_positions": 1}))
    raw = text(max_positions=1)
    raw["modalities"]["text"]["ratio"] = 0
    from_dict(raw)  # a modality that is never taken may have any length


def test_a_trunk_is_frozen_never_always_or_for_its_first_steps():
    steps = (0, 1, 4, 5)
    for value, frozen in (
        (False, [0, 0, 0, 0]),
        (True, [1, 1, 1, 1]),
        (5, [1, 1, 1, 0]),
        (0, [0] * 4),
    ):
        model = from_dict(small(model={"trunk_frozen": value})).model
        assert [model.frozen_at(step) for step in steps] == [bool(f) for f in frozen]


def test_grid_points_are_the_product_of_an_arms_axes():
    spec = CompareSpec({"lr": [1, 2]}, {"weight": [3, 4]}, {"weight_decay": [5, 6]})
    assert grid_points(spec, auxiliary=True) == [
        {"lr": lr, "weight": w} for lr in (1, 2) for w in (3, 4)
    ]
    assert grid_points(spec, auxiliary=False)[0] == {"lr": 1, "weight_decay": 5}
    assert grid_points(CompareSpec(), auxiliary=True) == [{}]


# ------------------------------------------------------------------------------- problems


def test_every_problem_is_told_at_once():
    raw = {
        "name": "x",
        "target": "imag",
        "seting": "supervised",
        "data_root": "/data",
        "seeds": [],
        "modalities": {
            "image": {"kind": "image", "train": "a", "sze": 3, "stem": "convv"},
            "text": {"kind": "txt", "train": "b"},
            "pen": {"kind": "sequence", "weight": -1},
        },
        "model": {"width": 30, "heads": 4, "depht": 2},
        "train": {"lr": "fast", "steps": 0, "device": "gpu", "warmup": {"modality": "tex"}},
        "compare": {"grid": {"lr": []}, "arms": ["unimodl"]},
    }
    told = "\n".join(problems(raw))
    for part in (
        "target: no modality 'imag' (did you mean 'image'?)",
        "seting: unknown field (did you mean 'setting'?)",
        "seeds: give at least one",
        "modalities.image.sze: unknown field of kind image (did you mean 'size'?)",
        "modalities.image.stem: input should be 'auto', 'conv', 'vit', 'patches' or 'encoder'",
        "modalities.text.kind: 'txt' is not one of",
        "modalities.pen.train: missing",
        "modalities.pen.weight: cannot be negative",
        "model.depht: unknown field (did you mean 'depth'?)",
        "model.width: 30 is not divisible by 4 heads",
        "train.lr: input should be a valid number",
        "train.steps: must be at least 1 (got 0)",
        "train.device: input should be 'auto', 'cpu' or 'cuda'",
        "train.warmup: give either steps or epochs",
        "compare.grid.lr: give one value or more",
        "compare.arms: unknown arm 'unimodl' (did you mean 'unimodal'?)",
    ):
        assert part in told, f"{part!r} is not in\n{told}"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": ...}, "name: missing"),
        ({"name": "../x"}, "name: '../x' cannot be a folder's name"),
        ({"name": ""}, "name: '' cannot be a folder's name"),
        ({"target": ...}, "target: missing"),
        ({"data_root": ...}, "data_root: say where"),
        ({"seeds": [1, 1]}, "seeds: "),
        ({"seeds": [-1]}, "seeds: "),
        ({"shots": 0}, "shots: "),
        ({"shots": [4, 4]}, "shots: "),
        ({"allow_overlap": 1.5}, "allow_overlap: must be between 0 and 1"),
        ({"modalities__text__train": 3}, "modalities.text.train: input should be"),
        ({"modalities__text__ratio": -1}, "modalities.text.ratio: batches per target batch"),
        ({"modalities__text__ratio": []}, "modalities.text.ratio: a changing ratio is"),
        ({"modalities__text__ratio": [[5, 1]]}, "modalities.text.ratio: a changing ratio is"),
        ({"modalities__text__ratio": [[0, 1], [0, 2]]}, "modalities.text.ratio: a changing"),
        ({"modalities__text__ratio": math.inf}, "modalities.text.ratio: must be a finite number"),
        ({"modalities__text__weight": math.nan}, "modalities.text.weight: must be a finite"),
        ({"modalities__text__shots": 0}, "modalities.text.shots: must be at least 1"),
        ({"modalities__image__shots": 4}, "modalities.image.shots: the target's shots"),
        ({"modalities__image__ratio": 2}, "modalities.image.ratio: the target's ratio is 1"),
        ({"modalities__text__options": {}}, "modalities.text.options: unknown field"),
        ({"modalities__values": SMALL["modalities"]["text"]}, "modalities.values: a modality's"),
        ({"modalities__a.b": SMALL["modalities"]["text"]}, "modalities.a.b: a modality's name"),
        ({"modalities__image__kind": ["image"]}, "modalities.image.kind: '['image']' is not"),
        ({"setting": "self_supervised", "modalities__image__stem": "conv"}, "modalities.image.st"),
        ({"model": None}, "model: input should be"),
        ({"model__dropout": 1.0}, "model.dropout: "),
        ({"model__ff": 0}, "model.ff: must be at least 1"),
        ({"model__head_init": "class_means"}, "model.head_init: random or class_means:<modality>"),
        ({"model__head_init": "class_means:txt"}, "model.head_init: no modality 'txt' (did you"),
        ({"train__lr": math.nan}, "train.lr: must be a finite number"),
        ({"train__lr": 0}, "train.lr: must be above 0"),
        ({"train__clip": 0}, "train.clip: must be above 0"),
        ({"train__patience": 0}, "train.patience: must be at least 1"),
        ({"train__weight_decay": -1}, "train.weight_decay: must be at least 0"),
        ({"train__label_smoothing": 2}, "train.label_smoothing: must be between 0 and 1"),
        ({"train__batch_size": 1}, "train.batch_size: 1 is less than one sample for each of 2"),
        ({"train__warmup": {"modality": "txt", "steps": 1}}, "train.warmup.modality: no modality"),
        ({"train__warmup": {"modality": "text", "steps": -1}}, "train.warmup.steps: must be at"),
        ({"train__warmup": {"modality": "text", "epochs": -1}}, "train.warmup.epochs: must be at"),
        ({"train__warmup": {"modality": "text"}}, "train.warmup: give either steps or epochs"),
        (
            {"train__warmup": {"modality": "text", "steps": 3, "epochs": 1}},
            "train.warmup: give either steps or epochs",
        ),
        ({"train__warmup": {"modality": "image", "steps": 300}}, "train.warmup: 300 of 300 steps"),
        (
            {"modalities__text__shots": "average"},
            "modalities.text.shots: only samples of kind vector",
        ),
        ({"modalities__text__shots": "mean"}, "modalities.text.shots: input should be"),
        ({"model__logit_scale_value": 0}, "model.logit_scale_value: must be above 0"),
        ({"model__trunk_frozen": -1}, "model.trunk_frozen: must be at least 0"),
        ({"model": {"trunk": "none", "trunk_frozen": True}}, "model.trunk: none leaves nothing"),
        ({"model__depth": 0}, "model.depth: 0 leaves a trunk without blocks"),
        ({"world": {}}, "world.name: missing"),
        ({"world": {"name": "shapes", "test": 0}}, "world.test: must be at least 1"),
        ({"probe": {"C": []}}, "probe.C: "),
        ({"probe": {"label_fraction": 0.0}}, "probe.label_fraction: must be above 0"),
        ({"evaluate": {"shots": [4, 4]}}, "evaluate.shots: give at least one, each once, none"),
        ({"evaluate": {"shots": [0]}}, "evaluate.shots: give at least one"),
        ({"evaluate": {"split_seeds": []}}, "evaluate.split_seeds: give at least one"),
        ({"evaluate": {"samples": 10}}, "evaluate.samples: must be at least 100"),
        ({"tests": []}, "tests: expected a mapping"),
        ({"tests": {"a": "x.tar"}}, "tests.a: expected a mapping"),
        ({"tests": {"a": {}}}, "tests.a.files: missing"),
        ({"tests": {"a": {"files": "x", "lables": "y"}}}, "tests.a.lables: unknown field (did"),
        ({"tests": {"../a": {"files": "x"}}}, "tests.../a: a name is made of"),
        ({"compare": {"grid": {"lrr": [1]}}}, "compare.grid.lrr: not one of"),
        ({"compare": {"grid": {"lr": [0]}}}, "compare.grid.lr: give one value or more"),
        ({"compare": {"auxiliary_grid": {"weight": [1, 2]}}}, "compare: arms with auxiliary data"),
    ],
)
def test_one_problem_is_told_once(change, told):
    assert only(small(**change)).startswith(told)


def test_head_init_from_a_modality_that_is_not_in_use():
    raw = small(model__head_init="class_means:text", modalities__text__ratio=0)
    assert "not in use" in only(raw)
    from_dict(small(model__head_init="class_means:text"))


@pytest.mark.parametrize("raw", [{}, {"modalities": []}, {"modalities": {}, "target": 3}])
def test_a_recipe_without_modalities(raw):
    assert any(p.startswith("modalities: name at least one") for p in problems(raw))


# -------------------------------------------------------------------------------- loading


def test_overrides_are_dotted_yaml_values(tmp_path):
    path = write(tmp_path, small(world={"name": "shapes"}))
    recipe = load(
        path,
        ["train.lr=1e-2", "seeds=[7, 8]", "modalities.text.weight=0.5", "shots=null", "world=null"],
    )
    assert recipe.train.lr == 0.01 and recipe.seeds == [7, 8] and recipe.world is None
    assert recipe.modalities["text"].weight == 0.5 and recipe.shots is None
    assert load(path, ["name=a", "data_root=x=y"]).data_root.endswith("x=y")


@pytest.mark.parametrize("train", [..., {}, None, {"warmup": None}])
def test_an_override_reaches_into_a_group_that_is_null_or_absent(tmp_path, train):
    raw = small(train=train) if train is not ... else small()
    recipe = load(write(tmp_path, raw), ["train.warmup.modality=text", "train.warmup.steps=3"])
    assert recipe.schedule().lead == 3


def test_problems_of_overrides_stand_with_the_others(tmp_path):
    with pytest.raises(UserError) as caught:
        load(write(tmp_path, small()), ["lr", "seeds.0=1", "train.lr=[", "train.stepz=3"])
    told = "\n".join(caught.value.problems)
    for part in ("'lr': overrides are", "seeds", "not valid YAML", "train.stepz: unknown field"):
        assert part in told


def test_overriding_one_of_two_aliased_groups_leaves_the_other(tmp_path):
    text = """
name: x
target: a
data_root: .
modalities:
  a: &spec {kind: vector, train: a.tar}
  b: *spec
"""
    recipe = load(write(tmp_path, text), ["modalities.b.weight=0.5"])
    assert recipe.modalities["a"].weight == 1.0 and recipe.modalities["b"].weight == 0.5


def test_a_repeated_key_is_an_error_not_a_surprise(tmp_path):
    """The reference's train.yaml repeats every key and silently keeps half (fault 4)."""
    text = "name: x\ntrain: {lr: 1}\ntarget: a\ntrain: {lr: 2}\n"
    with pytest.raises(UserError, match=r"'train' is given twice(.|\n)*line 1"):
        load(write(tmp_path, text))


def test_relative_data_roots(tmp_path, monkeypatch):
    home = tmp_path / "recipes"
    home.mkdir()
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)

    def root(raw, *overrides):
        return load(write(home, raw), overrides).data_root

    assert root(small(data_root="d")) == str(home / "d")
    assert root(small(data_root="../d")) == str(tmp_path / "d")
    assert root(small(data_root=...)) == str(home)
    assert root(small(data_root="/abs")) == "/abs"
    assert root(small(data_root="s3://bucket/d")) == "s3://bucket/d"
    assert root(small(), "data_root=mine/d") == str(here / "mine" / "d")
    assert root(small(), "data_root=s3://bucket/d") == "s3://bucket/d"
    shapes = small(data_root=..., world={"name": "shapes"})
    assert root(shapes) == str(here / "data" / "shapes")
    assert root(shapes, "world.name=digits") == str(here / "data" / "digits")
    monkeypatch.setenv("HOME", "/home/me")
    assert root(small(), "data_root=~/d") == "/home/me/d"


def test_paths_of_a_test_set_on_the_command_line_are_the_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, small(tests={"v2": {"files": "v2-*.tar", "labels": "v2.json"}}))
    assert load(path).tests["v2"].files == "v2-*.tar"  # of the recipe: below data_root
    given = ["tests.v2.files=near/*.tar", "tests.ink.files=[a.tar, s3://b/c.tar]"]
    found = load(path, given).tests
    assert found["v2"].files == str(tmp_path / "near" / "*.tar")
    assert found["v2"].labels == "v2.json"
    assert found["ink"].files == [str(tmp_path / "a.tar"), "s3://b/c.tar"]
    assert load(path, ["tests.v2.labels=m.json"]).tests["v2"].labels == str(tmp_path / "m.json")


def test_a_data_root_left_to_the_user_is_asked_for(tmp_path):
    path = write(tmp_path, yaml.safe_dump(small(data_root=...)) + "data_root: null\n")
    with pytest.raises(UserError, match="data_root: say where"):
        load(path)
    assert load(path, [f"data_root={tmp_path}"]).data_root == str(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "- 1", "a: [", "\x00", "a: !!python/object:os.system {}", "1"]
)
def test_files_that_are_no_recipe(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"r\.yaml"):
        load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid YAML"):
        load(path)
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path)


def full() -> dict:
    return {
        "name": "full",
        "target": "image",
        "setting": "self_supervised",
        "shots": [1, 2],
        "data_root": "/data",
        "modalities": {
            "image": {"kind": "image", "train": ["a.tar", "b.tar"], "stem": "vit", "size": 16},
            "pen": {
                "kind": "sequence",
                "train": "p",
                "val": "q",
                "ratio": [[0, 1.0], [5, 0.25]],
                "shots": 3,
            },
        },
        "model": {"depth": 3, "norm": "post", "positions": "learned", "dropout": 0.1},
        "train": {"lr": 3e-5, "warmup": {"modality": "pen", "steps": 4}, "clip": 1.0},
        "probe": {"C": [1e-4, 1.0], "label_fraction": 0.1},
        "compare": {"grid": {"lr": [1e-3]}, "arms": ["unimodal"], "parallel": "data"},
        "evaluate": {"shots": [1, 3], "samples": 500},
        "tests": {"sketch": {"files": ["s-*.tar"], "labels": "sketch.json"}},
        "world": {"name": "shapes", "train": 10},
        "seeds": [3],
        "trace": True,
    }


@pytest.mark.parametrize("raw", [SMALL, full()])
def test_the_resolved_recipe_loads_again_as_itself(tmp_path, raw):
    recipe = from_dict(raw)
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml())
    assert load(path) == recipe
    assert from_dict(recipe.to_dict()) == recipe


# ---------------------------------------------------------------------------------- fuzz

# PyYAML itself loses a lone next-line character; control characters are no recipe's business.
printable = st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10**6)
    | st.floats()
    | st.text(printable, max_size=8)
    | st.sampled_from(["image", "text", "1e-3", "class_means:text", ".nan", "s3://x", "~", "joint"])
)
keys = st.text(max_size=5) | st.sampled_from(["modality", "steps", "lr", "kind", "train", "name"])
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(keys | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(node, path=()):
    """Every place of a nested mapping where a value can be put."""
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


PLACES = list(places(from_dict(full()).to_dict()))


@given(st.lists(st.tuples(st.sampled_from(PLACES), anything), max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_recipe_is_taken_or_refused_in_words(changes):
    raw = from_dict(full()).to_dict()
    for path, value in changes:
        node = raw
        for key in path[:-1]:
            node = node[key] if isinstance(node.get(key), dict) else node.setdefault("junk", {})
        node[path[-1]] = value
    try:
        recipe = from_dict(raw)
    except UserError as error:
        assert error.problems and all(p.strip() for p in error.problems)
    else:
        assert isinstance(recipe, Recipe)
        recipe.schedule().consumed(recipe.schedule().total)
        assert from_dict(yaml.safe_load(recipe.to_yaml())) == recipe


@given(st.lists(st.text(max_size=30) | st.sampled_from(PLACES).map(".".join), max_size=3), anything)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_override_is_taken_or_refused_in_words(tmp_path, places, value):
    path = tmp_path / "recipe.yaml"
    if not path.exists():
        write(tmp_path, full())
    overrides = [f"{place}={value}" for place in places] + [str(value)]
    try:
        assert isinstance(load(path, overrides), Recipe)
    except UserError as error:
        assert error.problems


@given(st.text(alphabet="!&*<>{}[]:-,|'\"?@#% \n~ab01tinsmepyor/.\\", max_size=40))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_file_is_taken_or_refused_in_words(tmp_path, text):
    with pytest.raises(UserError):
        load(write(tmp_path, text))
