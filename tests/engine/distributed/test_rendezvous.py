"""Rendezvous: tasks of srun become ranks, Slurm host lists are read, the interface to a host is found."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from engine.base.errors import UserError
from engine.distributed.rendezvous import FIRST_PORT, PORTS, first_host, from_slurm, interface_to
from engine.distributed.world import why_lost

TASK = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4",
}  # fmt: skip


def test_srun_task_becomes_a_rank():
    said = from_slurm(TASK)
    port = int(said.pop("MASTER_PORT"))
    assert said == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu07"}
    assert FIRST_PORT <= port < FIRST_PORT + PORTS
    assert from_slurm({**TASK, "SLURM_PROCID": "0"})["MASTER_PORT"] == str(port)  # the same for each task
    assert from_slurm({**TASK, "SLURM_STEP_ID": "1"})["MASTER_PORT"] != str(port)
    chosen = from_slurm({**TASK, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "5"})
    assert (chosen["MASTER_ADDR"], chosen["MASTER_PORT"]) == ("10.0.0.7", "5")


def test_single_processes_stay_single():
    """A batch script sees SLURM_NTASKS of its job but is one process."""
    assert from_slurm({}) == {}
    assert from_slurm({k: v for k, v in TASK.items() if not k.startswith("SLURM_STEP")}) == {}
    assert from_slurm({**TASK, "SLURM_STEP_NUM_TASKS": "1"}) == {}
    assert from_slurm({**TASK, "RANK": "0"}) == {}


@pytest.mark.parametrize(("hosts", "first"), [
    ("node7", "node7"), ("b2,a1", "b2"), ("gpu[03-05,9],login1", "gpu03"), ("n[9,11-12]-ib,x", "n9-ib"),
    ("r[0-1]n[02-3]", "r0n02"), ("cn-1.cluster.org,cn-2", "cn-1.cluster.org"),
])  # fmt: skip
def test_first_host_of_a_list(hosts, first):
    assert first_host(hosts) == first


def test_interface_to_this_machine_is_loopback():
    assert interface_to("127.0.0.1") == interface_to("localhost") == "lo"


def test_unknown_host():
    with pytest.raises(UserError, match=r"MASTER_ADDR no-such-host.invalid is not known here \(.+\): set it"):
        interface_to("no-such-host.invalid")


def test_lost_rank_errors_are_recognised():
    gloo = "[/a/gloo/transport/tcp/pair.cc:5] Connection closed by peer [10.0.0.2]:99. This is typically caused by"
    assert "another rank is gone (Connection closed by peer [10.0.0.2]:99): " in why_lost(RuntimeError(gloo))
    assert "(NCCL error)" in why_lost(dist.DistBackendError("NCCL\nerror"))
    assert "do not reach each other (timed out)" in why_lost(dist.DistNetworkError("timed out"))
    assert why_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
