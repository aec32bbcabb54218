"""Fuzz targets of the engine: records, templates, settings, response shards, checkpoints, kept batches, reports."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import torch

import engine.run.checkpoint_files as checkpoints
from engine.base.errors import UserError
from engine.base.frames import scan_frames
from engine.base.records import read_instructions, read_rankings, read_records
from engine.cli.config_file import read_config
from engine.generation.shards import Shards
from engine.init_model import read_texts
from engine.presets import presets
from engine.report.page import page
from engine.report.reading import read_run
from engine.run.folder import read_result
from engine.run.template_choice import choose_template
from engine.settings import STAGE_SETTINGS
from engine.text.templates import load_template
from engine.training.ds_config import read_ds_config
from engine.training.guards import file_of, keep, read_kept
from launch.bench.rollout_workload import read_lengths
from tests.fuzz.corrupt import Inputs, any_bytes, frames_file, gzip_file, json_file, jsonl_file
from tests.fuzz.reader import Reader
from tests.launch.small import INSTRUCTIONS, RANKINGS, write_rows

PAIRS = [
    {"instruction": "a", "input": "", "prefered_output": "good", "rejected_output": "bad"},
    {"prompt": "a", "chosen": "good", "rejected": "bad"},
    {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
]
TEMPLATE = b"Task: {instruction}\nWith: {input}\n---\nTask: {instruction}\n"
YAML = b"lang: ne\nlr: 1e-4\nmax_length: 64\nbatch_size: &n 8\nepochs: *n\nresume: yes\noutput: ~\n"
JSON = {"lang": "ne", "lr": 1e-4, "max_length": 64, "batch_size": 8, "resume": True, "output": None}
ZERO = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": 5e8}}
FRAMES = [
    {"t": "run", "v": 1, "run": {"seed": 1, "stop": None}, "replaces": False},
    {"t": "response", "p": 0, "k": 0, "x": "शुभ", "n": 3, "e": "eos"},
    {"t": "response", "p": 0, "k": 1, "x": "", "n": 1, "e": "length"},
]
CONFIG = {
    "stage": "ppo",
    "settings": {"lang": "ar", "seed": 0, "template": "plain"},
    "template": {"name": "mine", "with_input": "{instruction} {input}", "without_input": "{instruction}"},
    "versions": {"torch": "2"},
    "hardware": {"cpu": "one"},
}
METRICS = [
    {"step": s, "objective/scores": s / 10, "objective/kl": s, "time/collect_s": 3.0, "time/generation_s": 1.5,
     "time/update_s": 2.0}
    for s in (1, 2, 3)
]  # fmt: skip
SAMPLES = [{"step": 3, "prompt": "q\n=> ", "response": "a", "before_ppo": "b", "expected": "a", "score": 0.5}]
SCORES = [{"step": s, "scores": [0.5, 1.5]} for s in (1, 3)]
RESULT = {"score_first": 0.1, "score_last": 0.4, "exact_match": 0.5, "seconds": 7.25}
EVALUATION = {
    "results": {"arc_ar": {"alias": "arc", "acc,none": 0.25, "acc_stderr,none": "N/A"}, "arc_ar_x": {"acc,none": 1.0}},
    "group_subtasks": {"arc_ar": ["arc_ar_x"]},
    "n-samples": {"arc_ar": {"effective": 1167}},
}
STATE = {
    "step": 1, "settings": {}, "identity": {}, "versions": {}, "ranks": 1, "zero_stage": 0, "files": {},
    "seconds": 1.0, "trainer": {},
}  # fmt: skip


def settings_of(path: Path) -> None:
    """Read a --config file as a launcher does."""
    from engine.cli.parse import parse_settings

    read_config(str(path))
    parse_settings(STAGE_SETTINGS["sft"], ["--config", str(path)], "sft", "x", presets("sft"), lambda flags: "default")


def response_shard(path: Path) -> None:
    shards = Shards(path.parent / "o.jsonl")
    list(shards.read(shards.keys()))


def make_checkpoint(folder: Path) -> None:
    x = torch.arange(4.0)
    checkpoints.write(folder, 1, STATE, {checkpoints.TRAINED: {"weight:a": x}, checkpoints.ROLLOUT: {"x": x}}, keep=2)


def newest_checkpoint(path: Path) -> None:
    """Find the newest whole checkpoint. An incomplete one is listed as rejected and raises nothing."""
    found, rejected = checkpoints.newest_whole(path.parent if path.name == "latest" else path.parents[1])
    assert found or rejected
    if found:
        found.tensors(checkpoints.TRAINED)


def checkpoint_state(path: Path) -> None:
    """Read a corrupted state whose checksum in the manifest is valid."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": checkpoints.sha256(p)} for p in path.parent.iterdir()}
    del files[checkpoints.MANIFEST]
    (path.parent / checkpoints.MANIFEST).write_text(json.dumps({"files": files}))
    newest_checkpoint(path)


