"""vLLM on the CPU, in an environment of its own below TOLLBOOK_CACHE: it pins far more than this project should.

What `requirements.lock` beside this file names, and nothing else; made once, and anew when the lock is another.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Final

from hatchling.builders.wheel import WheelBuilder

from devstack.errors import DevstackError
from devstack.install.debian import AptInstaller, as_root, has_apt
from devstack.install.python_environment import machine_settings
from devstack.install.tools import ToolLog, run
from devstack.locations import VENV, locations
from devstack.locking import exclusive
from devstack.progress import Progress

HERE: Final = Path(__file__).parent
REPOSITORY: Final = HERE.parents[1]
LOCK: Final = HERE / "requirements.lock"
MAKE_MODEL: Final = HERE / "make_model.py"
NEEDED_BYTES: Final = 10 * 2**30
"""While it is fetched and unpacked; 6 GB remain."""
QUIET: Final = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip
"""No network, one thread, one GiB of cache."""


def folder() -> Path:
    """Where it is kept, with the model; `TOLLBOOK_VLLM` names another."""
    return Path(os.environ.get("TOLLBOOK_VLLM") or locations().cache / "vllm-0.32.0")


def prepare() -> Path:
    """Install and make what is missing, and say so; the environment's Python. Raises DevstackError."""
    home = folder()
    python = home / "env" / "bin" / "python"
    if not (_is(home / "env.stamp", _wanted()) and _is(home / "model.stamp", _model())):
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DevstackError(f"{home}: {error.strerror}. Set TOLLBOOK_CACHE to a folder of yours.") from None
        progress = Progress()
        with exclusive(home, lambda: progress.say("waiting for another installation of vLLM to end...")):
            log = ToolLog(home / f"install-{time.strftime('%Y%m%dT%H%M%S')}.log")
            if not _is(home / "env.stamp", _wanted()):
                _install(home, python, log, progress)
            if not _is(home / "model.stamp", _model()):
                with progress.step("A tiny random model with LoRA adapters"):
                    shutil.rmtree(home / "model", ignore_errors=True)
                    run(log, [str(python), str(MAKE_MODEL), str(home / "model")], environ=QUIET)
                (home / "model.stamp").write_text(_model())
    return python


@functools.cache
def adapter_site() -> Path:
    """The adapter as its wheel installs it, for the servers that this process starts. Raises DevstackError."""
    python = prepare()
    build = REPOSITORY / "build"
    build.mkdir(exist_ok=True)
    site = Path(tempfile.mkdtemp(dir=build, prefix="adapter-"))
    atexit.register(shutil.rmtree, site, ignore_errors=True)
    log = ToolLog(site / "install.log")
    wheel = next(WheelBuilder(str(REPOSITORY / "serving_adapter")).build(directory=str(site), versions=["standard"]))
    uv, target = str(VENV / "bin/uv"), site / "site"
    run(log, [uv, "pip", "install", "--no-deps", "--python", str(python), "--target", str(target), wheel])
    check = "import serving_adapter as a, serving_adapter.serving.middleware, pathlib; print(pathlib.Path(a.__file__))"
    found = run(log, [str(python), "-c", check], environ={"PYTHONPATH": str(target)}, cwd=site)
    if not Path(found.strip()).is_relative_to(target):
        raise DevstackError(f"the adapter was imported from {found.strip()}, not from its wheel in {target}")
    return target


def _install(home: Path, python: Path, log: ToolLog, progress: Progress) -> None:
    free = shutil.disk_usage(home).free
    if not python.exists() and free < NEEDED_BYTES:
        raise DevstackError(
            f"vLLM needs {NEEDED_BYTES >> 30} GiB at {home} while it is installed, and {free >> 30} GiB are free.\n"
            "Set TOLLBOOK_CACHE or TOLLBOOK_VLLM to a folder with more room."
        )
    missing = _missing_packages()
    if missing:
        if not has_apt() or as_root() is None:
            raise DevstackError(
                f"vLLM compiles when it first samples, and {' '.join(missing)} are missing: install them as root."
            )
        with progress.step(f"System packages {' '.join(missing)}"):
            AptInstaller(log).install(missing)
    (home / "env.stamp").unlink(missing_ok=True)
    uv, fetched = str(VENV / "bin/uv"), home / "fetched"
    # Files are linked from `fetched` into the environment; what an interrupted installation got is there the next time
    environ = {"UV_NO_PROGRESS": "1", "UV_CACHE_DIR": str(fetched), "VIRTUAL_ENV": str(home / "env")}
    environ |= machine_settings()
    with progress.step(f"vLLM for the CPU (6 GB) in {home / 'env'}"):
        run(log, [uv, "venv", "-q", "--allow-existing", "--python", sys.executable, str(home / "env")], environ=environ)
        run(log, [uv, "pip", "sync", "--require-hashes", str(LOCK)], environ=environ, cwd=REPOSITORY)
    shutil.rmtree(fetched, ignore_errors=True)
    (home / "env.stamp").write_text(_wanted())


def _missing_packages() -> list[str]:
    """What vLLM needs of the system: a compiler with Python's headers, for the sampler; libnuma."""
    missing = [] if shutil.which("g++") else ["g++"]
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append("python3-dev")
    if not any(Path("/usr/lib").glob("*/libnuma.so.1")):
        missing.append("libnuma1")
    return missing


def _wanted() -> str:
    return f"{hashlib.sha256(LOCK.read_bytes()).hexdigest()} {sys.version_info.major}.{sys.version_info.minor}\n"


def _model() -> str:
    return hashlib.sha256(MAKE_MODEL.read_bytes()).hexdigest() + "\n"


def _is(stamp: Path, text: str) -> bool:
    try:
        return stamp.read_text() == text
    except OSError:
        return False
