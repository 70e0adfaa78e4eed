"""The demo as a stranger meets it: its own processes, a real browser, answers from its rows."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Locator, Page

from agentic_django.models import AgentEvent, AgentRun, StepCheckpoint
from example.reports.models import Row
from example.shop.models import Order, Refund
from tests.support.processes import Process, Project, free_port, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MODES = {
    "immediate": {"DEMO_TASKS": "immediate", "DEMO_MODEL_PAUSE": "0.02"},
    "threads": {"DEMO_MODEL_PAUSE": "0.06"},
    "production": {"DEMO_MODEL_PAUSE": "0.06"},
}
WATCH = """() => {
    window.seen = [];
    const note = () => {
        for (const run of document.querySelectorAll(".agentic-run")) {
            if (seen.at(-1) !== run.dataset.status) seen.push(run.dataset.status);
        }
    };
    new MutationObserver(note).observe(document, {childList: true, subtree: true});
}"""
"""Notes each status that the page shows from now on; a reload would forget them."""


@dataclass
class Demo:
    """A running demo and what it printed."""

    mode: str
    process: Process
    state: Path

    def printed(self, pattern: str) -> tuple[str, ...]:
        """Return the groups of the first match in what the demo has printed."""
        match = re.search(pattern, self.process.output())
        assert match is not None, self.process.output()
        return match.groups()

    @property
    def database_url(self) -> str:
        """The address of the demo's database."""
        if (postgres := self.state / "postgres").exists():
            return f"postgresql://postgres:@/postgres?host={postgres}"
        return f"sqlite://{self.state / 'shop.sqlite3'}"

    def workers(self) -> list[psutil.Process]:
        """Return the RQ workers, and the processes in which they execute jobs."""
        return [p for p in self.process.family() if "rqworker" in _command(p)]


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


@contextmanager
def running(mode: str) -> Iterator[Demo]:
    # Not one of pytest's directories: PostgreSQL's own user may not enter those.
    state = Path(tempfile.mkdtemp(prefix="agentic-demo-"))
    extra = {"DEMO_STATE": str(state), **MODES[mode]}
    project = Project("", settings="example.settings", directory=state, extra=extra)
    port = free_port()
    options = ["--production"] if mode == "production" else []

    def is_open(process: Process) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return "Stop  " in process.output()
        return False

    command = ["-m", "example.demo", f"--port={port}", *options]
    try:
        with project.process(*command, ready=is_open) as process:
            yield Demo(mode, process, state)
            assert process.stop() == 0
            assert process.output().endswith("\nStopped.\n")
            wait_until(lambda: not process.family(), what=lambda: str(process.family()))
    finally:
        shutil.rmtree(state)


@pytest.fixture(scope="module")
def demo(request: pytest.FixtureRequest) -> Iterator[Demo]:
    """A demo in one of its modes, which the tests of that mode share."""
    with running(request.param) as demo:
        yield demo


@pytest.fixture
def rows(demo: Demo, django_db_blocker: Any) -> Iterator[None]:
    """Let this process's ORM read the demo's own database."""
    with django_db_blocker.unblock(), Project(demo.database_url).in_process():
        yield


type LogIn = Callable[..., Page]


@pytest.fixture
def log_in(demo: Demo, rows: None, open_page: Any) -> LogIn:
    """Open the address that the demo printed and log in as it says."""

    def open_desk(**options: Any) -> Page:
        (address,) = demo.printed(r"Open +(http://\S+)")
        name, password = demo.printed(r"Log in +(\w+), password (\w+)")
        page: Page = open_page(base_url=address, **options)
        answer = page.goto("/")
        assert answer is not None
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'self'" in policy
        page.fill("[name=username]", name)
        page.fill("[name=password]", password)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url("**/conversations/*/")
        return page

    return open_desk


def ask(page: Page, question: str) -> Locator:
    """Write a message and send it; returns its turn in the conversation."""
    page.evaluate(WATCH)
    turns = page.locator(".agentic-run")
    count = turns.count()
    page.fill("textarea[name=input]", question)
    page.get_by_role("button", name="Send").click()
    turns.nth(count).wait_for(timeout=20_000)
    return turns.nth(count)


def wait_for(turn: Locator, status: str, seconds: float = 30) -> None:
    """Wait until a turn shows a status."""
    turn.and_(turn.page.locator(f"[data-status={status}]")).wait_for(timeout=seconds * 1000)


def statuses(page: Page) -> list[str]:
    """Return the statuses that the page has shown since the question, without a reload."""
    seen: list[str] = page.evaluate("window.seen")
    return seen


def run_of(turn: Locator) -> AgentRun:
    identity = turn.get_attribute("id")
    assert identity is not None
    return AgentRun.objects.get(pk=identity.removeprefix("run-container-"))


def order(number: int) -> Order:
    return Order.objects.with_everything().get(number=number)