@functools.cache
def kept_batch() -> bytes:
    """Return the bytes of a file for --replay."""
    note = {"stage": "sft", "step": 2, "rank": 0, "quantity": "the loss", "settings": {}, "ids": ["a"]}
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        file = file_of(Path(folder), 2, 0)
        keep(file, note, {"tokens_T": torch.tensor([1, 2, 3]), "lengths_S": torch.tensor([1, 2])})
        return file.read_bytes()


def make_run(folder: Path) -> None:
    stage = folder / "run" / "ppo"
    (stage.parent / "evaluate").mkdir(parents=True)
    stage.mkdir()
    for name, value in (("config", CONFIG), ("result", RESULT), ("../evaluate/results", EVALUATION)):
        (stage / f"{name}.json").write_text(json.dumps(value))
    for name, rows in (("metrics", METRICS), ("samples", SAMPLES), ("scores", SCORES)):
        write_rows(stage / f"{name}.jsonl", rows)


def report(path: Path) -> None:
    """Build the whole report page except its plots."""
    folder = next(parent for parent in path.parents if parent.name == "run")
    page([read_run(folder)], []).encode()


def run_folder(path: Path) -> None:
    """Read a run's result.json, or choose its template, as the next stage does."""
    if path.name == "result.json":
        read_result(path.parent)
    else:
        assert choose_template(None, path.parent / "model", _NoChat()).template.format("x")


class _NoChat:
    """A stand-in for a tokenizer without a chat template."""

    chat_template, name_or_path = None, ""


def template(path: Path) -> None:
    load_template(path).format("an instruction", "an input")


def in_run(name: str, inputs: Inputs) -> Reader:
    return Reader(inputs, report, f"run/ppo/{name}", make_run)


def read_twice(read):
    """Return a function that reads a file to its end twice: once refusing bad records, once skipping them."""

    def twice(path: Path) -> None:
        errors: list[UserError] = []
        for options in ({}, {"on_bad_record": errors.append}):
            try:
                list(read(path, **options))
            except UserError as error:
                assert "\n" not in str(error)

    return twice


LINES = jsonl_file(INSTRUCTIONS)
READERS = {
    "instructions.jsonl": Reader(LINES, read_twice(read_instructions), "x.jsonl"),
    "instructions.jsonl.gz": Reader(gzip_file(LINES), read_twice(read_instructions), "x.jsonl.gz"),
    "instructions.json": Reader(json_file(INSTRUCTIONS), lambda p: list(read_records(p)), "x.json"),
    "rankings.jsonl": Reader(jsonl_file(RANKINGS[:2] + PAIRS), read_twice(read_rankings), "x.jsonl"),
    "texts": Reader(any_bytes("शुभ प्रभात\nGood\n".encode()), lambda p: list(read_texts([p])), "x.txt"),
    "texts.jsonl": Reader(LINES, lambda p: list(read_texts([p])), "x.jsonl"),
    "template": Reader(any_bytes(TEMPLATE), template, "x.txt"),
    "config.yaml": Reader(any_bytes(YAML), settings_of, "x.yaml"),
    "config.json": Reader(json_file(JSON), settings_of, "x.json"),
    "deepspeed.json": Reader(json_file(ZERO), lambda p: read_ds_config(str(p)), "x.json"),
    "frames": Reader(frames_file(FRAMES), lambda p: list(scan_frames(p.read_bytes())), "x"),
    "response shard": Reader(frames_file(FRAMES), response_shard, "o.jsonl.rank0.part"),
    "checkpoint manifest": Reader(
        json_file({"files": {"state.json": {"bytes": 3, "sha256": "a"}, "trained.safetensors": {"bytes": 3}}}),
        newest_checkpoint, "step-000001/manifest.json", make_checkpoint,
    ),
    "checkpoint state": Reader(json_file(STATE), checkpoint_state, "step-000001/state.json", make_checkpoint),
    "checkpoint latest": Reader(any_bytes(b"step-000001\n"), newest_checkpoint, "latest", make_checkpoint),
    "checkpoint tensors": Reader(
        any_bytes(b"\x08\0\0\0\0\0\0\0{}      "), newest_checkpoint, "step-000001/trained.safetensors", make_checkpoint
    ),
    "lengths": Reader(jsonl_file([3, {"length": 5}, 8]), lambda p: read_lengths(str(p)), "x.jsonl"),
    "run config.json": Reader(json_file(CONFIG), run_folder, "config.json"),
    "run result.json": Reader(json_file(RESULT), run_folder, "result.json"),
    "report config.json": in_run("config.json", json_file(CONFIG)),
    "report result.json": in_run("result.json", json_file(RESULT)),
    "report metrics.jsonl": in_run("metrics.jsonl", jsonl_file(METRICS)),
    "report samples.jsonl": in_run("samples.jsonl", jsonl_file(SAMPLES)),
    "report scores.jsonl": in_run("scores.jsonl", jsonl_file(SCORES)),
    "report results.json": in_run("../evaluate/results.json", json_file(EVALUATION)),
    "kept batch": Reader(lambda: any_bytes(kept_batch()), read_kept, "x.safetensors"),
}  # fmt: skip
