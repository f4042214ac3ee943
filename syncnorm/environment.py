"""The environment of a run: machine and versions, for its row."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def environment() -> dict[str, str]:
    """Return versions, processor, cores, device, platform and the package's git commit of this process.

    The versions are those of Python, of what trains, and of the packages that the embedded data are drawn with. A
    package that is not installed has an empty one.

    `cores` counts the cores that this process may use. `device` is the CUDA device's name, or "cpu" if there is none
    or torch is not imported. `commit` is empty if the package is not a git checkout, and ends in "-dirty" if files
    differ from the commit.
    """
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": version_of("torch"),
        "lightning": version_of("lightning"),
        "numpy": version_of("numpy"),
        "pillow": version_of("pillow"),
        "matplotlib": version_of("matplotlib"),
        "scikit-learn": version_of("scikit-learn"),
        "cpu": _cpu(),
        "cores": str(cores()),
        "device": torch.cuda.get_device_name() if torch and cuda else "cpu",
        "platform": platform.platform(),
        "commit": _commit(Path(__file__).parent),
    }


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def world_size() -> int | None:
    """Return the number of ranks of the torchrun that started this process; None without one."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return None


def rank() -> int:
    """Return this process's rank, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


NOTE = "SYNCNORM_EXIT_FILE"


def note_exit(code: int) -> None:
    """Write an exit code to the file that the variable SYNCNORM_EXIT_FILE names, if there is one.

    torchrun ends with 1 whatever its ranks end with. `launch/supervise.sh` reads here whether it was a mistake.
    """
    if path := os.environ.get(NOTE):
        Path(path).write_text(f"{code}\n")


def cuda_devices() -> list[str]:
    """Return the CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them; without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device for device in chosen.split(",") if device]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def version_of(package: str) -> str:
    """Return the version of an installed package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit(folder: Path) -> str:
    """Return the commit of the checkout that tracks `folder`; empty if none does."""
    tracked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py"]
    describe = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        subprocess.run(tracked, check=True, capture_output=True)
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
