"""The documentation says what the code does: names, tables, diagrams, links, code."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import BaseCommand, load_command_class
from django.template import engines

import agentic_django
from agentic_django import exceptions, runtime, services, sessions, signals, steps, urls, validation
from agentic_django.conf import PREFIX, Settings
from agentic_django.engine import events, transitions
from agentic_django.exceptions import MESSAGES
from agentic_django.models import ACTIVE, FINISHED, AgentRun, querysets
from agentic_django.services import cancel_agent_run, submit_agent_run
from agentic_django.steps import ExecutionState
from agentic_django.templatetags import agentic_django_tags
from agentic_django.views import problems, schemas
from tests.settings import ROOT
from tests.support.markdown import Block, anchors, blocks, links

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
PACKAGE = Path(agentic_django.__file__).parent


def text(name: str) -> str:
    """Return a page of the documentation."""
    return (ROOT / "docs" / name).read_text()


def section(page: str, heading: str) -> str:
    """Return what stands under a heading, up to the next one of its level or above."""
    level = heading.split()[0]
    _, found, after = text(page).partition(f"\n{heading}\n")
    assert found, f"{page} has no heading {heading!r}."
    return re.split(rf"^#{{1,{len(level)}}} ", after, maxsplit=1, flags=re.MULTILINE)[0]


def rows(table: str) -> list[list[str]]:
    """Return the cells of the tables in a text, without headings."""
    cells = [line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip().replace("\\|", "|") for cell in row] for row in cells]


def names(cell: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def first_names(table: str) -> list[str]:
    """Return the names in the first column of the tables in a text."""
    return [name for row in rows(table) for name in names(row[0])]


def all_blocks(language: str) -> list[Any]:
    """Return the fenced blocks of all pages in a language, as parameters."""
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}:{block.line}")
        for page in PAGES
        for block in blocks(page)
        if block.language == language
    ]


# Links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{target}: there is no {file}."
        assert not anchor or anchor in anchors(file), f"{target}: no such heading."


def test_every_page_is_reached_from_the_index() -> None:
    linked = {
        (ROOT / "docs" / target.partition("#")[0]) for target in links(ROOT / "docs/index.md")
    }
    assert {page for page in PAGES if page.parent != ROOT} - linked == {ROOT / "docs/index.md"}


# Code


@pytest.mark.parametrize("block", all_blocks("python"))
def test_python_compiles(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize("block", all_blocks("python"))
def test_what_is_imported_of_ours_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agentic_django"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.util.find_spec(path), path


@pytest.mark.parametrize("block", all_blocks("html"))
def test_templates_compile(block: Block) -> None:
    engines["django"].from_string(block.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_setting_that_is_named_exists(page: Path) -> None:
    named = set(re.findall(rf"{PREFIX}[A-Z_]*[A-Z]", page.read_text()))
    assert named <= set(Settings.options())


# Architecture


def modules() -> list[str]:
    """Return the name of every module of the package, less migrations."""
    found = pkgutil.walk_packages(agentic_django.__path__, "agentic_django.")
    shorts = (module.name.removeprefix("agentic_django.") for module in found)
    return [name for name in shorts if not name.startswith("migrations")]


def tree() -> list[str]:
    """Return the dotted names of all modules in the page's tree."""
    found: list[str] = []
    parents: list[str] = []
    drawn = next(block for block in blocks(ROOT / "docs/architecture.md") if "urls  " in block.text)
    for line in filter(str.strip, drawn.text.splitlines()):
        depth, name = (len(line) - len(line.lstrip())) // 4, line.split()[0]
        parents = [*parents[:depth], name.rstrip("/")]
        found.append(".".join(parents))
    return found


def test_every_module_is_in_the_tree() -> None:
    assert sorted(tree()) == sorted(modules())


