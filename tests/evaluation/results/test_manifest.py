"""The manifest changes with everything that a result depends on, and with nothing else."""

from __future__ import annotations

import copy

import pytest
import torch

from engine.base.errors import UserError
from engine.models.quantised import Quantised, quantise_trunk
from evaluation.results import manifest
from evaluation.results.manifest import differences, run_manifest, weights_sha256
from evaluation.results.output import Output
from tests.evaluation.made_up import byte_tokenizer
from tests.evaluation.scoring.documents import model_of
from tests.kernels.units import each_way, run_on

ABOUT = {"task": "arc", "lang": "ne", "shots": 25, "prompts_sha256": "p", "protocol": "strict", "data": []}
MANIFEST = {"weights_sha256": "w", "dtype": "float32", "versions": {"torch": "2.13"}}


def test_one_bit_of_one_weight_changes_the_hash():
    model = model_of("bloom")
    before = weights_sha256(model)
    assert weights_sha256(model_of("bloom")) == before
    with torch.no_grad():
        model.final_norm.bias[3] = torch.nextafter(model.final_norm.bias[3], torch.tensor(1.0))
    assert weights_sha256(model) != before
    assert weights_sha256(model_of("bloom").bfloat16()) != before


def test_one_code_of_a_quantised_weight_changes_the_hash():
    model = model_of("llama")
    quantise_trunk(model, 1, "int8")
    before = weights_sha256(model)
    layer = next(m for m in model.modules() if isinstance(m, Quantised))
    layer.codes[3, 5] ^= 1
    assert weights_sha256(model) != before


def test_config_hash_covers_the_fields_that_change_scores():
    """rms_norm_eps changes the scores of the same weights; pad_token_id does not."""
    model = model_of("llama")
    before = run_manifest(model, byte_tokenizer(), "0.1.0")
    model.config = copy.deepcopy(model.config)
    model.config.pad_token_id = 7
    assert differences(before, run_manifest(model, byte_tokenizer(), "0.1.0")) == []
    model.config.rms_norm_eps *= 2
    assert differences(before, run_manifest(model, byte_tokenizer(), "0.1.0")) == ["config_sha256"]


def test_code_hash_covers_the_scoring_code_only(tmp_path, monkeypatch):
    before = manifest.code_sha256()
    assert manifest.code_sha256() == before
    for name in ("kernels/attention/cpu.py", "evaluation/report.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "evaluation" / "results" / "manifest.py"))
    first = manifest.code_sha256()
    (tmp_path / "evaluation" / "report.py").write_text("x = 2\n")
    assert manifest.code_sha256() == first
    (tmp_path / "kernels" / "attention" / "cpu.py").write_text("x = 2\n")
    assert manifest.code_sha256() != first


@each_way
def test_device_says_whether_amx_is_used(unit):
    """AMX rounds sums differently, so records with AMX and without it must not be in one file."""
    with run_on(unit):
        device = manifest.run_manifest(model_of("bloom"), byte_tokenizer(), "0")["device"]
    assert device.endswith(" with AMX") == unit
    assert device.startswith("cpu ")


def test_differences_name_nested_and_missing_entries():
    a = {"x": 1, "versions": {"torch": "1", "numpy": "2"}, "tasks": {"a": 1}}
    b = {"x": 1, "versions": {"torch": "2", "numpy": "2"}, "y": 0, "tasks": {}}
    assert differences(a, b, ignore=("tasks",)) == ["versions.torch", "y"]
    assert differences(a, a) == []


def test_output_accepts_only_tasks_of_the_same_model_and_settings(tmp_path):
    output = Output(tmp_path / "out")
    output.check(MANIFEST, overwrite=False)
    output.start(MANIFEST, overwrite=False)
    output.add_task("arc.ne", ABOUT)
    output.check(MANIFEST, overwrite=False)
    output.check_task("arc.ne", ABOUT)
    output.check_task("mmlu.ne", {**ABOUT, "task": "mmlu"})
    with pytest.raises(UserError, match=r"of another model, code or machine \(versions.torch, weights_sha256 differ\)"):
        output.check({**MANIFEST, "weights_sha256": "v", "versions": {"torch": "3"}}, overwrite=False)
    with pytest.raises(UserError, match=r"of arc.ne with other settings \(shots differ\)"):
        output.check_task("arc.ne", {**ABOUT, "shots": 5})
    output.check({**MANIFEST, "dtype": "bfloat16"}, overwrite=True)
    output.close()
    output.start({**MANIFEST, "dtype": "bfloat16"}, overwrite=True)
    assert output.manifest() == {**MANIFEST, "dtype": "bfloat16", "tasks": {}}


def test_output_refuses_a_folder_with_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds other files: give an empty or a new folder"):
            Output(tmp_path).check(MANIFEST, overwrite)
    with pytest.raises(UserError, match="is a file: give a folder"):
        Output(tmp_path / "thesis.tex").check(MANIFEST, overwrite=False)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json cannot be read as JSON"):
        Output(tmp_path).check(MANIFEST, overwrite=False)
    with pytest.raises(UserError, match="has no results.json: give the --output folder of a finished"):
        Output(tmp_path / "none").results()
