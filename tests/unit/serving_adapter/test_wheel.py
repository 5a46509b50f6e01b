"""What `pip install tollbook-adapter` puts into an engine's environment, and what it says without its extras."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

SOURCES = Path(__file__).parents[3] / "serving_adapter"
ALONE = """
import sys

MISSING = {"jwt", "uvicorn", "httptools", "tokenizers", "uvloop", "streams", "billing", "console"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.path.insert(0, sys.argv[1])
import serving_adapter
from serving_adapter.command_line import main
from serving_adapter.isolation.token_settings import TokenSettings
from serving_adapter.serving.replica import _tokens
from serving_adapter.settings import SettingsError

assert serving_adapter.__file__.startswith(sys.argv[1])
assert serving_adapter.Middleware
assert main(["spool", "--spool", sys.argv[1]]) == 0
assert main(["proxy"]) == 1
try:
    _tokens(TokenSettings(jwks="x", algorithm="RS256", issuer="i", audience="a"))
except SettingsError as error:
    print(error, file=sys.stderr)
"""


def test_the_wheel_works_by_itself_and_says_which_extra_is_missing(tmp_path: Path) -> None:
    wheel = Path(next(WheelBuilder(str(SOURCES)).build(directory=str(tmp_path), versions=["standard"])))
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "site")
        names = set(packed.namelist())
    ours = {f"serving_adapter/{path.relative_to(SOURCES)}" for path in SOURCES.rglob("*.py")}
    assert {*ours, "serving_adapter/py.typed"} <= names
    (license,) = (name for name in names if name.endswith(".dist-info/licenses/LICENSE"))
    assert (tmp_path / "site" / license).read_text() == (SOURCES.parent / "LICENSE").read_text()
    (points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "tollbook-adapter = serving_adapter.command_line:main" in (tmp_path / "site" / points).read_text()
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "site")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "the proxy needs uvicorn: pip install 'tollbook-adapter[proxy]'" in ran.stderr
    assert "[tokens] needs jwt: pip install 'tollbook-adapter[jwt]'" in ran.stderr