def test_every_table_has_its_writers() -> None:
    table = section("architecture.md", "## Who writes which table")
    made = {model.__name__ for model in apps.get_app_config("agentic_django").get_models()}
    assert {names(row[0])[0] for row in rows(table) if names(row[0])} == made
    rooms = {name for row in rows(table)[1:] for name in names(" ".join(row[1:]))}
    known = set(modules())
    assert {room for room in rooms if room.partition(".")[0] not in known} == set()


# The life of a run


def diagram() -> str:
    """Return the life of a run as mermaid text, from the table of transitions."""
    lines = ["stateDiagram-v2", "    [*] --> pending: submit"]
    for verb, step in transitions.TRANSITIONS.items():
        lines += [f"    {source} --> {step.target}: {verb}" for source in step.sources]
    left = {source for step in transitions.TRANSITIONS.values() for source in step.sources}
    lines += [f"    {status} --> [*]" for status in AgentRun.Status if status not in left]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", ["architecture.md", "explanation/durability.md"])
def test_diagram_is_that_of_the_transitions(page: str) -> None:
    drawn = [block.text for block in blocks(ROOT / "docs" / page) if block.language == "mermaid"]
    assert [text for text in drawn if text.startswith("stateDiagram")] == [diagram()]


def test_statuses_are_told_with_the_right_predicates() -> None:
    told = first_names(section("reference/models.md", "### Statuses"))
    assert told == [*ACTIVE, *FINISHED] == list(AgentRun.Status)


# Events and signals


def test_events_are_those_of_the_code() -> None:
    lines = [
        f"| `{kind}` | {told.visibility} | {', '.join(f'`{name}`' for name in told.fields)} |"
        for kind, told in events.EVENT_KINDS.items()
    ]
    assert "\n".join(lines) in text("reference/events.md")


def test_signals_are_those_of_the_code() -> None:
    table = text("reference/signals.md")
    assert first_names(table) == sorted(signals.__all__, key=first_names(table).index)
    in_code = dict(re.findall(r"^``(\w+)``  +(.+)$", str(signals.__doc__), re.MULTILINE))
    kwargs = {
        name: [word for part in re.findall("``(.*?)``", told) for word in part.split(", ")]
        for name, told in in_code.items()
    }
    assert {names(row[0])[0]: names(row[2]) for row in rows(table)[1:]} == kwargs


@pytest.fixture
def sent() -> Iterator[dict[str, set[str]]]:
    """The keyword arguments with which each signal was sent, and its sender."""
    seen: dict[str, set[str]] = {}

    def note(name: str) -> Any:
        def receive(sender: Any, signal: Any, **kwargs: Any) -> None:
            seen[name] = {sender.__name__, *kwargs}

        return receive

    receivers = {name: note(name) for name in signals.__all__}
    for name, receive in receivers.items():
        getattr(signals, name).connect(receive)
    yield seen
    for name, receive in receivers.items():
        getattr(signals, name).disconnect(receive)


def test_signals_are_sent_as_told(
    sent: dict[str, set[str]], user: Any, django_capture_on_commit_callbacks: Any
) -> None:
    def submit(agent_key: str) -> None:
        with django_capture_on_commit_callbacks(execute=True):
            submit_agent_run(owner=user, input_payload="hello", agent_key=agent_key)

    submit("echo")
    submit("broken")
    submit("asks")
    with django_capture_on_commit_callbacks(execute=True):
        cancel_agent_run(AgentRun.objects.create(owner=user, agent_key="echo"))
    told = rows(text("reference/signals.md"))[1:]
    assert sent == {names(row[0])[0]: set(names(row[1]) + names(row[2])) for row in told}


# Services


def signatures(page: str) -> dict[str, str]:
    """Return the signatures that a page shows, by name, as the parser writes them."""
    shown = [block for block in blocks(ROOT / "docs" / page) if block.info == "python signature"]
    parsed = [ast.parse(block.text).body[0] for block in shown]
    return {node.name: _head(node) for node in parsed if isinstance(node, ast.FunctionDef)}


def _head(node: ast.FunctionDef) -> str:
    return f"{ast.unparse(node.args)} -> {ast.unparse(node.returns) if node.returns else ''}"


