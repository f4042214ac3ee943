"""Names of other people's: registered once, refused twice, found in other processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from syncnorm import registry
from syncnorm.errors import UserError
from syncnorm.registry import Registry, Source, environment_of_plugins


@pytest.fixture
def things(monkeypatch: pytest.MonkeyPatch) -> Registry[int]:
    monkeypatch.setattr(registry, "REGISTRIES", {})
    return Registry("thing", {"one": 1})


def test_a_name_is_registered_with_its_source(things: Registry[int]) -> None:
    things.add("two", 2)
    assert dict(things) == {"one": 1, "two": 2}
    assert things.source("one") is None
    assert things.source("two") == Source(__name__, __file__)
    things.add("two", 3)  # the same file: imported again, or edited
    assert things["two"] == 3


@pytest.mark.parametrize("name", ["one", "", "a b", "a,b", "a:b", 3])
def test_a_name_that_is_taken_or_none_is_refused(things: Registry[int], name: str) -> None:
    with pytest.raises(UserError, match="thing"):
        things.add(name, 2)


def test_an_unknown_name_says_what_is_known(things: Registry[int]) -> None:
    with pytest.raises(UserError, match="unknown thing 'onne': did you mean 'one'"):
        things["onne"]


PROGRAM = """
import sys
from syncnorm.registry import REGISTRIES, Registry
things = Registry("thing", {"one": 1})
sys.modules["here"] = sys.modules["__main__"]
print(things["two"], sorted(things))
"""


def test_another_process_knows_what_this_one_registered(things: Registry[int], tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text("from syncnorm.registry import REGISTRIES\nREGISTRIES['thing'].add('two', 2)\n")
    registry.import_source(Source("plugin", str(plugin)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment_of_plugins(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "2 ['one', 'two']\n"


SCRIPT = """
import subprocess, sys
from syncnorm.registry import REGISTRIES, Registry, environment_of_plugins
from .beside import NUMBER

things = REGISTRIES.get("thing") or Registry("thing", {"one": 1})
things.add("two", NUMBER)
if __name__ == "__main__":
    subprocess.run([sys.executable, "-c", sys.argv[1]], env=environment_of_plugins(), check=True)
"""


def test_a_script_of_a_package_is_found_by_its_name(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "beside.py").write_text("NUMBER = 2")
    (package / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", "package.script", PROGRAM]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("2 ['one', 'two']\n", "")


@pytest.mark.parametrize("file", [{}, {"__file__": "<stdin>"}])
def test_what_no_file_holds_cannot_travel(things: Registry[int], file: dict[str, str]) -> None:
    exec("things.add('two', 2)", {"things": things, "__name__": "__main__", **file})
    with pytest.raises(UserError, match="which is no file"):
        environment_of_plugins()


def test_a_broken_plugin_is_a_warning_and_its_names_are_unknown(tmp_path: Path) -> None:
    folder = tmp_path / "broken-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[syncnorm.plugins]\nbroken = broken_plugin\nfine = fine_plugin:register\n"
    )
    (tmp_path / "broken_plugin.py").write_text("import no_such_thing\n")
    fine = "def register():\n    from syncnorm.registry import REGISTRIES\n    REGISTRIES['thing'].add('two', 2)\n"
    (tmp_path / "fine_plugin.py").write_text(fine)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "2 ['one', 'two']\n"
    assert "plugin 'broken' of package broken cannot be loaded: ModuleNotFoundError" in done.stderr


def test_an_environment_that_no_parent_has_made_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("plug", '[{"file": "plug.py"}]', "7"):
        monkeypatch.setenv("SYNCNORM_PLUGINS", text)
        monkeypatch.setitem(registry._state, "loaded", False)
        with pytest.raises(UserError, match="SYNCNORM_PLUGINS is set by syncnorm for its own processes"):
            registry.load_plugins()
