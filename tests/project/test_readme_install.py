"""Whoever follows the README's install section word for word has an agent that works.

Each fenced block of the section is carried out in order: files are written as they are shown,
commands are executed as they stand. Only what a reader fills in is filled in here: names and
passwords, the key and the address of the model, the addresses of the servers; and ports, since
8000 may be taken. ``pip install`` is compared with what the project offers.
"""

from __future__ import annotations

import os
import re
import selectors
import shlex
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.cookiejar import CookieJar
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import HTTPCookieProcessor, Request, build_opener

import psycopg
import pytest
from packaging.requirements import Requirement
from psycopg import sql

from tests.settings import ROOT
from tests.support.markdown import Block, blocks
from tests.support.openai_server import Answer, Call, OpenAIServer
from tests.support.processes import Process, free_port, wait_until
from tests.support.servers import Valkey, shared_postgres

NAME, PASSWORD = "ada", "ada's own password"
SERVERS = ("runserver", "uvicorn", "agentic_django_worker")
FILE = re.compile(
    r"(?:#|\{#) (?P<path>[\w/]+\.(?:py|html))(?P<at_its_end>, at its end)?(?: #\})?\n"
)


def section(page: Path, start: str, end: str) -> str:
    """Return a page's text from one heading to another."""
    text = page.read_text()
    return text[text.index(f"\n{start}\n") : text.index(f"\n{end}\n")]


README = section(ROOT / "README.md", "## Install it in your own project", "## The promise")
DEVELOPMENT, _, PRODUCTION = README.partition("\n**6. Production.**")