def test_signatures_are_those_of_the_code() -> None:
    functions = {n: getattr(services, n) for n in services.__all__}
    functions = {n: f for n, f in functions.items() if inspect.isfunction(f)}
    functions["get_session"] = sessions.get_session
    made = {}
    for name, function in functions.items():
        node = ast.parse(inspect.getsource(function)).body[0]
        assert isinstance(node, ast.FunctionDef)
        made[name] = _head(node)
    assert signatures("reference/services.md") == made


def test_every_service_has_a_heading() -> None:
    headings = re.findall(r"^## `(\w+)`$", text("reference/services.md"), re.MULTILINE)
    assert sorted(headings) == sorted(services.__all__)


def test_every_argument_of_a_run_is_told() -> None:
    table = section("reference/services.md", "## `submit_agent_run`")
    assert first_names(table) == list(inspect.signature(submit_agent_run).parameters)


def test_run_options_are_those_of_the_code() -> None:
    table = section("reference/services.md", "## Run options")
    assert first_names(table) == list(validation.RunOptions.model_fields)


def test_every_exception_is_told() -> None:
    made = [
        name
        for name, kind in vars(exceptions).items()
        if inspect.isclass(kind) and issubclass(kind, exceptions.AgenticError)
    ]
    assert first_names(section("reference/services.md", "## Errors")) == made


# Runtimes and steps


def told_without_calls(page: str, heading: str) -> set[str]:
    """Return the names in the first column, without arguments and ``await``."""
    told = first_names(section(page, heading))
    return {name.removeprefix("await ").partition("(")[0] for name in told}


def test_every_part_of_a_context_is_told() -> None:
    machinery = {"journal", "open", "recording", "leave", "write", "inside"}
    own = re.findall(r"self\.(\w+)(?:: [^=]+)? = ", inspect.getsource(runtime.RunContext.__init__))
    made = {name for name in (*own, *vars(runtime.RunContext)) if not name.startswith("_")}
    assert told_without_calls("reference/runtime.md", "## `RunContext`") == made - machinery


@pytest.mark.parametrize(
    ("page", "kind"),
    [("runtime.md", runtime.RunResult), ("steps.md", steps.Step), ("steps.md", ExecutionState)],
)
def test_every_field_is_told_in_order(page: str, kind: Any) -> None:
    table = section(f"reference/{page}", f"## `{kind.__name__}`")
    assert first_names(table) == [field.name for field in dataclasses.fields(kind)]


def test_every_argument_of_an_executor_is_told() -> None:
    made = [
        *inspect.signature(steps.StepExecutor).parameters,
        *inspect.signature(steps.StepExecutor.run).parameters,
    ]
    made.remove("self")
    assert first_names(section("reference/steps.md", "## `StepExecutor`")) == made


@pytest.mark.parametrize(("page", "module"), [("runtime.md", runtime), ("steps.md", steps)])
def test_every_name_to_be_imported_is_told(page: str, module: Any) -> None:
    prose = re.sub(r"^```.*?^```$", "", text(f"reference/{page}"), flags=re.MULTILINE | re.DOTALL)
    words = {word for name in names(prose) for word in re.findall(r"\w+", name)}
    assert set(module.__all__) - words == set()


# HTTP


def test_every_address_is_told_by_its_name() -> None:
    table = text("reference/http.md").partition("\n## ")[0]
    told = {names(row[0])[0]: (names(row[1]) or [""])[0] for row in rows(table)[1:]}
    made = {f"agents:{p.name}": _readable(str(p.pattern)) for p in urls.urlpatterns}
    assert told == made


def _readable(pattern: str) -> str:
    return pattern.replace("<str:pk>", "<uuid>").replace("<str:session_key>", "<key>")


