// Live parts of a page: when the cloud says that something changed, each part
// is fetched again and put in place. Without JavaScript the pages still work.
(() => {
  "use strict";
  const parts = [...document.querySelectorAll("[data-live]")];
  const lamp = document.querySelector(".live");
  if (!parts.length || !window.EventSource) return;
  const shown = new Map();
  let busy = false, again = false;

  function show(on, text) {
    lamp.classList.toggle("on", on);
    if (lamp.textContent !== text) lamp.textContent = text;
  }

  // A button under the operator's finger, or a field with words in it, is not swapped away.
  const inUse = part => part.querySelector("button:hover, button:focus, input:focus") ||
    [...part.querySelectorAll("input:not([type=hidden])")].some(field => field.value);

  function put(part, text) {
    if (shown.get(part) === text || inUse(part)) return;
    const selection = getSelection();
    if (!selection.isCollapsed && selection.containsNode(part, true)) return;
    const links = () => [...part.querySelectorAll("a[href]")];
    const focused = links().indexOf(document.activeElement);
    const href = focused < 0 ? null : document.activeElement.getAttribute("href");
    const scrolled = [...part.querySelectorAll(".scroll")].map(box => box.scrollLeft);
    part.innerHTML = text;
    shown.set(part, text);
    part.querySelectorAll(".scroll").forEach((box, n) => { box.scrollLeft = scrolled[n] || 0; });
    if (href === null) return;
    const now = links(), same = now.filter(link => link.getAttribute("href") === href);
    (same.find(link => now.indexOf(link) >= focused) || same[0])?.focus({ preventScroll: true });
  }

  async function refresh() {
    if (document.hidden) return;
    if (busy) { again = true; return; }
    busy = true;
    try {
      for (const part of parts) {
        const answer = await fetch(part.dataset.live, { headers: { Accept: "text/html" } });
        if (answer.ok) put(part, await answer.text());
        else show(false, "out of date");
      }
    } catch (error) {
      show(false, "reconnecting"); // the stream below tells when the cloud is back
    } finally {
      busy = false;
      if (again) { again = false; setTimeout(refresh, 300); }
    }
  }

  const source = new EventSource("/console/stream");
  source.addEventListener("open", () => { show(true, "live"); refresh(); });
  source.addEventListener("error", () => show(false, "reconnecting"));
  source.addEventListener("change", refresh);
  document.addEventListener("visibilitychange", refresh);
  // "3 min ago" grows old by itself.
  setInterval(refresh, 30000);
})();
