"""The project's virtual environment: exactly what requirements.lock names, and the project itself as editable."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from devstack.errors import DevstackError
from devstack.install.tools import ToolLog, run
from devstack.locations import REPOSITORY, VENV

STAMP = VENV / "tollbook-stamp"
LOCK = REPOSITORY / "requirements.lock"
DESCRIPTIONS = (REPOSITORY / "pyproject.toml", REPOSITORY / "serving_adapter/pyproject.toml")


def environment_right() -> bool:
    """Whether the environment is what the lock asks for, and no file of any package is missing or cut short."""
    try:
        return STAMP.read_text() == _stamp() + _installed() and whole(VENV)
    except OSError:
        return False


def make_environment(log: ToolLog) -> None:
    """Bring the environment to what the lock asks for; one that is broken is made anew."""
    if VENV.exists() and not (_python_runs() and whole(VENV)):
        log.write(f"{VENV} is broken (an interrupted installation?): made anew")
        _remove(VENV)
    STAMP.unlink(missing_ok=True)
    if not VENV.exists():
        run(log, [sys.executable, "-m", "venv", str(VENV)])
    python = str(VENV / "bin/python")
    if not (VENV / "bin/uv").exists():
        pinned = VENV / "uv.lock"
        pinned.write_text(_lock_entry("uv"))
        run(log, [python, "-m", "pip", "install", "-q", "--require-hashes", "-r", str(pinned)])
    uv = [str(VENV / "bin/uv"), "pip"]
    environ = {"VIRTUAL_ENV": str(VENV), "UV_NO_PROGRESS": "1", **machine_settings()}
    run(log, [*uv, "sync", "--require-hashes", str(LOCK)], environ=environ, cwd=REPOSITORY)
    editable = ["--no-deps", "--no-build-isolation", "-e", "./serving_adapter", "-e", "."]
    run(log, [*uv, "install", *editable], environ=environ, cwd=REPOSITORY)
    unfinished = STAMP.with_suffix(".unfinished")
    unfinished.write_text(_stamp() + _installed())
    os.replace(unfinished, STAMP)


def _stamp() -> str:
    digest = hashlib.sha256(LOCK.read_bytes())
    for path in DESCRIPTIONS:
        tables = tomllib.loads(path.read_text())
        # The tables that say what is installed; settings of linters and the like do not
        decisive = [tables.get("build-system"), tables.get("project"), tables.get("tool", {}).get("hatch")]
        digest.update(json.dumps(decisive, sort_keys=True).encode())
    return f"{digest.hexdigest()} {sys.version_info.major}.{sys.version_info.minor} {VENV}\n"


def _installed() -> str:
    """The installed packages, by their folders' names."""
    return "".join(f"{path.name}\n" for path in sorted(VENV.glob("lib/python*/site-packages/*.dist-info")))


def _lock_entry(package: str) -> str:
    found = re.search(rf"^{package}==(?:.*\\\n)*.*\n", LOCK.read_text(), re.MULTILINE)
    if found is None:
        raise DevstackError(f"requirements.lock does not name {package}.")
    return found[0]


def _python_runs() -> bool:
    try:
        asked = subprocess.run(
            [VENV / "bin/python", "-c", "import sys, pip; print(sys.version_info[:2], sys.prefix)"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.stdout.strip() == f"{tuple(sys.version_info[:2])} {VENV}"


def whole(venv: Path) -> bool:
    """Whether every file that the installed packages' RECORDs name is there, and none is cut short."""
    records = list(venv.glob("lib/python*/site-packages/*.dist-info/RECORD"))
    infos = list(venv.glob("lib/python*/site-packages/*.dist-info"))
    return bool(records) and len(records) == len(infos) and all(_files_there(record) for record in records)


def _files_there(record: Path) -> bool:
    site = str(record.parent.parent)
    for name, size in _recorded(record):
        try:
            found = os.stat(os.path.join(site, name))
        except OSError:
            return False
        # Larger is left alone: machines add certificates of their own to certifi's file
        if size and found.st_size < int(size):
            return False
    return True


def _recorded(record: Path) -> Iterator[tuple[str, str]]:
    with record.open(newline="") as lines:
        for row in csv.reader(lines):
            if len(row) == 3 and not row[0].endswith(".pyc"):
                yield row[0], row[2]


def _remove(folder: Path) -> None:
    # Renamed first: a removal that is interrupted must not look like an environment
    gone = folder.with_name(f"{folder.name}-removing")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def machine_settings() -> dict[str, str]:
    """What this machine tells pip about its package index, in uv's words (uv does not read pip's settings).

    Where uv has settings of its own, they win. Passed by environment: an address may hold a password.
    """
    settings = {"UV_SYSTEM_CERTS": "true"}
    listed = subprocess.run(
        [VENV / "bin/python", "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    pip: dict[str, str] = {}
    for line in listed.splitlines():  # later lines (`:env:`) win over earlier ones, as in pip
        name, _, value = line.partition("=")
        pip[name.rpartition(".")[2]] = " ".join(shlex.split(value))
    if "index-url" in pip:
        settings["UV_DEFAULT_INDEX"] = pip["index-url"]
    if "extra-index-url" in pip:
        settings["UV_INDEX"] = " ".join(pip["extra-index-url"].split())
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip's; safe here, since every file's hash is in the lock
    if "find-links" in pip:
        # uv stops at a folder that does not exist, pip does not
        places = [place for place in pip["find-links"].split() if "://" in place or Path(place).is_dir()]
        if places:
            settings["UV_FIND_LINKS"] = ",".join(places)
    if "trusted-host" in pip:
        settings["UV_INSECURE_HOST"] = " ".join(pip["trusted-host"].split())
    if "cert" in pip:
        settings["SSL_CERT_FILE"] = pip["cert"]
    if "proxy" in pip:
        settings["ALL_PROXY"] = pip["proxy"]
    if timeout := pip.get("timeout") or pip.get("default-timeout"):
        settings["UV_HTTP_TIMEOUT"] = timeout
    mine = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL", "UV_SYSTEM_CERTS": "UV_NATIVE_TLS"}
    return {n: v for n, v in settings.items() if n not in os.environ and mine.get(n, n) not in os.environ}