def test_every_problem_is_told_with_its_status() -> None:
    source = "".join(path.read_text() for path in (PACKAGE / "views").glob("*.py"))
    literal = re.findall(r'Problem\(\s*(\d{3}),\s*"(\w+)"', source)
    made = {(int(status), code) for status, code in literal} | set(
        problems.STATUS_BY_ERROR.values()
    )
    made.add((409, exceptions.SessionBusy.code))
    table = section("reference/http.md", "## Errors")
    assert {(int(row[0]), names(row[1])[0]) for row in rows(table)[1:]} == made


def test_every_code_of_a_failed_run_is_told() -> None:
    table = section("reference/http.md", "## Codes of failed runs")
    assert set(first_names(table)) - {"error.code"} == set(MESSAGES)


def test_every_field_of_a_new_run_is_told() -> None:
    start = section("reference/http.md", "## Start a run").partition("Other fields")[0]
    assert first_names(start) == list(schemas.RunRequest.model_fields)
    assert first_names(section("reference/http.md", "## Events")) == list(
        schemas.EventsQuery.model_fields
    )
    assert first_names(section("reference/http.md", "## Retry")) == list(
        schemas.RetryRequest.model_fields
    )


# Models, templates, commands


def test_every_field_of_every_model_is_told() -> None:
    for model in apps.get_app_config("agentic_django").get_models():
        made = {field.name for field in model._meta.fields}
        if f"## `{model.__name__}`" in text("reference/models.md"):
            table = section("reference/models.md", f"## `{model.__name__}`").partition("\n### ")[0]
            told = set(first_names(table))
        else:
            machinery = section("reference/models.md", "## Internal tables")
            fields = {names(row[0])[0]: set(names(row[1])) for row in rows(machinery)[1:]}
            told = fields[model.__name__]
        assert told == made, model.__name__


def test_every_scope_of_runs_is_told() -> None:
    scopes = {n for n in vars(querysets.RunQuerySet) if not n.startswith("_")} | {"visible_to"}
    told = {
        name.partition("(")[0] for name in first_names(section("reference/models.md", "### Scopes"))
    }
    assert told == scopes


def test_every_tag_and_filter_is_told() -> None:
    library = agentic_django_tags.register
    tags = first_names(section("reference/templates.md", "## Tags"))
    assert {tag.split()[1] for tag in tags} == set(library.tags)
    filters = first_names(section("reference/templates.md", "## Filters"))
    assert {name.partition("|")[2].partition(":")[0] for name in filters} == set(library.filters)


def test_every_template_and_static_file_is_told() -> None:
    page = "reference/templates.md"
    made = _files(PACKAGE / "templates" / "agentic_django")
    assert set(first_names(section(page, "## Templates"))) == made
    static = {f"agentic_django/{name}" for name in _files(PACKAGE / "static" / "agentic_django")}
    assert set(first_names(section(page, "## Static files"))) == static


def test_contexts_are_those_that_the_templates_name() -> None:
    for row in rows(section("reference/templates.md", "## Templates"))[1:]:
        source = (PACKAGE / "templates" / "agentic_django" / names(row[0])[0]).read_text()
        comment = source.partition("{% comment %}")[2].partition("{% endcomment %}")[0]
        for name in names(row[1]):
            assert re.search(rf"\b{name}\b", comment), f"{row[0]}: {name}"


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["agentic_django_cleanup", "agentic_django_recover_runs"])
def test_every_option_of_a_command_is_told(name: str) -> None:
    command = load_command_class("agentic_django", name)
    parser = command.create_parser("manage.py", name)
    own = {o for a in parser._actions for o in a.option_strings if o.startswith("--")}
    base = BaseCommand().create_parser("manage.py", name)
    shared = {o for action in base._actions for o in action.option_strings}
    told = {
        option.split()[0]
        for option in first_names(section("reference/commands.md", f"## `{name}`"))
    }
    assert told == own - shared


def test_every_command_is_told() -> None:
    made = {m.name for m in pkgutil.iter_modules([str(PACKAGE / "management" / "commands")])}
    assert set(re.findall(r"^## `(\w+)`$", text("reference/commands.md"), re.MULTILINE)) == made
