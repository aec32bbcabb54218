"""Run the embedded chain on two hosts and make one fail: `python -m tests.reliability.two_hosts FOLDER`.

The hosts are two network namespaces of this machine, with an address each and a cable (a veth pair) between them; gloo
runs over TCP. Needs Linux, iproute2 and root. Without root, a user namespace may do, where the system allows it:
unshare --user --map-root-user --mount sh -c 'mount -t tmpfs none /run; python -m tests.reliability.two_hosts FOLDER'
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

CHAIN = Path(__file__).with_name("chain.py")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = "29571"  # free: no one else uses ports in our namespaces
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
DEEPSPEED = (sys.executable, "-m", "deepspeed.launcher.runner")
PATIENCE_S = 240
ENDS_WITHIN_S = 60
OURS = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class TwoHosts:
    """Context manager for the two namespaces. OSError if the system does not allow them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names = [f"host{i}-{os.getpid()}" for i in range(2)]
        self.running: list[subprocess.Popen[bytes]] = []
        self.logs: list[Path] = []

    def __enter__(self) -> TwoHosts:
        first, second = self.names
        try:
            for name in self.names:
                _ip("netns", "add", name)
            _ip("-n", first, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", second)
            for name, address in zip(self.names, ADDRESSES):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
                for device in ("lo", "cable"):
                    _ip("-n", name, "link", "set", device, "up")
        except OSError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for host, name in enumerate(self.names):
            if Path("/run/netns", name).exists():
                self.kill(host)
                _ip("netns", "delete", name)
        for process in self.running:
            process.wait()

    def start(self, name: str, argv_of: Callable[[int], Sequence[str]], **environment: Sequence[str]) -> None:
        """Start a program on each host. name: prefix of the logs. environment: variable -> one value per host."""
        self.logs = [self.folder / f"{name}-host{host}.log" for host in range(2)]
        self.running = []
        for host, log in enumerate(self.logs):
            own = {key: values[host] for key, values in environment.items()}
            with open(log, "wb") as file:
                self.running.append(subprocess.Popen(
                    ["ip", "netns", "exec", self.names[host], *argv_of(host)],
                    stdout=file, stderr=file, env={**os.environ, **OURS, **own},
                ))  # fmt: skip

    def wait_for(self, file: Path) -> None:
        """Wait until a file exists. AssertionError if a program ends before."""
        _until(lambda: file.exists() or any(p.poll() is not None for p in self.running), file.name)
        assert all(p.poll() is None for p in self.running), self.log_ends()

    def ended(self, hosts: Sequence[int], within_s: float) -> float:
        """Wait until the programs of these hosts have ended. Return the seconds it took."""
        began = time.monotonic()
        _until(lambda: all(self.running[host].poll() is not None for host in hosts), self.log_ends, within_s)
        return time.monotonic() - began

    def kill(self, host: int) -> None:
        """Send SIGKILL to every process of a host."""
        pids = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True, check=True)
        if pids.stdout.split():
            subprocess.run(["kill", "-9", *pids.stdout.split()], stderr=subprocess.DEVNULL, check=False)

    def cable(self, state: str) -> None:
        """Set the cable "down" or "up". While it is down, packets are lost without an error."""
        _ip("-n", self.names[0], "link", "set", "cable", state)

    def errors(self) -> list[list[str]]:
        """Return the `error: ` lines of each host's program."""
        return [[x for x in log.read_text().splitlines() if x.startswith("error: ")] for log in self.logs]

    def log_ends(self) -> str:
        """Return the last 3,000 characters of each log."""
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in self.logs)


def interrupted_run(hosts: TwoHosts, runs: Path) -> dict[str, tuple[float, list[list[str]]]]:
    """Run the chain into `runs` with three launchers: a host dies in SFT, the cable is pulled in PPO, the rest runs.

    Return for each fault the seconds until the survivors ended, and the error lines of both hosts.
    """
    flags = (str(CHAIN), "--runs", str(runs))
    seen = {}

    def torchrun(host: int) -> Sequence[str]:
        where = ("--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(host))
        return (*TORCHRUN, *where, "--master-addr", ADDRESSES[0], "--master-port", PORT, *flags)

    hosts.start("torchrun", torchrun)
    hosts.wait_for(runs / "ne" / "sft" / "checkpoints" / "latest")
    hosts.kill(1)
    seen["killed"] = hosts.ended([0], ENDS_WITHIN_S), hosts.errors()

    hostfile = hosts.folder / "hostfile"
    hostfile.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))

    def deepspeed(host: int) -> Sequence[str]:
        where = ("--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(host))
        return (*DEEPSPEED, *where, "--master_addr", ADDRESSES[0], "--master_port", PORT, *flags, "--resume")

    hosts.start("deepspeed", deepspeed)
    hosts.wait_for(runs / "ne" / "ppo" / "checkpoints" / "latest")
    hosts.cable("down")
    seen["cut off"] = hosts.ended([0, 1], ENDS_WITHIN_S), hosts.errors()
    hosts.cable("up")

    task = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
    task["SLURM_STEP_NODELIST"] = "10.77.0.[1-2]"
    each = {name: (value, value) for name, value in task.items()}
    hosts.start("srun", lambda host: (sys.executable, *flags, "--resume"), SLURM_PROCID=("0", "1"), **each)
    hosts.ended([0, 1], PATIENCE_S)
    assert [p.returncode for p in hosts.running] == [0, 0], hosts.log_ends()
    return seen


def on_one_host(runs: Path, ranks: int) -> None:
    """Run the chain on this machine without namespaces and interruptions."""
    argv = (*TORCHRUN, "--standalone", "--nproc-per-node", str(ranks), str(CHAIN), "--runs", str(runs))
    done = subprocess.run(argv, env={**os.environ, **OURS}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.returncode, f"ip {' '.join(words)}: {done.stderr.strip()}")


def _until(is_done: Callable[[], bool], message: str | Callable[[], str], within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not is_done():
        assert time.monotonic() < deadline, message() if callable(message) else message
        time.sleep(0.05)


def main(folder: Path) -> Mapping[str, tuple[float, list[list[str]]]]:
    """Run everything into a new folder: `two` (two hosts), `one` (two ranks on one host), `alone` (one rank)."""
    folder.mkdir(parents=True)
    with TwoHosts(folder) as hosts:
        seen = interrupted_run(hosts, folder / "two")
    on_one_host(folder / "one", 2)
    on_one_host(folder / "alone", 1)
    return seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder for the runs and their logs")
    for fault, (seconds, lines) in main(parser.parse_args().folder.resolve()).items():
        print(f"{fault}: ended after {seconds:.0f} s")
        for host, errors in enumerate(lines):
            print(f"  host {host + 1}: {'; '.join(errors) or 'no error line'}")
