"""Early stopping and guided search, without Ray running."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.tune.search import Searcher

from pipelines.tuning import search
from pipelines.tuning.journal import Record
from pipelines.tuning.search import Guided, Halving, Queue, cause
from tune_spaces.base import Context, find
from uml_core import recipe
from uml_core.specs import TrainSpec


def report(validation, accuracy):
    return {"validation": validation, "val_accuracy": accuracy}


@pytest.fixture
def judged(make_trial):
    """(scheduler, key, arm, validation, accuracy) -> what becomes of the trial."""

    def judge(scheduler, key, validation, accuracy, arm="uml"):
        trial = SimpleNamespace(config={"trial": make_trial(key, arm=arm).to_json()})
        return scheduler.on_trial_result(None, trial, report(validation, accuracy))

    return judge


def test_the_worst_are_stopped_at_a_rung_and_only_there(judged):
    halving = Halving(12, [])  # rungs at validations 3 and 9
    assert judged(halving, "good", 3, 50.0) == "CONTINUE"
    assert judged(halving, "bad", 1, 1.0) == "CONTINUE"
    assert judged(halving, "bad", 3, 10.0) == "STOP"
    assert judged(halving, "better", 3, 60.0) == "CONTINUE"
    assert judged(halving, "good", 5, 10.0) == "CONTINUE"


def test_baselines_are_never_stopped_and_do_not_count(judged):
    halving = Halving(12, [])
    assert judged(halving, "base", 3, 90.0, "unimodal") == "CONTINUE"
    assert judged(halving, "good", 3, 50.0) == "CONTINUE"  # 90 is no cutoff
    assert judged(halving, "base", 9, 1.0, "unimodal") == "CONTINUE"


def test_rungs_stand_after_a_resume_and_count_each_trial_once(judged, make_trial):
    known = [
        Record(make_trial("good"), [report(3, 50.0)], None, "finished"),
        Record(make_trial("open"), [report(3, 60.0)], None, "running"),
    ]
    halving = Halving(12, known)
    assert judged(halving, "late", 3, 10.0) == "STOP"
    assert judged(halving, "open", 3, 0.0) == "CONTINUE"  # it was judged before the kill
    [recorded] = [rung for milestone, rung in halving._brackets[0]._rungs if milestone == 3]
    assert recorded == {"good": 50.0, "open": 60.0, "late": 10.0}


def test_a_queue_ends(make_trial):
    queue = Queue([make_trial("a"), make_trial("b")])
    assert [t and t.key for t in (queue.next(), queue.next(), queue.next())] == ["a", "b", None]


def test_guided_search_proposes_what_scores_and_goes_on_after_a_resume(tiny_recipe, make_trial):
    pytest.importorskip("optuna")
    context = Context(recipe.from_dict(tiny_recipe), {"image": 48, "text": 48, "wave": 48})
    space = find("loss_weight")

    def make(key, values):
        return make_trial(key, values=dict(values), settings={})

    def guided(count, known=(), first=()):
        return Guided(space, context, count, 0, make, first, known)

    def score(trial):  # the smaller the weight of the text loss the better
        return 100 - 40 * trial.values["weight of the text loss"]

    search, records = guided(30, first=[make_trial("base", arm="unimodal")]), []
    assert search.next().key == "base"
    while (trial := search.next()) is not None:
        records.append(Record(trial, [{"val_accuracy": score(trial)}], None, "finished"))
        search.told(records[-1])
    weights = [r.trial.values["weight of the text loss"] for r in records]
    assert len(weights) == 30 and len({r.trial.key for r in records}) == 30
    assert sorted(weights[20:])[5] < sorted(weights[:10])[5]  # later ones are better

    resumed = guided(33, known=records)
    later = [resumed.next() for _ in range(4)]
    assert [t and t.key for t in later] == ["trial-031", "trial-032", "trial-033", None]
    assert min(t.values["weight of the text loss"] for t in later[:3]) < 0.5


def test_what_a_failed_trial_said_is_one_line():
    """The traces are those that Tune keeps."""
    known = """Traceback (most recent call last):
  File "x.py", line 1, in f
ray.exceptions.RayTaskError(RunError): ray::ImplicitFunc.train() (pid=1)
    raise RunError("gone")
uml_core.errors.RunError: a.tar has gone: put it back
"""
    died = """ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
\tpid: 29954
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR
"""
    assert cause(known) == "a.tar has gone: put it back"
    assert cause(died).startswith("ray.exceptions.ActorDiedError: The actor died unexpectedly")
    assert cause(None) == cause("") == "the trial's process died"


@pytest.fixture
def cluster(monkeypatch):
    """Sets what Ray says it has; private: a Ray of this process's own, else a cluster."""

    def has(private=False, **resources):
        monkeypatch.setattr(search.ray, "cluster_resources", lambda: resources)
        monkeypatch.setattr(search, "is_private", lambda: private)
        monkeypatch.setattr(search.os, "cpu_count", lambda: 4)

    return has


def test_trials_at_a_time_follow_the_cluster(cluster):
    """Where GPU nodes start at zero, one trial waits for the first: an autoscaler sees it."""
    spec = TrainSpec(device="cuda", workers=1)
    cluster(CPU=0.0)
    assert (search.concurrency(spec, 0.25), search.room(spec, 0.25)) == (0, 1)
    cluster(CPU=8.0, GPU=1.0)
    assert (search.concurrency(spec, 0.25), search.room(spec, 0.25)) == (4, 8)
    cluster(CPU=64.0, GPU=8.0)
    assert search.concurrency(spec, 0.25) == 32
    assert search.concurrency(TrainSpec(device="cuda", workers=4)) == 2


def test_a_local_ray_has_more_cpus_than_the_machine(cluster):
    cluster(private=True, CPU=40.0)
    spec = TrainSpec(device="cpu", workers=1)
    assert search.concurrency(spec) == search.room(spec) == 4
    assert search.room(TrainSpec(device="cpu", workers=8)) == 1


def test_tune_is_given_trials_as_long_as_there_is_room(make_trial):
    places = [1]
    points = search._Points(
        Queue([make_trial("a"), make_trial("b"), make_trial("c")]),
        SimpleNamespace(records={}),
        lambda: places[0],
    )
    assert points.suggest("1")["trial"]["key"] == "a" and points.suggest("2") is None
    places[0] = 2  # a node came
    assert points.suggest("2")["trial"]["key"] == "b" and points.suggest("3") is None
    points.on_trial_complete("1")
    assert points.suggest("3")["trial"]["key"] == "c"
    points.on_trial_complete("2")
    assert points.suggest("4") == Searcher.FINISHED
