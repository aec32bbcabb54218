"""How ranks find each other: environment variables (also for srun), and the network interface between hosts."""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from collections.abc import Mapping

from engine.base.errors import UserError

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
# Each step of a job gets its own port below the ephemeral range (32,768 and above).
FIRST_PORT, PORTS = 12_000, 20_000


def from_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a launcher would set, for a task of `srun`; {} elsewhere, or if RANK is set.

    Only srun sets SLURM_STEP_NUM_TASKS: a batch script itself is one rank. The first task of a step runs on the first
    host of its list. MASTER_ADDR and MASTER_PORT are kept if given.
    """
    if "RANK" in environ or int(environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return {}
    step = int(environ["SLURM_JOB_ID"]) * 31 + int(environ.get("SLURM_STEP_ID", "0"))
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "MASTER_ADDR": environ.get("MASTER_ADDR") or first_host(environ["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": environ.get("MASTER_PORT") or str(FIRST_PORT + step % PORTS),
    }


def first_host(hosts: str) -> str:
    """Return the first host of a Slurm host list: gpu03 for `gpu[03-05,9],login1`."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", hosts)[0]
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)


def interface_to(host: str) -> str | None:
    """Return the network interface of packets to `host` (IPv4); None if unknown.

    gloo would use the one that the machine's own name resolves to, often the loopback. UserError for an unknown host.
    """
    try:
        target = socket.getaddrinfo(host, 9, socket.AF_INET, socket.SOCK_DGRAM)[0][4]
    except socket.gaierror as error:
        raise UserError(
            f"MASTER_ADDR {host} is not known here ({error.strerror}): set it to an address that all hosts reach"
        ) from error
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(target)  # sends nothing
        except OSError:
            return None
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(found[20:24]) == own:
                return name
    return None