def assert_told(turn: Locator, number: int) -> None:
    """The answer says of an order what its rows say."""
    facts = order(number).facts()
    text = " ".join(turn.locator(".agentic-text").inner_text().split())
    assert f"Order {number} for {facts['customer']}" in text
    assert f"was delivered {facts['days_since_delivery']} days ago" in text
    assert f"It went to {facts['address']}." in text
    table = [row.split("\t") for row in turn.locator("tbody tr").all_inner_texts()]
    lines = [[line["item"], str(line["quantity"]), line["paid"]] for line in facts["lines"]]
    assert table == [*lines, ["Total", "", facts["total"]]]


def assert_done_once(run: AgentRun) -> None:
    """A run ended once, in gapless events, and no call was recorded twice."""
    assert run.status == "completed"
    told = list(run.events.order_by("sequence").values_list("sequence", "event_type"))
    assert [number for number, _ in told] == list(range(1, len(told) + 1))
    kinds = [kind for _, kind in told]
    assert kinds.count("run.completed") == kinds.count("message") == 1
    assert kinds.count("tool.output") == kinds.count("tool.called") == len(tools_of(run))


def tools_of(run: AgentRun) -> list[tuple[str, int]]:
    """Return the tool calls of a run in order, with the attempt that made each."""
    calls = StepCheckpoint.objects.filter(run=run, kind="tool").order_by("pk")
    return list(calls.values_list("name", "attempt"))


@pytest.mark.parametrize("demo", MODES, indirect=True)
def test_a_question_is_answered_from_the_rows_while_one_watches(demo: Demo, log_in: LogIn) -> None:
    page = log_in()
    turn = ask(page, "Where is order 1042?")
    wait_for(turn, "completed")
    assert_told(turn, 1042)
    run = run_of(turn)
    assert run.owner.username == "demo"
    assert_done_once(run)
    assert tools_of(run) == [("find_order", 1)]
    if demo.mode == "immediate":
        assert statuses(page) == ["completed"]
    else:
        assert statuses(page)[-2:] == ["running", "completed"]
    # What stands around the turn has followed it.
    page.locator("#title", has_text="Where is order 1042?").wait_for()
    page.reload()
    assert page.locator("#title").inner_text() == "Where is order 1042?"
    assert_told(page.locator(".agentic-run"), 1042)


@pytest.mark.parametrize("demo", ["threads"], indirect=True)
def test_without_javascript_a_form_leads_to_the_page_of_its_run(demo: Demo, log_in: LogIn) -> None:
    page = log_in(javascript=False)
    answers: list[tuple[str, int]] = []
    page.on("response", lambda response: answers.append((response.request.method, response.status)))
    page.fill("textarea[name=input]", "Where is order 1042?")
    page.get_by_role("button", name="Send").click()
    page.wait_for_url("**/agents/runs/*/")
    assert answers[0] == ("POST", 303)
    turn = page.locator(".agentic-run")
    assert turn.get_attribute("data-status") in ("pending", "running")

    while turn.get_attribute("data-status") != "completed":
        page.wait_for_timeout(300)
        with page.expect_navigation():
            page.locator("noscript a").click()
    assert_told(turn, 1042)
    page.click("text=Back to the help desk")
    assert_told(page.locator(".agentic-run"), 1042)


@pytest.mark.parametrize("demo", ["threads"], indirect=True)
def test_a_stopped_run_goes_on_from_where_it_was_when_tried_again(
    demo: Demo, log_in: LogIn
) -> None:
    page = log_in()
    turn = ask(page, "Where is order 1042?")
    run = run_of(turn)
    wait_until(lambda: tools_of(run))
    turn.get_by_role("button", name="Stop").click()
    wait_for(turn, "cancelled")
    assert "You stopped this after" in turn.inner_text()
    run.refresh_from_db()
    assert run.status == "cancelled"
    assert not turn.get_by_role("button", name="Stop").count()
    turn.get_by_role("button", name="Retry").click()
    wait_for(turn, "completed")
    assert_told(turn, 1042)
    run.refresh_from_db()
    assert_done_once(run)
    assert run.attempt == 2
    assert tools_of(run) == [("find_order", 1)]
    ends = [status for status in statuses(page) if status not in ("pending", "running")]
    assert ends == ["cancelled", "completed"]


@pytest.mark.parametrize("demo", ["threads"], indirect=True)
def test_a_refund_changes_the_row(demo: Demo, log_in: LogIn) -> None:
    page = log_in()
    assert order(1042).refunded == 0
    stop = page.locator("[data-agentic-stop]")
    assert stop.is_hidden()
    turn = ask(page, "Order 1042 arrived broken. Refund 24.00 of it, please.")
    wait_for(turn, "waiting")
    assert stop.is_visible()
    assert not Refund.objects.exists()
    turn.get_by_role("button", name="Refund 24.00").click()
    wait_for(turn, "completed")
    refund = Refund.objects.get(order__number=1042)
    assert refund.amount == Decimal("24.00")
    assert refund.clerk == run_of(turn).owner
    customer = order(1042).customer.name
    assert (
        f"I have refunded 24.00 EUR of order 1042 to {customer}."
        in turn.locator(".agentic-text").inner_text()
    )
    assert order(1042).refunded == refund.amount


