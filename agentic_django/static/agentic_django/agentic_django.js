// What the pages gain with JavaScript, beside htmx 2 or 4. All of them can be read without it.
(() => {
  "use strict";

  // Details stay as the reader left them when the fragment around them is replaced.

  const opened = new Map();

  document.addEventListener(
    "toggle",
    (event) => {
      const details = event.target;
      if (details.id && details.matches(".agentic details")) opened.set(details.id, details.open);
    },
    true,
  );

  const restore = (element) => {
    for (const details of element.querySelectorAll("details[id]")) {
      if (opened.has(details.id)) details.open = opened.get(details.id);
    }
  };

  // A running run says for how long, once that is worth saying.

  const started = new WeakMap();

  const duration = (seconds, units) => {
    const [h, m, s] = units.split(" ");
    if (seconds < 60) return `${seconds} ${s}`;
    const minutes = Math.floor(seconds / 60);
    if (minutes < 60) return `${minutes} ${m} ${seconds % 60} ${s}`;
    return `${Math.floor(minutes / 60)} ${h} ${minutes % 60} ${m}`;
  };

  const tick = () => {
    for (const clock of document.querySelectorAll("[data-agentic-elapsed]")) {
      if (!started.has(clock)) {
        started.set(clock, performance.now() - Number(clock.dataset.agenticElapsed) * 1000);
      }
      const seconds = Math.floor((performance.now() - started.get(clock)) / 1000);
      const text = seconds < 10 ? "" : duration(seconds, clock.dataset.agenticUnits);
      if (clock.textContent !== text) clock.textContent = text;
    }
  };

  // Ctrl+Enter sends; what was sent is cleared, and its turn comes into view.

  document.addEventListener("keydown", (event) => {
    const sends = event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing;
    if (sends && event.target.matches(".agentic-composer textarea")) {
      event.preventDefault();
      event.target.form.requestSubmit();
    }
  });

  const slotOf = (element) => {
    if (!element.matches?.(".agentic form, form.agentic")) return null;
    return element.closest(".agentic-composer, .agentic-foot, .agentic-approval")?.querySelector(".agentic-slot");
  };

  const settled = (element, status) => {
    const slot = slotOf(element);
    if (!slot) return;
    if (status >= 200 && status < 400) {
      slot.replaceChildren();
      if (element.matches(".agentic-composer")) element.reset();
    } else if (!(status >= 400 && status < 500)) {
      slot.textContent = slot.dataset.agenticUnsent;
    }
  };

  // htmx 2

  document.addEventListener("htmx:beforeSwap", (event) => {
    const { elt, requestConfig, xhr } = event.detail;
    const slot = slotOf(requestConfig?.elt ?? elt);
    if (slot && xhr.status >= 400 && xhr.status < 500) {
      const swap = { shouldSwap: true, isError: false, target: slot, swapOverride: "innerHTML" };
      Object.assign(event.detail, swap);
    }
  });

  document.addEventListener("htmx:afterRequest", (event) => {
    settled(event.detail.requestConfig?.elt ?? event.detail.elt, event.detail.xhr?.status ?? 0);
  });

  // htmx 4

  document.addEventListener("htmx:after:request", (event) => {
    const { ctx } = event.detail;
    const { status } = ctx.response;
    const slot = slotOf(ctx.sourceElement);
    if (status >= 500) ctx.swap = "none";
    else if (slot && status >= 400) Object.assign(ctx, { target: slot, swap: "innerHTML" });
    settled(ctx.sourceElement, status);
  });

  document.addEventListener("htmx:error", (event) => {
    const source = event.detail.ctx?.sourceElement;
    if (source) settled(source, 0);
  });

  // What stands around the fragment on a run's page follows it.

  const refresh = async () => {
    const headers = { Accept: "text/html" };
    const response = await fetch(location.href, { headers }).catch(() => null);
    if (!response?.ok) return;
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const part of document.querySelectorAll("[data-agentic-part]")) {
      const newer = fresh.getElementById(part.id);
      if (newer && newer.outerHTML !== part.outerHTML) part.replaceWith(newer);
    }
  };

  // Fragments that come in, whoever swaps them: before the next paint they are as they were left.

  const turns = new Set();
  let followed = "";

  for (const kind of ["wheel", "touchmove", "pointerdown"]) {
    document.addEventListener(kind, () => (followed = ""), { passive: true });
  }

  // A new turn is kept in view while it grows, until the reader moves; a long one from its start.

  const follow = (run) => {
    if (!turns.has(run.id)) followed = run.id;
    turns.add(run.id);
    const block = run.offsetHeight > innerHeight / 2 ? "start" : "nearest";
    if (run.id === followed) run.scrollIntoView({ block });
  };

  const arrived = (run) => {
    restore(run);
    tick();
    if (run.closest(".agentic-run-page")) refresh();
    follow(run);
  };

  new MutationObserver((records) => {
    for (const node of records.flatMap((record) => [...record.addedNodes])) {
      if (node.nodeType === Node.ELEMENT_NODE && node.matches(".agentic-run")) arrived(node);
    }
  }).observe(document.documentElement, { childList: true, subtree: true });

  const begin = () => {
    for (const run of document.querySelectorAll(".agentic-run")) turns.add(run.id);
    tick();
    setInterval(tick, 1000);
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
