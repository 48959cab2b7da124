// Keeps a page live and draws its charts. Everything it shows is in the page without it, too.
"use strict";
(() => {
  const EVERY_MS = 5000, SOON_MS = 1200;
  const main = document.getElementById("main");
  const live = document.getElementById("live");
  const liveText = document.getElementById("live-text");
  const { charts: chartsUrl, styleIds } = document.currentScript.dataset;
  const drawn = new Map(); // chart id -> {text, node}
  let lastText = "", isPaused = false, isLost = false, lastSeen = Date.now(), isAsking = false, soon = 0;

  document.documentElement.classList.add("scripted");
  live.hidden = false;
  document.getElementById("keys").hidden = false;

  // -- charts

  let library = null;
  function loadLibrary() {
    library ??= new Promise((resolve, reject) => {
      // Styles of maps, which it would write into the page, where that is not allowed: it leaves them out when this is there.
      for (const id of styleIds.split(" ")) {
        if (id) document.head.append(Object.assign(document.createElement("meta"), { id }));
      }
      const script = document.createElement("script");
      script.src = chartsUrl;
      script.onload = () => resolve(window.Plotly);
      script.onerror = () => { library = null; reject(new Error("the chart library cannot be loaded")); };
      document.head.append(script);
    });
    return library;
  }

  function coloured(value, styles) {
    if (typeof value === "string" && value.startsWith("--")) return styles.getPropertyValue(value).trim();
    if (Array.isArray(value)) return value.length && typeof value[0] === "object" ? value.map((each) => coloured(each, styles)) : value;
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each, styles)]));
    return value;
  }

  function layoutOf(layout, styles, node) {
    const color = (name) => styles.getPropertyValue(name).trim();
    const axis = { gridcolor: color("--grid"), linecolor: color("--edge"), zerolinecolor: color("--grid"), tickcolor: color("--edge"), automargin: true, fixedrange: true };
    const merged = {
      margin: { l: 44, r: 12, t: 6, b: 30 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 11.5, color: color("--dim") },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11.5 } }, showlegend: true,
      hovermode: "x unified", hoverlabel: { bgcolor: color("--card"), bordercolor: color("--edge"), font: { color: color("--ink"), size: 12 } },
      ...layout, height: node.clientHeight, width: node.clientWidth,
    };
    for (const name of Object.keys(merged)) {
      if (/^[xy]axis\d?$/.test(name)) {
        const own = { ...axis, ...merged[name] };
        if (own.title) own.title = { font: { size: 11.5 }, standoff: 6, ...own.title };
        merged[name] = own;
      }
    }
    return merged;
  }

  async function draw(node) {
    const id = node.dataset.chart;
    const source = main.querySelector(`script[data-of="${CSS.escape(id)}"]`);
    if (!source) return;
    const text = source.textContent;
    try {
      const Plotly = await loadLibrary();
      if (!node.isConnected || !node.clientWidth) return;
      const styles = getComputedStyle(document.documentElement);
      const chart = JSON.parse(text);
      await Plotly.react(node, coloured(chart.traces, styles), layoutOf(chart.layout, styles, node), { displayModeBar: false, responsive: false });
      drawn.set(id, { text, node });
      node.dataset.drawn = "yes";
    } catch (error) {
      node.textContent = `This chart cannot be drawn (${error.message}); its numbers are in the table below.`;
    }
  }

  const seen = "IntersectionObserver" in window
    ? new IntersectionObserver((entries) => entries.forEach((each) => { if (each.isIntersecting) { seen.unobserve(each.target); draw(each.target); } }), { rootMargin: "300px" })
    : null;

  function drawAll() {
    for (const node of main.querySelectorAll(".plot")) {
      const before = drawn.get(node.dataset.chart);
      const source = main.querySelector(`script[data-of="${CSS.escape(node.dataset.chart)}"]`);
      if (before && before.node === node) { if (source && before.text !== source.textContent) draw(node); } // drawn again in place
      else if (seen) seen.observe(node);
      else draw(node);
    }
  }

  function redraw() { for (const { node } of drawn.values()) if (node.isConnected) draw(node); }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let resizing = 0;
  window.addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(redraw, 150); });
  window.addEventListener("beforeprint", redraw);

  // -- live

  function isBusy() {
    const active = document.activeElement;
    if (active && main.contains(active) && active.matches("input:not(#filter), select, textarea")) return true;
    const selection = getSelection();
    return Boolean(selection && !selection.isCollapsed && main.contains(selection.anchorNode));
  }

  // Where the focus was: the element's own id, or what it links to.
  function keyOf(element) {
    if (!element || !main.contains(element)) return null;
    if (element.id) return `#${CSS.escape(element.id)}`;
    const href = element.getAttribute("href");
    if (href) return `a[href="${CSS.escape(href)}"]`;
    const details = element.closest("details[id]");
    return element.tagName === "SUMMARY" && details ? `#${CSS.escape(details.id)} > summary` : null;
  }

  function replace(text) {
    const fresh = new DOMParser().parseFromString(text, "text/html").body;
    const open = new Set([...main.querySelectorAll("details[open][id]")].map((each) => each.id));
    const written = new Map([...main.querySelectorAll("form input[name], form select[name]")].filter((e) => e.value !== (e.defaultValue ?? e.value) && e.closest("[id]")).map((e) => [`${e.closest("[id]").id}/${e.name}`, e.value]));
    const focus = keyOf(document.activeElement);
    const filter = document.getElementById("filter");
    const filterValue = filter ? filter.value : "", caret = filter ? filter.selectionStart : 0;
    const scrolled = new Map([...main.querySelectorAll(".scroll")].map((each, i) => [i, [each.scrollLeft, each.scrollTop]]));
    for (const each of fresh.querySelectorAll("details[id]")) if (open.has(each.id)) each.open = true;
    for (const node of fresh.querySelectorAll(".plot")) {
      const before = drawn.get(node.dataset.chart);
      if (before && before.node.isConnected) node.replaceWith(before.node);
    }
    main.replaceChildren(...fresh.childNodes);
    for (const e of main.querySelectorAll("form input[name], form select[name]")) {
      const holder = e.closest("[id]"), value = holder && written.get(`${holder.id}/${e.name}`);
      if (value !== undefined && value !== null) e.value = value;
    }
    const filterNow = document.getElementById("filter");
    if (filterNow) { filterNow.value = filterValue; prepare(); if (focus === "#filter") { filterNow.focus({ preventScroll: true }); filterNow.setSelectionRange(caret, caret); } }
    else prepare();
    if (focus && focus !== "#filter") { const found = main.querySelector(focus); if (found) found.focus({ preventScroll: true }); }
    main.querySelectorAll(".scroll").forEach((each, i) => { const at = scrolled.get(i); if (at) [each.scrollLeft, each.scrollTop] = at; });
    drawAll();
  }

  async function ask() {
    if (isPaused || isAsking || document.hidden) return;
    isAsking = true;
    try {
      const url = new URL(location.href);
      url.hash = "";
      url.searchParams.set("part", "main");
      const reply = await fetch(url, { cache: "no-cache", credentials: "same-origin", signal: AbortSignal.timeout(15000) });
      if (!reply.ok) throw new Error(String(reply.status));
      const text = await reply.text();
      isLost = false;
      lastSeen = Date.now();
      clearTimeout(soon); // something is being computed: it is shown when it is there, not with the next turn
      if (text.includes("data-pending")) soon = setTimeout(ask, SOON_MS);
      if (text !== lastText && !isBusy()) { if (lastText || text) replace(text); lastText = text; }
    } catch { isLost = true; }
    isAsking = false;
    tell();
  }

  function tell() {
    const age = Math.round((Date.now() - lastSeen) / 1000);
    live.classList.toggle("on", !isPaused && !isLost);
    live.classList.toggle("lost", isLost && !isPaused);
    live.setAttribute("aria-pressed", String(!isPaused));
    const said = isPaused ? "paused" : isLost ? `no answer for ${age} s` : age < 8 ? "live" : `${age} s ago`;
    if (liveText.textContent !== said) liveText.textContent = said;
  }

  function pause() { isPaused = !isPaused; tell(); ask(); }
  live.addEventListener("click", pause);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  setInterval(ask, EVERY_MS);
  setInterval(tell, 1000);

  // -- filter and keys

  function applyFilter() {
    const filter = document.getElementById("filter");
    if (!filter) return;
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of main.querySelectorAll("tr[data-filter]")) {
      const text = row.dataset.filter.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      left += !row.hidden;
    }
    const none = document.getElementById("none-left");
    if (none) none.hidden = left > 0 || !words.length;
  }

  function prepare() {
    const filter = document.getElementById("filter");
    if (filter) { filter.closest("label").hidden = false; applyFilter(); }
  }

  document.addEventListener("input", (event) => { if (event.target.id === "filter") applyFilter(); });
  document.addEventListener("change", (event) => { if (event.target.matches("[data-submit]")) event.target.form.requestSubmit(); });
  document.addEventListener("click", (event) => { if (event.target.id === "clear-filter") { document.getElementById("filter").value = ""; applyFilter(); } });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) {
      if (event.key === "Escape" && event.target.id === "filter") { event.target.value = ""; applyFilter(); event.target.blur(); }
      return;
    }
    if (event.key === "/") { const filter = document.getElementById("filter"); if (filter) { event.preventDefault(); filter.focus(); } }
    if (event.key === "p") pause();
  });

  prepare();
  tell();
  drawAll();
  if (main.querySelector("[data-pending]")) soon = setTimeout(ask, SOON_MS);
})();
