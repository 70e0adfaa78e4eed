// Runs follow their stream: text grows as it is written, and nothing is polled meanwhile.
// Without a stream (an old browser, WSGI, a proxy in the way) htmx polls, and gives the same page.
(() => {
  "use strict";

  if (!("EventSource" in window)) return;

  const STALLED = 12000; // The server says every 5 s that it is there.
  const LOOKING = 3000; // Without a stream, turns that were begun elsewhere are looked for so often.
  const HIDDEN = 10000; // Browsers allow 6 streams to a host over HTTP/1.1, all tabs together.
  const MOST_RUNS = 100;
  const LONGEST_PAUSE = 30000;

  const stamps = new Map(); // Run to the state that the stream told of last.
  const drafts = new Map(); // Run to what is written of its next message: {sequence, blocks}.

  let source = null;
  let address = "";
  let heard = 0;
  let pause = 1000;
  let isRefused = false;
  let hadStream = false;
  let again = 0;
  let hiding = 0;

  const idOf = (run) => run.id.replace("run-container-", "");
  const elementOf = (id) => document.getElementById(`run-container-${id}`);
  const eventsIn = (stamp) => Number((stamp ?? "").split("-")[2] ?? 0);

  // Polling rests for runs of which the stream has told, while the stream is well.

  const isWell = () =>
    source?.readyState === EventSource.OPEN && performance.now() - heard < STALLED;

  const rests = (element, event) =>
    element?.matches?.(".agentic-run") &&
    event?.type !== "agentic-changed" &&
    isWell() &&
    stamps.has(idOf(element));

  document.addEventListener("htmx:beforeRequest", (event) => {
    const { elt, requestConfig } = event.detail;
    if (rests(elt, requestConfig?.triggeringEvent)) event.preventDefault();
  });

  document.addEventListener("htmx:before:request", (event) => {
    const { sourceElement, sourceEvent } = event.detail.ctx;
    if (rests(sourceElement, sourceEvent)) event.preventDefault();
  });

  // A run that changed asks for its fragment; one that is ahead of the stream does not.

  const refresh = (id) => {
    const run = elementOf(id);
    const stamp = stamps.get(id);
    const shown = run?.dataset.agenticStamp;
    if (!run || !stamp || shown === stamp || eventsIn(shown) > eventsIn(stamp)) return;
    run.dispatchEvent(new CustomEvent("agentic-changed"));
  };

  // A conversation also shows the turns that were begun elsewhere: in another tab, by a program.

  const seen = new WeakMap(); // Log to the place of the last turn of which it is known.
  const asking = new Map(); // Log to whether it is to ask once more.
  let streamed = null; // The log whose new turns the stream tells of.

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
      run.toggleAttribute("data-agentic-aside", stays); // Whoever reads elsewhere is left there.
      put(log, run);
      window.htmx?.process(run);
    }
    seen.set(log, Math.max(seenOf(log), lastOf(runs)));
    document.body.dispatchEvent(new CustomEvent("run-update"));
  };

  const look = async (log) => {
    if (asking.has(log)) {
      asking.set(log, true);
      return;
    }
    asking.set(log, false);
    const place = `${log.dataset.agenticTurns}?after=${seenOf(log)}`;
    const response = await fetch(place, { headers: { "HX-Request": "true" } }).catch(() => null);
    if (response?.status === 200) add(log, await response.text());
    const isLate = asking.get(log);
    asking.delete(log);
    if (isLate) look(log);
  };

  // A turn of the reader's own may come twice, and one from elsewhere before it.

  const settle = (run) => {
    const log = run.closest(".agentic-log[data-agentic-turns]");
    if (!log || run.parentElement !== log) return;
    const twin = turnsOf(log).find((each) => each !== run && each.id === run.id);
    const isOlder = eventsIn(twin?.dataset.agenticStamp) > eventsIn(run.dataset.agenticStamp);
    if (twin) (isOlder ? run : twin).remove();
    if (!run.isConnected) return;
    const place = positionOf(run);
    if (turnsOf(log).some((each) => positionOf(each) > place)) put(log, run);
    if (place > seenOf(log) + 1) look(log);
    else seen.set(log, Math.max(seenOf(log), place));
  };

  setInterval(() => {
    if (document.hidden) return;
    for (const log of logs()) if (isThere(log) && !(log === streamed && isWell())) look(log);
  }, LOOKING);

  // Text: finished blocks stay as they are in the page, only what changed is put in anew.

  const parsed = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    return [...template.content.childNodes];
  };

  const paint = (id) => {
    const draft = drafts.get(id);
    const place = document.getElementById(`run-${id}-draft`);
    const run = elementOf(id);
    if (!draft || !place || eventsIn(run.dataset.agenticStamp) > draft.sequence) return;
    const follows = run.getBoundingClientRect().bottom <= innerHeight + 60;
    const nodes = draft.blocks.flat();
    let same = 0;
    while (same < nodes.length && place.childNodes[same] === nodes[same]) same += 1;
    while (place.childNodes.length > same) place.lastChild.remove();
    place.append(...nodes.slice(same));
    place.hidden = nodes.length === 0;
    if (follows && run.offsetHeight < innerHeight) run.scrollIntoView({ block: "nearest" });
  };

  const grow = ({ run, sequence, from, blocks }) => {
    const kept = from ? (drafts.get(run)?.blocks.slice(0, from) ?? []) : [];
    drafts.set(run, { sequence, blocks: [...kept, ...blocks.map(parsed)] });
    paint(run);
  };

  // A fragment that comes in may be older than the stream, or newer.

  const lengthOf = (draft) =>
    draft.blocks.flat().reduce((sum, node) => sum + node.textContent.length, 0);

  const arrived = (run) => {
    const id = idOf(run);
    const draft = drafts.get(id);
    const place = document.getElementById(`run-${id}-draft`);
    if (draft && place && lengthOf(draft) >= place.textContent.trim().length) paint(id);
    if (!run.dataset.agenticStream) drafts.delete(id);
    refresh(id);
    settle(run);
  };

  // The stream: one for all runs of the page.

  const close = () => {
    clearTimeout(again);
    source?.close();
    source = null;
    streamed = null;
    address = "";
    stamps.clear();
  };

  const later = () => {
    close();
    again = setTimeout(connect, pause * (0.5 + Math.random()));
    pause = Math.min(pause * 2, LONGEST_PAUSE);
  };

  const on = (name, act) => {
    const stream = source;
    stream.addEventListener(name, (event) => {
      if (stream !== source) return;
      heard = performance.now();
      pause = 1000;
      act(JSON.parse(event.data));
    });
  };

  const open = (log) => {
    source = new EventSource(address);
    streamed = log;
    heard = performance.now();
    source.addEventListener("open", () => {
      if (hadStream && log) look(log); // What was begun while there was none.
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
    if (source?.readyState === EventSource.OPEN && !isWell()) later();
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
