"""Checkpoints on disk: cut or altered anywhere they are rejected by name, and a save that fails leaves the others."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.run.checkpoint_files as files
from engine.base.errors import UserError

STATE = {
    "settings": {}, "identity": {}, "versions": {}, "ranks": 1, "zero_stage": 0, "files": {}, "seconds": 1.0,
    "trainer": {},
}  # fmt: skip
NAMES = (files.STATE, files.TRAINED, files.ROLLOUT, files.MANIFEST)


def write(folder, step, keep=5, size=40):
    x = torch.arange(size, dtype=torch.float32) + step
    tensors = {files.TRAINED: {"weight:a": x, "step": torch.tensor(1.0)}, files.ROLLOUT: {"logprob_T": x.bfloat16()}}
    files.write(folder, step, {**STATE, "step": step}, tensors, keep)


def newest(folder):
    checkpoint, rejected = files.newest_whole(folder)
    return checkpoint and checkpoint.state["step"], rejected


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    for step in (1, 2):
        write(folder, step)
    return folder


def test_write_and_read_back(tmp_path):
    assert newest(tmp_path / "absent") == (None, [])
    for step in (5, 90, 1_000_000):
        write(tmp_path, step, keep=2)
    assert newest(tmp_path) == (1_000_000, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000090", "step-1000000"]
    checkpoint, _ = files.newest_whole(tmp_path)
    tensors = checkpoint.tensors(files.TRAINED)
    assert torch.equal(tensors["weight:a"], torch.arange(40) + 1e6)
    assert checkpoint.tensors(files.ROLLOUT)["logprob_T"].dtype == torch.bfloat16
    assert checkpoint.tensors("absent.safetensors") is None
    # No pickle: the first bytes of a safetensors file are the length of its JSON header.
    header = (checkpoint.path / files.TRAINED).read_bytes()
    assert set(json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])) >= {"weight:a", "step"}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(NAMES), st.floats(0, 1, exclude_max=True), st.integers(0, 8))
def test_truncation_and_bit_flips_are_found(two, name, where, bit):
    """Bit 8 stands for a cut. Whatever happens to the newest, the one before is used, and the reason names the file."""
    path = two / "step-000002" / name
    whole = path.read_bytes()
    at = int(where * len(whole))
    damaged = whole[:at] if bit == 8 else whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    path.write_bytes(damaged)
    try:
        step, rejected = newest(two)
    finally:
        path.write_bytes(whole)
    assert step == 1
    assert len(rejected) == 1 and rejected[0].startswith("step-000002: ")
    assert name in rejected[0] or name == files.MANIFEST
    assert newest(two) == (2, [])


@pytest.mark.parametrize(("name", "text", "reason"), [
    (files.MANIFEST, "[]", "damaged"),
    (files.MANIFEST, '{"files": ["state.json", "trained.safetensors"]}', "damaged"),
    (files.MANIFEST, '{"files": {"state.json": 1, "trained.safetensors": 2}}', "damaged"),
    (files.MANIFEST, '{"files": {"../step-000001/state.json": {}}}', "names ../step-000001/state.json"),
    (files.MANIFEST, '{"files": {}}', "names nothing"),
    (files.MANIFEST, "[" * 100_000, "damaged"),
    (files.MANIFEST, None, "manifest.json is missing"),
    (files.ROLLOUT, None, "rollout.safetensors is missing"),
    (files.STATE, "{}", "state.json lacks step, settings"),
])  # fmt: skip
def test_invalid_checkpoints_are_rejected_with_a_reason(two, tmp_path, name, text, reason):
    shutil.copytree(two, tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "step-000002"
    (path / name).unlink()
    if text is not None:
        (path / name).write_text(text)
    if name == files.STATE:
        manifest = json.loads((path / files.MANIFEST).read_text())
        manifest["files"][name] = {"bytes": len(text), "sha256": files.sha256(path / name)}
        (path / files.MANIFEST).write_text(json.dumps(manifest))
    step, rejected = newest(tmp_path / "checkpoints")
    assert step == 1
    assert reason in rejected[0]


def test_latest_pointing_nowhere(two, tmp_path):
    shutil.copytree(two, tmp_path / "a")
    (tmp_path / "a" / files.LATEST).write_text("step-000009\n")
    assert newest(tmp_path / "a") == (2, ["latest: it names 'step-000009', which is not there"])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / files.LATEST).write_bytes(b"\xff\xfe")
    step, rejected = newest(tmp_path / "b")
    assert step is None
    assert len(rejected) == 1


def test_foreign_files_are_left_alone(two, tmp_path):
    shutil.copytree(two, tmp_path / "a")
    (tmp_path / "a" / "step-x").mkdir()
    (tmp_path / "a" / "notes").mkdir()
    assert newest(tmp_path / "a") == (2, [])
    write(tmp_path / "a", 3, keep=1)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["latest", "notes", "step-000003", "step-x"]


@pytest.mark.parametrize("limit", [0, 200, 3_000, 30_000])
def test_disk_fills_up_while_writing(tmp_path, limit):
    """The kernel refuses to make a file larger: one line, nothing left of the new one, the old one whole."""
    write(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match=r"step-000002 cannot be written \(.+\): fix that") as error:
            write(tmp_path, 2, size=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    assert newest(tmp_path) == (1, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000001"]
    write(tmp_path, 2)
    assert newest(tmp_path) == (2, [])


def test_missing_room_is_found_before_writing(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": files.SPARE_BYTES + 243}))
    with pytest.raises(UserError, match=r"step-000002 needs 0.000 GB, .* free some, or lower --keep"):
        write(tmp_path, 2)
    assert newest(tmp_path) == (1, [])
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": files.SPARE_BYTES + 244}))
    write(tmp_path, 2)


def test_folder_is_a_file(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(UserError, match=r"step-000001 cannot be written"):
        write(tmp_path / "checkpoints", 1)


def test_folder_is_read_only(tmp_path, monkeypatch):
    """Root may write everywhere, so root becomes nobody; by a relative path, which needs no rights above the folder."""
    folder, user = Path("checkpoints"), os.geteuid()
    monkeypatch.chdir(tmp_path)
    write(folder, 1)
    folder.chmod(0o555)
    tmp_path.chmod(0o755)
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"step-000002 cannot be written \(Permission denied\)"):
            write(folder, 2)
        assert newest(folder) == (1, [])  # others may read it, as the umask says
    finally:
        os.seteuid(user)
        folder.chmod(0o700)
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-000001"]


def test_unreadable_checkpoint_is_rejected_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, user = Path("checkpoints"), os.geteuid()
    for step in (1, 2):
        write(folder, step)
    tmp_path.chmod(0o755)
    (folder / "step-000002" / files.TRAINED).chmod(0)
    if user == 0:
        os.seteuid(65534)
    try:
        assert newest(folder) == (1, ["step-000002: it cannot be read (Permission denied)"])
    finally:
        os.seteuid(user)


def test_stopped_between_the_rename_and_latest(tmp_path, monkeypatch):
    """The new one counts although `latest` names the old one; leftovers go with the next save."""
    write(tmp_path, 1)

    def stop(folder, name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files, "_point_latest", stop)
        write(tmp_path, 2)
    assert (tmp_path / files.LATEST).read_text() == "step-000001\n"
    assert newest(tmp_path) == (2, [])
    (tmp_path / ".part-step-000007").mkdir()
    (tmp_path / ".part-step-000007" / "state.json").write_text("{")
    write(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000001", "step-000002", "step-000003"]


def test_rejected_checkpoint_is_replaced_and_counts_for_nothing(tmp_path):
    for step in (1, 2, 4):
        write(tmp_path, step)
    for step in (2, 4):
        (tmp_path / files.name_of(step) / files.STATE).unlink()
    assert newest(tmp_path)[0] == 1
    write(tmp_path, 2, keep=1)
    assert newest(tmp_path) == (2, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000002"]
