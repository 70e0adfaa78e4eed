// Enhancements of the pages, for htmx 2 and 4. The pages work without them.
(() => {
  "use strict";

  // Details keep their state when the fragment around them is replaced.

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

  // A running run shows its elapsed time after 10 seconds.

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

  // One status line announces the run that changed last. Nothing else is announced.

  const statusLine = () => {
    let line = document.querySelector("[data-agentic-status]");
    if (!line && document.querySelector(".agentic-run")) {
      line = document.createElement("p");
      line.className = "agentic-hidden";
      line.dataset.agenticStatus = "";
      line.setAttribute("role", "status");
      document.querySelector(".agentic-run").closest("main, body").append(line);
    }
    return line;
  };

  const announce = (run) => {
    const words = run.querySelector(".agentic-state-words")?.textContent.trim() ?? "";
    const line = statusLine();
    if (line && line.textContent !== words) line.textContent = words;
  };

  // Stop beside Send stops the first active run.

  const ACTIVE = ["pending", "running", "waiting"].map((s) => `[data-status="${s}"]`).join(", ");

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-agentic-stop]");
    const runs = button?.closest(".agentic-chat")?.querySelectorAll(`.agentic-run:is(${ACTIVE})`);
    if (runs?.length) document.getElementById(`${runs[0].id.replace("run-container", "run")}-stop`)?.click();
  });

  // Copy an answer or a code block as text.

  const words = () => JSON.parse(document.querySelector('meta[name="agentic-words"]').content);

  const copy = async (button, source) => {
    await navigator.clipboard.writeText(source.innerText.trim());
    const label = button.textContent;
    button.textContent = words().copied;
    setTimeout(() => (button.textContent = label), 2000);
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-agentic-copy]");
    if (!button) return;
    const selector = button.dataset.agenticCopy;
    copy(button, selector ? document.querySelector(selector) : button.parentElement.querySelector("pre"));
  });

  const equip = (element) => {
    for (const code of element.querySelectorAll("pre.agentic-code")) {
      if (code.parentElement.matches(".agentic-copied")) continue;
      const frame = document.createElement("div");
      const button = document.createElement("button");
      frame.className = "agentic-copied";
      Object.assign(button, { type: "button", className: "agentic-copy", textContent: words().copy });
      button.dataset.agenticCopy = "";
      code.replaceWith(frame);
      frame.append(code, button);
    }
  };

  // An unsent message survives a reload. It is stored for this tab only.

  const draftOf = (composer) => `agentic-draft ${composer.elements.session_key?.value ?? ""}`;

  const keep = (composer) => {
    const text = composer.elements.input.value;
    if (text) sessionStorage.setItem(draftOf(composer), text);
    else sessionStorage.removeItem(draftOf(composer));
  };

  const recall = () => {
    for (const composer of document.querySelectorAll(".agentic-composer")) {
      const { input } = composer.elements;
      input.value ||= sessionStorage.getItem(draftOf(composer)) ?? "";
    }
  };

  document.addEventListener("input", (event) => {
    const composer = event.target.closest?.(".agentic-composer");
    if (composer) keep(composer);
  });

  document.addEventListener("reset", (event) => {
    if (event.target.matches?.(".agentic-composer")) {
      sessionStorage.removeItem(draftOf(event.target));
    }
  });

  // After its first message, a new conversation gets its own URL.

  const settle = (composer) => {
    composer.querySelector(".agentic-agents")?.remove();
    const { agenticAddress } = composer.dataset;
    if (composer.closest(".agentic-app") && agenticAddress && agenticAddress !== location.pathname) {
      history.replaceState(history.state, "", agenticAddress);
    }
  };

  // Ctrl+Enter sends. A sent message is cleared, and its turn scrolls into view.

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
      if (element.matches(".agentic-composer")) {
        element.reset();
        settle(element);
      }
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

  // The parts around the fragment on a run's page are updated with it.

  const refresh = async () => {
    if (!document.querySelector("[data-agentic-part]")) return;
    const headers = { Accept: "text/html" };
    const response = await fetch(location.href, { headers }).catch(() => null);
    if (!response?.ok) return;
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const part of document.querySelectorAll("[data-agentic-part]")) {
      const newer = fresh.getElementById(part.id);
      if (newer && newer.outerHTML !== part.outerHTML) part.replaceWith(newer);
    }
  };

  // Each fragment that arrives gets its state back before the next paint.

  const turns = new Set();
  let followed = "";

  for (const kind of ["wheel", "touchmove", "pointerdown"]) {
    document.addEventListener(kind, () => (followed = ""), { passive: true });
  }

  // A new turn stays in view while it grows, until the reader scrolls. A long one stays at its start.

  const follow = (run) => {
    if (!turns.has(run.id) && !("agenticAside" in run.dataset)) followed = run.id;
    turns.add(run.id);
    const block = run.offsetHeight > innerHeight / 2 ? "start" : "nearest";
    if (run.id === followed) run.scrollIntoView({ block });
  };

  const arrived = (run) => {
    restore(run);
    equip(run);
    tick();
    announce(run);
    if (run.closest(".agentic-run-page") || !run.matches(ACTIVE)) refresh();
    follow(run);
  };

  new MutationObserver((records) => {
    for (const node of records.flatMap((record) => [...record.addedNodes])) {
      if (node.nodeType === Node.ELEMENT_NODE && node.matches(".agentic-run")) arrived(node);
    }
  }).observe(document.documentElement, { childList: true, subtree: true });

  const begin = () => {
    for (const run of document.querySelectorAll(".agentic-run")) turns.add(run.id);
    for (const element of document.querySelectorAll(".agentic")) equip(element);
    recall();
    tick();
    const last = [...document.querySelectorAll(`.agentic-run:is(${ACTIVE})`)].at(0);
    if (last) announce(last);
    if (!location.hash) [...document.querySelectorAll(".agentic-app .agentic-run")].at(-1)?.scrollIntoView({ block: "end" });
    setInterval(tick, 1000);
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
