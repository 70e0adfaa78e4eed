// Runs follow their stream: partial messages grow, and htmx does not poll while the stream is open.
// Without a stream (an old browser, WSGI, a proxy) htmx polls, and the page is the same.
(() => {
  "use strict";

  if (!("EventSource" in window)) return;

  const STALLED = 12000; // The server sends a message at least every 5 s.
  const POLL_TURNS = 3000; // Without a stream, new turns are requested at this interval.
  const HIDDEN = 10000; // Browsers allow 6 streams per host over HTTP/1.1, for all tabs together.
  const MOST_RUNS = 100;
  const LONGEST_PAUSE = 30000;

  const stamps = new Map(); // The last stamp that the stream sent, by run.
  const drafts = new Map(); // The partial message of each run: {sequence, blocks}.

  let source = null;
  let address = "";
  let receivedAt = 0;
  let pause = 1000;
  let isRefused = false;
  let hadStream = false;
  let reconnecting = 0;
  let hiding = 0;

  const idOf = (run) => run.id.replace("run-container-", "");
  const elementOf = (id) => document.getElementById(`run-container-${id}`);
  const eventsIn = (stamp) => Number((stamp ?? "").split("-")[2] ?? 0);

  // htmx does not poll runs that the stream reports, while the stream is healthy.

  const isHealthy = () =>
    source?.readyState === EventSource.OPEN && performance.now() - receivedAt < STALLED;

  const skipsPoll = (element, event) =>
    element?.matches?.(".agentic-run") &&
    event?.type !== "agentic-changed" &&
    isHealthy() &&
    stamps.has(idOf(element));

  document.addEventListener("htmx:beforeRequest", (event) => {
    const { elt, requestConfig } = event.detail;
    if (skipsPoll(elt, requestConfig?.triggeringEvent)) event.preventDefault();
  });

  document.addEventListener("htmx:before:request", (event) => {
    const { sourceElement, sourceEvent } = event.detail.ctx;
    if (skipsPoll(sourceElement, sourceEvent)) event.preventDefault();
  });

  // Request the fragment of a changed run, unless the page is ahead of the stream.

  const refresh = (id) => {
    const run = elementOf(id);
    const stamp = stamps.get(id);
    const shown = run?.dataset.agenticStamp;
    if (!run || !stamp || shown === stamp || eventsIn(shown) > eventsIn(stamp)) return;
    run.dispatchEvent(new CustomEvent("agentic-changed"));
  };

  // A conversation also shows turns that began elsewhere: in another tab, or by a program.

  const seen = new WeakMap(); // The position of the last known turn, by log.
  const requesting = new Map(); // Whether to request new turns once more, by log.
  let streamed = null; // The log whose new turns the stream reports.

  const logs = () => [...document.querySelectorAll(".agentic-log[data-agentic-turns]")];
  const turnsOf = (log) => [...log.querySelectorAll(":scope > .agentic-run")];
  const positionOf = (run) => Number(run.dataset.agenticPosition ?? 0);
  const lastOf = (runs) => Math.max(0, ...runs.map(positionOf));
  const isAtEnd = () => scrollY + innerHeight > document.documentElement.scrollHeight - 150;

  const seenOf = (log) => {
    if (!seen.has(log)) seen.set(log, lastOf(turnsOf(log)));
    return seen.get(log);
  };

  const isThere = (log) => !("agenticNew" in log.dataset) || turnsOf(log).length > 0;

  const put = (log, run) => {
    const next = turnsOf(log).find((each) => positionOf(each) > positionOf(run)) ?? null;
    if (run.parentElement !== log || run.nextElementSibling !== next) log.insertBefore(run, next);
  };

  const add = (log, html) => {
    const runs = parsed(html).filter((node) => node.nodeType === Node.ELEMENT_NODE);
    const stays = !isAtEnd();
    for (const run of runs.filter((each) => !document.getElementById(each.id))) {
      run.toggleAttribute("data-agentic-aside", stays); // Do not scroll a reader who is not at the end.
      put(log, run);
      window.htmx?.process(run);
    }
    seen.set(log, Math.max(seenOf(log), lastOf(runs)));
    document.body.dispatchEvent(new CustomEvent("run-update"));
  };

  const look = async (log) => {
    if (requesting.has(log)) {
      requesting.set(log, true);
      return;
    }
    requesting.set(log, false);
    const url = `${log.dataset.agenticTurns}?after=${seenOf(log)}`;
    const response = await fetch(url, { headers: { "HX-Request": "true" } }).catch(() => null);
    if (response?.status === 200) add(log, await response.text());
    const isLate = requesting.get(log);
    requesting.delete(log);
    if (isLate) look(log);
  };

  // The reader's own turn may arrive twice, and another turn before it.

  const settle = (run) => {
    const log = run.closest(".agentic-log[data-agentic-turns]");
    if (!log || run.parentElement !== log) return;
    const twin = turnsOf(log).find((each) => each !== run && each.id === run.id);
    const isOlder = eventsIn(twin?.dataset.agenticStamp) > eventsIn(run.dataset.agenticStamp);
    if (twin) (isOlder ? run : twin).remove();
    if (!run.isConnected) return;
    const position = positionOf(run);
    if (turnsOf(log).some((each) => positionOf(each) > position)) put(log, run);
    if (position > seenOf(log) + 1) look(log);
    else seen.set(log, Math.max(seenOf(log), position));
  };

  setInterval(() => {
    if (document.hidden) return;
    for (const log of logs()) if (isThere(log) && !(log === streamed && isHealthy())) look(log);
  }, POLL_TURNS);

  // Partial messages: finished blocks stay in the page, and only changed blocks are replaced.

  const parsed = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    return [...template.content.childNodes];
  };

  const paint = (id) => {
    const draft = drafts.get(id);
    const element = document.getElementById(`run-${id}-draft`);
    const run = elementOf(id);
    if (!draft || !element || eventsIn(run.dataset.agenticStamp) > draft.sequence) return;
    const follows = run.getBoundingClientRect().bottom <= innerHeight + 60;
    const nodes = draft.blocks.flat();
    let same = 0;
    while (same < nodes.length && element.childNodes[same] === nodes[same]) same += 1;
    while (element.childNodes.length > same) element.lastChild.remove();
    element.append(...nodes.slice(same));
    element.hidden = nodes.length === 0;
    if (follows && run.offsetHeight < innerHeight) run.scrollIntoView({ block: "nearest" });
  };

  const grow = ({ run, sequence, from, blocks }) => {
    const kept = from ? (drafts.get(run)?.blocks.slice(0, from) ?? []) : [];
    drafts.set(run, { sequence, blocks: [...kept, ...blocks.map(parsed)] });
    paint(run);
  };

  // A fragment that arrives may be older or newer than the stream.

  const lengthOf = (draft) =>
    draft.blocks.flat().reduce((sum, node) => sum + node.textContent.length, 0);

  const arrived = (run) => {
    const id = idOf(run);
    const draft = drafts.get(id);
    const element = document.getElementById(`run-${id}-draft`);
    if (draft && element && lengthOf(draft) >= element.textContent.trim().length) paint(id);
    if (!run.dataset.agenticStream) drafts.delete(id);
    refresh(id);
    settle(run);
  };

  // One stream for all runs of the page.

  const close = () => {
    clearTimeout(reconnecting);
    source?.close();
    source = null;
    streamed = null;
    address = "";
    stamps.clear();
  };

  const later = () => {
    close();
    reconnecting = setTimeout(connect, pause * (0.5 + Math.random()));
    pause = Math.min(pause * 2, LONGEST_PAUSE);
  };

  const on = (name, act) => {
    const stream = source;
    stream.addEventListener(name, (event) => {
      if (stream !== source) return;
      receivedAt = performance.now();
      pause = 1000;
      act(JSON.parse(event.data));
    });
  };

  const open = (log) => {
    source = new EventSource(address);
    streamed = log;
    receivedAt = performance.now();
    source.addEventListener("open", () => {
      if (hadStream && log) look(log); // Turns that began while there was no stream.
      hadStream = true;
    });
    on("alive", () => {});
    on("draft", grow);
    on("end", close);
    on("poll", () => {
      isRefused = true;
      close();
    });
    on("run", ({ run, stamp }) => {
      stamps.set(run, stamp);
      if (elementOf(run)) refresh(run);
      else if (log) look(log);
    });
    source.addEventListener("error", (event) => {
      if (event.target === source && source.readyState === EventSource.CLOSED) later();
    });
  };

  function connect() {
    const log = logs().find(isThere);
    const runs = [...document.querySelectorAll(".agentic-run[data-agentic-stream]")];
    const others = runs.filter((run) => run.parentElement !== log).slice(-MOST_RUNS);
    if (isRefused || document.hidden || !(log || others.length)) {
      if (!log && !others.length) close();
      return;
    }
    const named = others.map((run) => `run=${idOf(run)}`).sort();
    if (log) named.push(`session=${log.id.replace("agentic-log-", "")}`);
    const wanted = `${(log ?? others[0]).dataset.agenticStream}?${named.join("&")}`;
    if (source && address === wanted) return;
    close();
    address = wanted;
    open(log);
  }

  setInterval(() => {
    if (source?.readyState === EventSource.OPEN && !isHealthy()) later();
  }, 2000);

  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(close, HIDDEN);
    else connect();
  });

  window.addEventListener("offline", close);
  window.addEventListener("online", connect);
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", connect);

  const runsIn = (node) => {
    if (node.nodeType !== Node.ELEMENT_NODE) return [];
    return node.matches(".agentic-run") ? [node] : [...node.querySelectorAll(".agentic-run")];
  };

  new MutationObserver((records) => {
    const added = records.flatMap((record) => [...record.addedNodes]).flatMap(runsIn);
    const gone = records.flatMap((record) => [...record.removedNodes]).flatMap(runsIn);
    for (const run of added) if (run.isConnected) arrived(run);
    if (added.length || gone.length) connect();
  }).observe(document.documentElement, { childList: true, subtree: true });

  const begin = () => {
    logs().forEach(seenOf);
    connect();
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
