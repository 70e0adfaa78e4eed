"""The scripts find or install Chromium on a machine that is new to the project.

``scripts/test`` runs in a copy, where ``.venv`` is complete, pytest is a fake, and PATH holds only
the commands that a test names. No test here uses the network or the machine's own browser.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.browser import BROWSERS

ROOT = Path(__file__).resolve().parents[2]
CHROME_FOR_MAC = Path(BROWSERS[-1])
APT_GET_CALLS = [
    "apt-get update -qq",
    "apt-get install -qq --no-install-recommends chromium fonts-dejavu-core",
]
HOW_TO_INSTALL = "Debian  apt-get install chromium"


class Machine:
    """A copy of the scripts, with commands of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands = root / "commands"
        self._calls = root / "calls"
        self._calls.touch()
        shutil.copytree(ROOT / "scripts", root / "scripts")
        self.commands.mkdir()
        for name in ("cat", "cmp", "dirname", "ln", "sed"):
            self._link(name)
        self._make_environment()

    def _link(self, name: str) -> None:
        path = shutil.which(name)
        assert path, f"This machine has no {name}."
        (self.commands / name).symlink_to(path)

    def _make_environment(self) -> None:
        (self.root / "pyproject.toml").write_text("[project]\n")
        (self.root / "pdm.lock").write_text("")
        groups = self.root / ".venv" / "groups"
        groups.mkdir(parents=True)
        (groups / "test").touch()
        (self.root / ".venv" / "recipe").write_text(f"{self.root}\n[project]\n")
        (self.root / ".venv" / "pyvenv.cfg").write_text("version = 3.13.0\n")
        self._script(self.root / ".venv" / "bin" / "python", f'echo "$*" >>"{self._calls}"')

    def _script(self, path: Path, body: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def add_command(self, name: str, body: str = "") -> None:
        """Put a command on PATH that records its calls and then does this."""
        record = f'echo "{name} $*" >>"{self._calls}"'
        self._script(self.commands / name, f"{record}\n{body}")

    def add_user(self, number: int) -> None:
        """Run the scripts as the user with this number; 0 is root."""
        self._script(self.commands / "id", f"echo {number}")

    def add_apt_get(self, *, update: str = ":", install: str = "") -> None:
        """Put an apt-get on PATH; without ``install`` it installs a browser."""
        install = install or f'ln -s /bin/sh "{self.commands}/chromium"'
        body = f"""
            if [ "$1" = update ]; then {update}; exit; fi
            [ "$DEBIAN_FRONTEND" = noninteractive ] || exit 1
            {install}"""
        self.add_command("apt-get", body)

    def run_tests(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``scripts/test``."""
        return subprocess.run(
            ["/bin/sh", "scripts/test", *arguments],
            cwd=self.root,
            env={"PATH": str(self.commands), "PWD": str(self.root)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    @property
    def calls(self) -> list[str]:
        """The recorded calls, those of pytest included."""
        return self._calls.read_text().splitlines()

    @property
    def apt_get_calls(self) -> list[str]:
        """The recorded calls of apt-get."""
        return [call for call in self.calls if call.startswith("apt-get")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without a browser, whose user is root."""
    if CHROME_FOR_MAC.exists():
        pytest.skip("This Mac has Chrome outside of PATH.")
    machine = Machine(tmp_path)
    machine.add_user(0)
    return machine


def test_chromium_is_installed_before_the_tests_run(machine: Machine) -> None:
    machine.add_apt_get()

    result = machine.run_tests("tests/engine/test_transitions.py")

    assert machine.calls == [*APT_GET_CALLS, "-m pytest tests/engine/test_transitions.py"]
    assert f"Installed Chromium: {machine.commands}/chromium" in result.stderr
    assert HOW_TO_INSTALL not in result.stderr
    assert result.returncode == 0


@pytest.mark.parametrize("browser", BROWSERS[:-1])
def test_a_browser_that_the_tests_find_is_not_installed_again(
    machine: Machine, browser: str
) -> None:
    machine.add_apt_get()
    machine.add_command(browser)

    result = machine.run_tests()

    assert machine.apt_get_calls == []
    assert f"Found Chromium: {machine.commands}/{browser}" in result.stderr
    assert "Found .venv: Python 3.13.0, groups: test" in result.stderr
    assert result.returncode == 0


def test_another_user_than_root_reads_how_to_install_chromium(machine: Machine) -> None:
    machine.add_user(1000)
    machine.add_apt_get()

    result = machine.run_tests()

    assert machine.apt_get_calls == []
    assert HOW_TO_INSTALL in result.stderr
    assert result.returncode == 1


def test_without_apt_get_root_reads_how_to_install_chromium(machine: Machine) -> None:
    result = machine.run_tests()

    assert HOW_TO_INSTALL in result.stderr
    assert result.returncode == 1


def test_a_failed_installation_is_reported_and_fails_the_run_after_its_tests(
    machine: Machine,
) -> None:
    machine.add_apt_get(install='echo "E: Unable to locate package chromium" >&2; exit 100')

    result = machine.run_tests()

    assert machine.apt_get_calls == APT_GET_CALLS
    assert "E: Unable to locate package chromium" in result.stderr
    assert "apt-get could not install Chromium" in result.stderr
    assert HOW_TO_INSTALL in result.stderr
    assert "Installed Chromium" not in result.stderr
    assert "-m pytest -n 3" in machine.calls
    assert result.returncode == 1


def test_an_installation_without_a_browser_is_reported(machine: Machine) -> None:
    machine.add_apt_get(install='echo "chromium is now a snap"')

    result = machine.run_tests()

    assert "chromium is now a snap" in result.stderr
    assert HOW_TO_INSTALL in result.stderr
    assert result.returncode == 1


def test_chromium_is_installed_although_a_package_source_is_unreachable(machine: Machine) -> None:
    machine.add_apt_get(update="exit 100")

    result = machine.run_tests()

    assert machine.apt_get_calls == APT_GET_CALLS
    assert "Installed Chromium" in result.stderr
    assert result.returncode == 0


def test_no_function_of_the_scripts_hides_a_command() -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "scripts").iterdir())
    functions = re.findall(r"^(\w+)\(\) \{", scripts, re.MULTILINE)
    commands = {*BROWSERS, "make", "pdm", "say"}

    assert "ensure_chromium" in functions
    assert [name for name in functions if name in commands or shutil.which(name)] == []