@pytest.mark.parametrize("demo", ["production"], indirect=True)
def test_an_answer_comes_once_though_its_workers_are_killed(demo: Demo, log_in: LogIn) -> None:
    page = log_in()
    turn = ask(page, "Order 1042 arrived broken. Can the customer have the money back?")
    run = run_of(turn)
    wait_for(turn, "waiting", seconds=45)
    turn.get_by_role("button", name=f"Refund {order(1042).total}").click()
    wait_until(lambda: ("refund_order", 2) in tools_of(run))
    workers = demo.workers()
    assert len(workers) >= 3  # The two workers, and the process that is at the job.
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
    run.refresh_from_db()
    assert run.status == "running"
    wait_for(turn, "completed", seconds=45)
    total = order(1042).total
    answer = turn.locator(".agentic-text").inner_text()
    assert answer.count(f"I have refunded {total} EUR of order 1042") == 1
    run.refresh_from_db()
    assert_done_once(run)
    assert run.attempt == 3
    assert tools_of(run) == [("find_order", 1), ("read_policy", 1), ("refund_order", 2)]
    assert [refund.amount for refund in Refund.objects.all()] == [total]
    retried = AgentEvent.objects.filter(run=run, event_type="run.retrying").order_by("sequence")
    assert [event.payload["reason"] for event in retried] == ["decided", "lost"]
    assert statuses(page)[-1] == "completed"
    assert "died; starting it again" in demo.process.output()


def report_on(page: Page, file: dict[str, Any] | None = None) -> Locator:
    """Have a report made on a file, or on the sample; returns where it appears."""
    page.get_by_role("link", name="Reports").click()
    if file is None:
        page.get_by_role("button", name="Report on the sample").click()
    else:
        page.set_input_files("input[type=file]", file)
        page.get_by_role("button", name="Make a report").click()
    return page.locator(".agentic-run")


def steps_of(run: AgentRun) -> list[tuple[str, int]]:
    """Return the recorded steps of a run in order, with the attempt that made each."""
    steps = StepCheckpoint.objects.filter(run=run, kind="step").order_by("pk")
    return list(steps.values_list("name", "attempt"))


STEPS = ["parse", "validate", "aggregate", "chart", "summarise"]


@pytest.mark.parametrize("demo", ["threads"], indirect=True)
def test_a_file_becomes_a_report_while_one_watches(demo: Demo, log_in: LogIn) -> None:
    page = log_in()
    rows = "\n".join(f"2026-03-{day:02},North,Whisk,2,8.50" for day in range(1, 31))
    sheet = f"date,region,product,quantity,price\n{rows}\n"
    file = {"name": "march.csv", "mimeType": "text/csv", "buffer": sheet.encode()}
    report = report_on(page, file)
    bar = report.get_by_role("progressbar")
    bar.wait_for()
    report.get_by_text("Writing the summary").first.wait_for()
    assert 0 <= int(bar.get_attribute("value") or -1) <= 80
    wait_for(report, "completed")
    assert not bar.count()
    assert "510.00" in report.locator(".agentic-figures").inner_text()
    assert report.get_by_role("img", name="Revenue by month").is_visible()
    assert [name for name, _ in steps_of(run_of(report))] == STEPS


@pytest.mark.parametrize("demo", ["production"], indirect=True)
def test_a_report_goes_on_in_another_worker_and_repeats_no_step(demo: Demo, log_in: LogIn) -> None:
    report = report_on(log_in())
    run = run_of(report)
    wait_until(lambda: ("chart", 1) in steps_of(run), timeout=40)
    for worker in demo.workers():
        worker.send_signal(signal.SIGKILL)
    run.refresh_from_db()
    assert run.status == "running"
    wait_for(report, "completed", seconds=60)
    run.refresh_from_db()
    assert run.attempt == 2
    assert steps_of(run) == [*((name, 1) for name in STEPS[:-1]), (STEPS[-1], 2)]
    told = list(run.events.order_by("sequence").values_list("event_type", "payload"))
    of_steps = Counter((kind, payload["step_name"]) for kind, payload in told if "step" in kind)
    assert [of_steps["step.started", name] for name in STEPS] == [1, 1, 1, 1, 2]
    assert [of_steps["step.completed", name] for name in STEPS] == [1, 1, 1, 1, 1]
    assert [of_steps["step.skipped", name] for name in STEPS] == [1, 1, 1, 1, 0]
    shown = [payload["progress_percent"] for kind, payload in told if kind == "progress.update"]
    assert shown == [20, 40, 60, 80, 100]
    assert Row.objects.filter(report__run=run).count() == run.final_output["parse"]["rows"] == 4000
    assert "3,992 of 4,000" in report.locator(".agentic-figures").inner_text()