class Reader:
    """Somebody who does what a page says, in a directory and an environment of their own."""

    def __init__(self, directory: Path, own: dict[str, str]) -> None:
        self.directory = directory
        self.own = own
        library = directory / "library"
        library.mkdir()
        # The app, and nothing else of the checkout.
        (library / "agentic_django").symlink_to(ROOT / "agentic_django")
        names = ("PATH", "HOME", "LANG", "XDG_RUNTIME_DIR")
        self.env = {name: os.environ[name] for name in names if name in os.environ}
        self.env |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(library),
            "PYTHONUNBUFFERED": "1",
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
        }
        self.cwd = directory
        self.url = ""
        self._running = ExitStack()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the servers that were started."""
        self._running.close()

    def follow(self, text: str) -> None:
        """Do what the fenced blocks of a text say, in order."""
        for block in blocks(ROOT, text):
            if block.language == "sh":
                for line in block.text.splitlines():
                    self.execute(line)
            elif block.language != "text":
                self.write(block)

    def write(self, block: Block) -> None:
        """Write a file, or to the end of one."""
        first = FILE.match(block.text)
        assert first is not None, f"The block does not say which file it is:\n{block.text}"
        file = self.cwd / first["path"]
        file.parent.mkdir(exist_ok=True)
        with file.open("a" if first["at_its_end"] else "w") as stream:
            stream.write(f"\n{block.text}" if first["at_its_end"] else block.text)

    def execute(self, line: str) -> None:
        """Do what a line of shell says."""
        match shlex.split(line):
            case ["pip", "install", *wanted]:
                for requirement in wanted:
                    check_offer(requirement)
            case ["cd", name]:
                self.cwd /= name
            case ["export", *settings]:
                self.env |= {n: self.own.get(n, v) for n, v in (s.split("=", 1) for s in settings)}
            case ["python", "manage.py", "createsuperuser"] as command:
                answer_prompts(command, self.cwd, self.env)
            case command if set(command) & set(SERVERS):
                self.start(command)
            case command:
                done = self.run(command)
                assert not done.returncode, f"{line}\n{done.stdout}\n{done.stderr}"
                if command[-1] == "check":
                    assert "no issues (0 silenced)" in done.stdout, done.stdout

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            command,
            cwd=self.cwd,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    def start(self, command: list[str]) -> None:
        """Start a server; what listens, on a port of its own."""
        port = free_port()
        if "runserver" in command:
            command = [*command, f"127.0.0.1:{port}"]
        elif "uvicorn" in command:
            command = [*command, f"--port={port}"]
        # The shell looks the command up on the reader's own PATH.
        full = ["sh", "-c", 'cd "$0" && exec "$@"', str(self.cwd), *command]
        log = self.directory / f"server-{port}.log"
        if "agentic_django_worker" in command:
            server = Process(full, self.env, log, is_claiming)
        else:
            server = Process(full, self.env, log, answering(port))
            self.url = f"http://127.0.0.1:{port}"
        self._running.enter_context(server)


def is_claiming(worker: Process) -> bool:
    """Whether a worker has written that it claims runs."""
    return "claims runs of" in worker.output()


def answering(port: int) -> Callable[[Process], bool]:
    """Return what says whether a server answers requests."""

    def answers(_: Process) -> bool:
        try:
            build_opener().open(f"http://127.0.0.1:{port}/admin/login/", timeout=5)
        except HTTPError:
            return True
        except OSError:
            return False
        return True

    return answers


def check_offer(requirement: str) -> None:
    """Check that what is to be installed is ours, with extras that there are, or is known."""
    path, _, extras = requirement.partition("[")
    if not path.startswith("/"):
        metadata.distribution(Requirement(requirement).name)
        return
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert path == "/path/to/agentic_django"
    for extra in filter(None, extras.strip("]").split(",")):
        for needed in offered["optional-dependencies"][extra]:
            metadata.distribution(Requirement(needed).name)


def answer_prompts(command: list[str], cwd: Path, env: dict[str, str]) -> None:
    """Answer what ``createsuperuser`` asks in a terminal."""
    terminal = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) != 0)"
    with subprocess.Popen(
        [sys.executable, "-c", terminal, *command],
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        conversation = Conversation(process)
        for prompt, answer in [
            ("Username", NAME),
            ("Email", "ada@example.com"),
            ("Password:", PASSWORD),
            ("Password (again):", PASSWORD),
        ]:
            conversation.wait_for(prompt)
            conversation.say(answer)
        conversation.wait_for("Superuser created successfully.")
        assert process.wait(60) == 0


class Conversation:
    """What a process in a terminal says, and what it is told."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin, self.stdout = process.stdin, process.stdout
        self.heard = ""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.stdout, selectors.EVENT_READ)

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Read until a text comes; what comes before it is forgotten."""
        end = time.monotonic() + timeout
        while text not in self.heard:
            assert self._selector.select(end - time.monotonic()), f"No {text!r} in {self.heard!r}"
            read = os.read(self.stdout.fileno(), 4096)
            assert read, f"It ended without {text!r}: {self.heard!r}"
            self.heard += read.decode()
        self.heard = self.heard.partition(text)[2]

    def say(self, text: str) -> None:
        """Type a line."""
        self.stdin.write(f"{text}\n".encode())
        self.stdin.flush()


class Browser:
    """The little of a browser with htmx that a conversation needs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.cookies = CookieJar()
        self._opener = build_opener(HTTPCookieProcessor(self.cookies))

    def open(self, path: str, form: dict[str, str] | None = None, **headers: str) -> Any:
        """Ask for a page, or send a form to it."""
        data = urlencode(form).encode() if form is not None else None
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named = {"Accept": "text/html", "Referer": f"{self.url}/", **named}
        request = Request(f"{self.url}{path}", data, named)
        try:
            return self._opener.open(request, timeout=30)
        except HTTPError as error:
            raise AssertionError(f"{error.code}: {error.read().decode()[:2000]}") from None

    def log_in(self) -> None:
        """Log in where the site sends those who have not."""
        page = self.open("/")
        there = urlsplit(page.url)
        assert there.path == "/admin/login/", page.url
        form = {**hidden_fields(page.read().decode()), "username": NAME, "password": PASSWORD}
        assert parse_qs(there.query)["next"] == [form["next"]] == ["/"]
        self.open(f"{there.path}?{there.query}", form)

    def ask(self, text: str) -> str:
        """Send a message as the page's form does; return the fragment that answers it."""
        page = self.open("/").read().decode()
        form = re.search(r'<form class="agentic agentic-composer"[^>]*>.*?</form>', page, re.DOTALL)
        assert form is not None, page
        address = attribute(form[0], "hx-post")
        fields = {**hidden_fields(form[0]), "input": text}
        return str(self.open(address, fields, HX_Request="true").read().decode())

    def follow(self, fragment: str) -> str:
        """Ask again as the fragment says, until it has no trigger; return the last one."""
        last = [fragment]

        def is_last() -> bool:
            if 'hx-trigger="every' not in last[0]:
                return True
            answer = self.open(attribute(last[0], "hx-get"), HX_Request="true")
            if answer.status != 204:
                last[0] = answer.read().decode()
            return False

        wait_until(is_last, timeout=60, what=lambda: last[0])
        return last[0]


