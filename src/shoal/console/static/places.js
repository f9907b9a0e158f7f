// The map beside the list of answers. The server renders the list; this draws
// the places of the index as dots, the answers of the list as numbered marks,
// and asks again when the form or the point changes.
(() => {
  "use strict";
  const canvas = document.querySelector("canvas.map");
  const form = document.querySelector("form.ask");
  const answers = document.getElementById("answers");
  const said = document.getElementById("said");
  if (!canvas || !form) return;
  if (matchMedia("(min-width: 900px)").matches) form.querySelector("details").open = true;
  const ink = canvas.getContext("2d");
  const field = name => form.elements.namedItem(name);
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const view = { lon: 0, lat: 20, scale: 1 }; // scale: pixels per degree of longitude
  let dots = new Float32Array(), marks = [], active = -1, drawing = false;

  const NUMBERED = 30; // answers further down are plain marks until pointed at
  // Mercator, in degrees: what people expect of a map on a page.
  const LIMIT = 85.05;
  const up = lat => {
    const radians = Math.max(-LIMIT, Math.min(LIMIT, lat)) * Math.PI / 180;
    return Math.log(Math.tan(Math.PI / 4 + radians / 2)) * 180 / Math.PI;
  };
  const down = y => (2 * Math.atan(Math.exp(y * Math.PI / 180)) - Math.PI / 2) * 180 / Math.PI;
  const wrap = lon => ((lon + 540) % 360 + 360) % 360 - 180;
  const size = () => [canvas.clientWidth, canvas.clientHeight];

  function toScreen(lon, lat) {
    const [width, height] = size();
    return [width / 2 + wrap(lon - view.lon) * view.scale, height / 2 - (up(lat) - up(view.lat)) * view.scale];
  }
  function toPlace(x, y) {
    const [width, height] = size();
    return [wrap(view.lon + (x - width / 2) / view.scale), down(up(view.lat) - (y - height / 2) / view.scale)];
  }

  function fit(points) {
    const [width, height] = size();
    if (!points.length) return;
    const ys = points.map(p => up(p[1]));
    const first = points[0][0];
    const xs = points.map(p => wrap(p[0] - first)); // about the first, so that 180 degrees is no edge
    const x0 = Math.min(...xs), x1 = Math.max(...xs), y0 = Math.min(...ys), y1 = Math.max(...ys);
    view.lon = wrap(first + (x0 + x1) / 2);
    view.lat = down((y0 + y1) / 2);
    const room = 0.8;
    view.scale = Math.min(width * room / Math.max(x1 - x0, 0.01), height * room / Math.max(y1 - y0, 0.01), 20000);
    clamp();
  }
  function clamp() {
    const [width] = size();
    view.scale = Math.max(width / 360, Math.min(200000, view.scale));
    view.lat = Math.max(-80, Math.min(80, view.lat));
    view.lon = wrap(view.lon);
  }

  const point = () => {
    const lon = parseFloat(field("lon").value), lat = parseFloat(field("lat").value);
    return Math.abs(lon) <= 180 && Math.abs(lat) <= 90 ? [lon, lat] : null;
  };

  function draw() {
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => {
      drawing = false;
      const [width, height] = size(), ratio = window.devicePixelRatio || 1;
      if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
      if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
      ink.setTransform(ratio, 0, 0, ratio, 0, 0);
      ink.fillStyle = colour("--paper");
      ink.fillRect(0, 0, width, height);
      graticule(width, height);
      ink.fillStyle = colour("--edge");
      const dot = Math.max(1.5, Math.min(3, view.scale / 40));
      for (let i = 0; i < dots.length; i += 2) {
        const [x, y] = toScreen(dots[i], dots[i + 1]);
        if (x >= -3 && y >= -3 && x <= width + 3 && y <= height + 3) ink.fillRect(x, y, dot, dot);
      }
      const here = point();
      for (let i = marks.length - 1; i >= 0; i--) if (i !== active) mark(i);
      if (here) cross(...toScreen(...here));
      if (active >= 0) mark(active);
      bar(width, height);
      if (canvas.matches(":focus-visible")) aim(width / 2, height / 2);
    });
  }

  function graticule(width, height) {
    const wish = 110 / view.scale;
    const step = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60].find(s => s >= wish) || 90;
    ink.strokeStyle = colour("--line");
    ink.fillStyle = colour("--soft");
    ink.font = "11px system-ui, sans-serif";
    ink.lineWidth = 1;
    const text = value => String(Math.round(value * 1000) / 1000);
    const left = view.lon - width / 2 / view.scale;
    for (let lon = Math.ceil(left / step) * step; lon <= left + width / view.scale; lon += step) {
      const x = width / 2 + (lon - view.lon) * view.scale;
      ink.beginPath(); ink.moveTo(x, 0); ink.lineTo(x, height); ink.stroke();
      ink.fillText(text(wrap(lon)) + "°", x + 3, height - 4);
    }
    const [, low] = toPlace(0, height), [, high] = toPlace(0, 0);
    for (let lat = Math.ceil(low / step) * step; lat <= high; lat += step) {
      const y = toScreen(view.lon, lat)[1];
      ink.beginPath(); ink.moveTo(0, y); ink.lineTo(width, y); ink.stroke();
      if (y > 14 && y < height - 18) ink.fillText(text(lat) + "°", 3, y - 3);
    }
  }
  function cross(x, y) { // above the marks, open in the middle: one of them may lie on the point
    x = Math.round(x); y = Math.round(y);
    for (const [ground, width] of [["--paper", 4], ["--bad", 2]]) {
      ink.strokeStyle = colour(ground);
      ink.lineWidth = width;
      ink.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        ink.moveTo(x + 6 * dx, y + 6 * dy);
        ink.lineTo(x + 16 * dx, y + 16 * dy);
      }
      ink.stroke();
    }
  }
  function aim(x, y) { // where Enter would set the point
    ink.strokeStyle = colour("--soft");
    ink.lineWidth = 1.5;
    ink.beginPath(); ink.arc(x, y, 6, 0, 2 * Math.PI); ink.stroke();
  }
  function mark(i) {
    const [x, y] = toScreen(marks[i].lon, marks[i].lat);
    const small = i >= NUMBERED && i !== active;
    const radius = i === active ? 12 : small ? 4.5 : 9;
    ink.beginPath(); ink.arc(x, y, radius, 0, 2 * Math.PI);
    ink.fillStyle = i === active ? colour("--warn") : colour("--sea");
    ink.fill();
    ink.strokeStyle = colour("--paper"); ink.lineWidth = 1.5; ink.stroke();
    ink.fillStyle = colour("--paper");
    ink.font = "600 10px system-ui, sans-serif";
    ink.textAlign = "center"; ink.textBaseline = "middle";
    if (!small) ink.fillText(String(i + 1), x, y + 0.5);
    if (i === active) {
      ink.font = "600 12px system-ui, sans-serif";
      ink.textBaseline = "bottom";
      ink.fillStyle = colour("--ink"); ink.strokeStyle = colour("--paper"); ink.lineWidth = 3;
      ink.strokeText(marks[i].name, x, y - 14); ink.fillText(marks[i].name, x, y - 14);
    }
    ink.textAlign = "start"; ink.textBaseline = "alphabetic";
  }
  function bar(width, height) {
    const kmPerPixel = 111.195 * Math.cos(view.lat * Math.PI / 180) / view.scale;
    const wish = kmPerPixel * 110, power = 10 ** Math.floor(Math.log10(wish));
    const km = [5, 2, 1].map(f => f * power).find(s => s <= wish) || power;
    const long = km / kmPerPixel;
    ink.strokeStyle = colour("--ink"); ink.fillStyle = colour("--ink"); ink.lineWidth = 2;
    ink.beginPath(); ink.moveTo(width - long - 12, height - 22); ink.lineTo(width - 12, height - 22); ink.stroke();
    ink.font = "11px system-ui, sans-serif"; ink.textAlign = "end";
    ink.fillText(km >= 1 ? km.toLocaleString("en") + " km" : Math.round(km * 1000) + " m", width - 12, height - 26);
    ink.textAlign = "start";
  }

  function read() {
    marks = [...answers.querySelectorAll("li[data-lon]")].map(item => ({
      lon: parseFloat(item.dataset.lon), lat: parseFloat(item.dataset.lat), name: item.dataset.name, item,
    }));
    marks.forEach((one, i) => {
      one.item.addEventListener("mouseenter", () => choose(i));
      one.item.addEventListener("mouseleave", () => choose(-1));
    });
    active = -1;
  }
  function choose(i) {
    if (i === active) return;
    marks[active]?.item.classList.remove("on");
    active = i;
    marks[active]?.item.classList.add("on");
    draw();
  }

  const filled = () => new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
  let asking = 0;
  async function ask(refit) {
    const number = ++asking, words = filled();
    try {
      const answer = await fetch(form.dataset.part + "?" + words, { headers: { Accept: "text/html" } });
      if (!answer.ok) throw new Error(answer.status);
      const text = await answer.text();
      if (number !== asking) return; // a later question is under way
      answers.innerHTML = text;
      history.replaceState(null, "", form.getAttribute("action") + "?" + words);
      read();
      complain();
      said.textContent = answers.querySelector("[role=alert]") ? "" : answers.querySelector("h2, p")?.textContent ?? "";
      if (refit) show();
    } catch (error) {
      if (number !== asking) return;
      said.textContent = "The server does not answer.";
      answers.replaceChildren(Object.assign(document.createElement("p"), { className: "note", textContent: said.textContent }));
      read();
    }
    draw();
  }
  function complain() {
    const note = answers.querySelector("[role=alert]");
    form.querySelectorAll("[aria-invalid]").forEach(one => one.removeAttribute("aria-invalid"));
    if (!note) return;
    const wrong = note.dataset.field && field(note.dataset.field);
    if (wrong instanceof Element) wrong.setAttribute("aria-invalid", "true");
    note.scrollIntoView({ block: "nearest" });
  }
  function show() {
    const here = point();
    const points = marks.map(one => [one.lon, one.lat]);
    if (here) points.push(here);
    if (points.length === 1) { view.lon = points[0][0]; view.lat = points[0][1]; clamp(); } else fit(points);
  }

  form.addEventListener("submit", event => { event.preventDefault(); ask(true); });
  form.addEventListener("change", event => { if (event.target.matches("select, [type=range]")) ask(false); });

  const held = new Map();
  let moved = 0, spread = 0;
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (held.size === 1) moved = 0;
    spread = 0;
  });
  canvas.addEventListener("pointermove", event => {
    const before = held.get(event.pointerId);
    if (!before) {
      const near = marks.findIndex(one => Math.hypot(...toScreen(one.lon, one.lat).map((v, j) => v - [event.offsetX, event.offsetY][j])) < 11);
      choose(near);
      return;
    }
    held.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (held.size === 2) {
      const [a, b] = [...held.values()], now = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (spread) zoom(now / spread, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      spread = now; moved = 99;
      return;
    }
    const dx = event.offsetX - before[0], dy = event.offsetY - before[1];
    moved += Math.abs(dx) + Math.abs(dy);
    view.lon -= dx / view.scale;
    view.lat = down(up(view.lat) + dy / view.scale);
    clamp(); draw();
  });
  const release = event => {
    const was = held.delete(event.pointerId);
    if (!was || held.size || event.type === "pointercancel" || moved > 6) return;
    const [lon, lat] = toPlace(event.offsetX, event.offsetY);
    field("lon").value = lon.toFixed(5); field("lat").value = lat.toFixed(5);
    ask(false);
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  function zoom(factor, x, y) {
    const [lon, lat] = toPlace(x, y);
    view.scale *= factor; clamp();
    const [width, height] = size();
    view.lon = wrap(lon - (x - width / 2) / view.scale);
    view.lat = down(up(lat) + (y - height / 2) / view.scale);
    clamp(); draw();
  }
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
  }, { passive: false });
  const middle = () => size().map(v => v / 2);
  document.querySelectorAll("[data-zoom]").forEach(button =>
    button.addEventListener("click", () => zoom(button.dataset.zoom > 0 ? 1.6 : 1 / 1.6, ...middle())));
  canvas.addEventListener("keydown", event => {
    const step = 60 / view.scale;
    if (event.key === "ArrowLeft") view.lon -= step;
    else if (event.key === "ArrowRight") view.lon += step;
    else if (event.key === "ArrowUp") view.lat = down(up(view.lat) + step);
    else if (event.key === "ArrowDown") view.lat = down(up(view.lat) - step);
    else if (event.key === "+" || event.key === "=") return zoom(1.6, ...middle());
    else if (event.key === "-") return zoom(1 / 1.6, ...middle());
    else if (event.key === "Enter") {
      field("lon").value = view.lon.toFixed(5); field("lat").value = view.lat.toFixed(5);
      return ask(false);
    } else return;
    event.preventDefault();
    clamp(); draw();
  });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, draw);
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  read();
  const bounds = JSON.parse(canvas.dataset.bounds);
  if (marks.length) show();
  else if (bounds) fit([[bounds[0], bounds[1]], [bounds[2], bounds[3]]]);
  if (bounds && !marks.length && bounds[2] - bounds[0] > 180) { view.lon = 0; view.lat = 25; view.scale = size()[0] / 360; }
  draw();
  fetch(canvas.dataset.backdrop).then(answer => answer.arrayBuffer()).then(raw => {
    dots = new Float32Array(raw);
    draw();
  }).catch(() => draw());
})();
