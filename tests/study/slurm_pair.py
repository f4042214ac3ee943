"""A real Slurm on the loopback interface: munged, slurmctld and slurmd of this user, with all files in one folder.

Debian has them: `apt-get install slurmctld slurmd slurm-client munge`.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=0
ReturnToService=2
KillWait=5
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return the programs of Slurm that are not installed here."""
    return [name for name in PROGRAMS if not _found(name)]


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run the daemons in a folder that only this user may enter; yield the environment that finds them."""
    folder.chmod(0o700)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    host = socket.gethostname().split(".")[0]
    numbers = {"controller": _free_port(), "node": _free_port()}
    text = CONFIGURATION.format(host=host, folder=folder, user=getpass.getuser(), **numbers)
    (folder / "slurm.conf").write_text(text)
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
    munge = [f"--{option}={folder}/munge.{ending}" for option, ending in files.items()]
    daemons = [_start(folder, environment, "munged", "--foreground", "--force", *munge)]
    try:
        until(lambda: (folder / "munge.socket").exists(), folder)
        daemons.append(_start(folder, environment, "slurmctld", "-D", "-c"))
        daemons.append(_start(folder, environment, "slurmd", "-D"))
        until(lambda: told(environment, "sinfo", "--noheader", "--format=%T") == "idle", folder)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(60)


def told(environment: dict[str, str], *command: str) -> str:
    """Return what a command of Slurm writes; empty where it fails."""
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def until(true: object, folder: Path, seconds: float = 60) -> None:
    """Wait for something that the daemons bring about; else raise with what they wrote."""
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        logs = [path.read_text()[-1500:] for path in folder.glob("*.log")]
        assert time.monotonic() < end, "\n".join(["waited in vain", *logs])
        time.sleep(0.1)


def _start(folder: Path, environment: dict[str, str], name: str, *options: str) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.out.log").open("wb") as log:
        return subprocess.Popen(
            [_found(name), *options], env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT
        )


def _found(name: str) -> str:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin") or ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