def attribute(html: str, name: str) -> str:
    """Return the first value of an attribute."""
    found = re.search(rf'{name}="([^"]*)"', html)
    assert found is not None, html
    return found[1].replace("&amp;", "&")


def hidden_fields(html: str) -> dict[str, str]:
    """Return the hidden fields of a form."""
    tags = re.findall(r'<input type="hidden"[^>]*>', html)
    return {attribute(tag, "name"): attribute(tag, "value") for tag in tags}


def talk(url: str) -> str:
    """Log in, ask what the README asks, and return the answer's fragment."""
    browser = Browser(url)
    browser.log_in()
    return browser.follow(browser.ask("How many users are there?"))


def counting(body: dict[str, Any]) -> Answer:
    """Answer as a model does: call the tool, then tell what it gave back."""
    assert [tool["name"] for tool in body["tools"]] == ["count_users"]
    last = body["input"][-1]
    if last.get("type") == "function_call_output":
        return f"There are {last['output']} users, says the tool."
    return Call("count_users")


@pytest.fixture
def reader(tmp_path: Path, openai_server: OpenAIServer) -> Iterator[Reader]:
    """A reader whose key opens the local model."""
    openai_server.answer_with(counting)
    own = {"OPENAI_API_KEY": "sk-test", "SECRET_KEY": "x" * 50, "ALLOWED_HOST": "127.0.0.1"}
    with Reader(tmp_path, own) as reader:
        reader.env["OPENAI_BASE_URL"] = openai_server.base_url
        yield reader


def test_every_part_of_the_section_is_a_file_or_a_command() -> None:
    assert PRODUCTION
    assert {block.language for block in blocks(ROOT, README)} == {"sh", "python", "html"}
    for block in blocks(ROOT, README):
        assert block.language == "sh" or FILE.match(block.text)


@contextmanager
def new_empty_database() -> Iterator[str]:
    """Make a PostgreSQL database without any table, and drop it afterwards."""
    server, name = shared_postgres(), f"readme_{uuid.uuid4().hex[:12]}"
    quoted = sql.Identifier(name)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(quoted))
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(quoted))


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(300)
def test_following_the_readme_leads_to_an_agent_that_answers(
    reader: Reader, openai_server: OpenAIServer, valkey: Valkey
) -> None:
    reader.follow(DEVELOPMENT)
    fragment = talk(reader.url)
    assert 'data-status="completed"' in fragment
    assert "There are 1 users, says the tool." in fragment
    reader.stop()

    with new_empty_database() as database:
        address = urlsplit(database)
        reader.own |= {
            "PGHOST": parse_qs(address.query)["host"][0],
            "PGUSER": address.username or "",
            "PGDATABASE": address.path.lstrip("/"),
            "REDIS_URL": f"redis://127.0.0.1:{valkey.port}/0",
        }
        reader.follow(PRODUCTION)
        fragment = talk(reader.url)
        assert 'data-status="completed"' in fragment
        assert "There are 1 users, says the tool." in fragment
        reader.stop()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_following_the_tutorial_leads_to_a_test_that_passes(reader: Reader) -> None:
    reader.follow(DEVELOPMENT.replace("python manage.py runserver\n", ""))
    reader.follow((ROOT / "docs" / "tutorial.md").read_text())
    reader.follow((ROOT / "docs" / "how-to" / "testing.md").read_text())
    done = reader.run(["python", "manage.py", "test", "mysite", "todos"])
    assert "Ran 2 tests" in done.stderr, done.stderr
    assert not done.returncode, done.stderr
