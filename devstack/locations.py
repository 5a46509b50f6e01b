"""Where the local services, their data and what was fetched for them are kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devstack.errors import DevstackError

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"

# A folder bears this file when it was empty (or absent) at first use: only such a folder is ever removed whole.
MARKER = "local-services"
MARKER_TEXT = "Local services of Tollbook: their data, logs and settings. `make clean` removes this folder.\n"


@dataclass(frozen=True, slots=True)
class Locations:
    """`home`: data, logs and settings of one set of services. `cache`: fetched and built things, for all clones."""

    home: Path
    cache: Path

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def settings(self) -> Path:
        """Ports and folders that were chosen once (settings.py)."""
        return self.home / "services.json"


def locations(home: str | Path | None = None, environ: Mapping[str, str] | None = None) -> Locations:
    """The folders in use: `home`, TOLLBOOK_HOME or `.tollbook` in the repository; TOLLBOOK_CACHE or ~/.cache/tollbook.

    A relative path in the environment is taken from the repository, so that every command means the same folder
    wherever it is started.
    """
    environ = os.environ if environ is None else environ
    chosen = Path(home or environ.get("TOLLBOOK_HOME") or ".tollbook").expanduser()
    cache = environ.get("TOLLBOOK_CACHE") or str(Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "tollbook")
    return Locations(_absolute(chosen), _absolute(Path(cache).expanduser()))


def prepare_home(home: Path) -> None:
    """Make `home` ready for use. Refuses a folder that holds other things, or that cannot be written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        present = os.listdir(home)  # once: another process may be at the same point
        if MARKER not in present:
            if present and not _ours_by_place(home):
                raise DevstackError(
                    f"{home} holds other things, and `make clean` would have to remove them.\n"
                    "Set TOLLBOOK_HOME to a new or empty folder."
                )
            (home / MARKER).write_text(MARKER_TEXT)
        (home / "log").mkdir(exist_ok=True)
        check_writable(home)
    except OSError as error:
        raise DevstackError(
            f"cannot use {home} for local services: {error.strerror or error}.\n"
            "Set TOLLBOOK_HOME to a folder that you can write to (or mend its owner with chown)."
        ) from None


def check_writable(folder: Path) -> None:
    """Write and remove a small file in `folder`; raises OSError where that fails (permissions, full disk)."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        probe.write_bytes(b"\0" * 4096)
    finally:
        probe.unlink(missing_ok=True)


def _ours_by_place(home: Path) -> bool:
    return home == REPOSITORY / ".tollbook" or home.is_relative_to(REPOSITORY / "build")


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(REPOSITORY / path))
