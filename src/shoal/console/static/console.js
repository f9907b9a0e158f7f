// Live parts of a page: when the cloud says that something changed, each part
// is fetched again and put in place. Without JavaScript the pages still work.
(() => {
  "use strict";
  const parts = [...document.querySelectorAll("[data-live]")];
  const lamp = document.querySelector(".live");
  if (!parts.length || !window.EventSource) return;
  let busy = false, again = false;

  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      for (const part of parts) {
        const answer = await fetch(part.dataset.live, { headers: { Accept: "text/html" } });
        if (!answer.ok) continue;
        const text = await answer.text();
        const active = document.activeElement;
        // A button under the operator's finger is not swapped away.
        if (active && part.contains(active) && active.matches("button, input, select")) continue;
        if (part.innerHTML !== text) part.innerHTML = text;
      }
    } catch (error) {
      // The stream below tells when the cloud is back.
    } finally {
      busy = false;
      if (again) { again = false; setTimeout(refresh, 300); }
    }
  }

  const source = new EventSource("/console/stream");
  source.addEventListener("open", () => { lamp.classList.add("on"); lamp.textContent = "live"; refresh(); });
  source.addEventListener("error", () => { lamp.classList.remove("on"); lamp.textContent = "reconnecting"; });
  source.addEventListener("change", refresh);
})();
