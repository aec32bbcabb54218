"""A run's numbers in DeepSpeed's monitors: CSV holds what metrics.jsonl holds, W&B gets it, DeepSpeed sees none."""

from __future__ import annotations

import csv
import json
import sys
import types
from contextlib import contextmanager

import deepspeed
import pytest

from engine.base.errors import UserError
from engine.run import folder as runs
from engine.run.folder import Run
from engine.run.monitors import take_monitors
from launch import sft
from tests.engine.training.trainers import one_rank, settings
from tests.launch import small
from tests.launch.jobs import argv_of


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def taken(path, ds_config=None, **changes):
    return take_monitors(ds_config or {}, settings("sft", **changes)[0], "sft", path)


@contextmanager
def a_run(path, monitors):
    """A started run in a world that DeepSpeed knows, as it does once a trainer is there."""
    with one_rank() as world:
        deepspeed.init_distributed(dist_backend="gloo", dist_init_required=False, verbose=False)
        run = Run(path, "sft", settings("sft"), world, monitors)
        run.start()
        yield run


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package, which keeps what it is given; as the real one, it has one run at a time."""
    told = types.ModuleType("wandb")
    told.__spec__ = types.SimpleNamespace(name="wandb")
    told.Error = type("Error", (Exception,), {})
    told.started, told.logged, told.finished = [], [], 0
    told.settings = {}

    def update(settings, allow_val_change):
        assert allow_val_change or not told.settings
        told.settings.update(settings)

    told.config = types.SimpleNamespace(update=update)

    def finish():
        told.finished += 1

    told.init = lambda **which: told.started.append(which)
    told.log = lambda data, step, commit: told.logged.append((step, data))
    told.finish = finish
    monkeypatch.setitem(sys.modules, "wandb", told)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return told


def test_deepspeed_gets_the_rest(tmp_path):
    config = {"zero_optimization": {"stage": 2}, "csv_monitor": {"enabled": True}, "comet": {"enabled": False}}
    rest, monitors = taken(tmp_path, config)
    assert rest == {"zero_optimization": {"stage": 2}}
    assert monitors.csv_monitor.enabled
    assert taken(tmp_path)[1] is None


def test_monitors_write_the_metrics(tmp_path, monkeypatch):
    """launch/sft.py --monitor csv, two steps, then two more after --resume: no row twice, one header, no tb/."""
    monkeypatch.chdir(tmp_path)
    small.make_model(tmp_path / "m")
    small.write_rows(tmp_path / "prompts.jsonl", small.INSTRUCTIONS)
    changes = {"monitor": "csv", "max-steps": "4", "batch-size": "2", "epochs": "2", "save-every": "2"}

    class Stopped(Exception):
        pass

    log = runs.Run.log

    def log_twice(self, step, metrics):
        log(self, step, metrics)
        if step == 3 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise Stopped

    monkeypatch.setattr(runs.Run, "log", log_twice)
    with small.alone():
        with pytest.raises(Stopped):
            sft.job(argv_of("sft", changes))
        assert [row[0] for row in rows_of(tmp_path / "out/csv/loss_sft.csv")] == ["step", "1", "2", "3"]
        sft.job([*argv_of("sft", changes), "--resume"])
    metrics = small.read_rows(tmp_path / "out" / "metrics.jsonl")
    assert rows_of(tmp_path / "out/csv/loss_sft.csv") == [["step", "sft"]] + [
        [str(row["step"]), str(row["loss/sft"])] for row in metrics
    ]
    assert len(list((tmp_path / "out" / "csv").iterdir())) == len(metrics[0]) - 1
    assert not (tmp_path / "out" / "tb").exists()


def test_output_paths_from_a_file(tmp_path):
    """Its own folder and job, the stage behind it; and TensorBoard beside the run's own."""
    named = {"enabled": True, "output_path": str(tmp_path / "all"), "job_name": "night"}
    rest, monitors = taken(tmp_path / "run", {"csv_monitor": named, "tensorboard": named})
    with a_run(tmp_path / "run", monitors) as run:
        run.log(1, {"loss/sft": 2.5, "lr": 0.1})
        run.finish({})
    assert rows_of(tmp_path / "all" / "night-sft" / "loss_sft.csv") == [["step", "sft"], ["1", "2.5"]]
    assert list((tmp_path / "all" / "night-sft").glob("events*")) and list((tmp_path / "run" / "tb").glob("events*"))
    assert taken(tmp_path, {"tensorboard": {"enabled": True}})[1] is None  # that is what a run writes by itself


def test_wandb_gets_metrics_settings_and_finish(tmp_path, wandb):
    _, monitors = taken(tmp_path, {"wandb": {"project": "mine"}}, monitor="wandb")
    with a_run(tmp_path / "run", monitors) as run:
        assert not wandb.started  # nothing before the first number
        run.log(1, {"loss/sft": 2.5, "lr": 0.1})
        run.log(2, {"loss/sft": 1.25})
        run.finish({})
    assert wandb.started == [{"project": "mine", "group": "ne", "entity": None}]
    assert wandb.logged == [(1, {"loss/sft": 2.5}), (1, {"lr": 0.1}), (2, {"loss/sft": 1.25})]
    assert wandb.settings["lr"] == 3e-3 and wandb.finished == 1
    json.dumps(wandb.settings)


def test_failed_login_is_one_line(tmp_path, wandb):
    def refuse(**_):
        raise wandb.Error("no API key")

    wandb.init = refuse
    _, monitors = taken(tmp_path, monitor="wandb")
    expected = pytest.raises(UserError, match=r"a monitor cannot start \(no API key\): fix that")
    with a_run(tmp_path / "run", monitors) as run, expected:
        run.log(1, {"lr": 0.1})


def test_missing_package_stops_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="the monitor wandb needs the package wandb, which is missing: pip install wandb"
    ):
        sft.job(argv_of("sft", {"monitor": "tensorboard,wandb"}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ds_config", "words"),
    [
        ({"csv_monitor": True}, "'csv_monitor' is True: make it an object"),
        ({"csv_monitor": {"enabled": "perhaps"}}, "csv_monitor.enabled is 'perhaps'"),
        ({"wandb": {"enabled": True, "name": "x"}}, "wandb.name is 'x'"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, ds_config, words):
    with pytest.raises(UserError, match=words):
        taken(tmp_path, ds_config)


def test_unknown_monitor_is_named():
    with pytest.raises(UserError, match="--monitor: 'tensorbord' is unknown, give some of tensorboard,csv,wandb"):
        settings("sft", monitor="csv,tensorbord")
