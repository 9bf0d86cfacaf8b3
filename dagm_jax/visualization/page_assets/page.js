"use strict";
(() => {
  const WEBP = "data:image/webp;base64,";
  const CAPTION_PX = 50, GAP_PX = 12, SMALLEST_CARD_PX = 148, SPARE_PX = 600;
  const SVG = "http://www.w3.org/2000/svg";
  const byId = (id) => document.getElementById(id);
  const collator = new Intl.Collator("en", { numeric: true });

  // --- data ---------------------------------------------------------------------------------------------------

  /** An image of the page; a row is what `_row` of page.py writes. */
  function readEntry(row, index) {
    const [name, label, score, thumbnail, overlay, picture, pictureOverlay, error, text, kind] = row;
    return { index, name, label, score, thumbnail, overlay, picture, pictureOverlay, error, text, kind };
  }

  function readEntries() {
    const blocks = [...document.querySelectorAll("script.entry")];
    return blocks.map((block, index) => {
      const entry = readEntry(JSON.parse(block.textContent), index);
      block.remove();
      return entry;
    });
  }

  // What `make_facts` of page.py says of the scores and of every threshold.
  const facts = JSON.parse(byId("facts").textContent);
  const { scores, stops, below, histogram } = facts;
  const entries = readEntries();
  const scored = entries.filter((entry) => entry.score !== null);
  const failed = entries.filter((entry) => entry.score === null);
  const last = scores.length;
  const isLabelled = below.defective[last] + below.good[last] > 0;
  const hasUnlabelled = below.unknown[last] > 0;
  const kinds = [...new Set(scored.map((entry) => entry.kind))].filter(Boolean).sort(collator.compare);

  // --- decisions ----------------------------------------------------------------------------------------------

  /** The one rule; no other line compares a score with a threshold. */
  const isDefective = (score, threshold) => score >= threshold;

  const state = { threshold: stops[facts.place], place: facts.place };
  const isCalled = (entry) => isDefective(entry.score, state.threshold);

  /** How many of the distinct scores a threshold calls good. */
  function placeOf(threshold) {
    const first = scores.findIndex((score) => isDefective(score, threshold));
    return first < 0 ? last : first;
  }

  /** The confusion matrix at a place of the slider, and the numbers of images called defective and good. */
  function countsAt(place) {
    const fn = below.defective[place], tn = below.good[place], cleared = fn + tn + below.unknown[place];
    const tp = below.defective[last] - fn, fp = below.good[last] - tn;
    return { tp, fp, fn, tn, called: scored.length - cleared, cleared };
  }

  const ratio = (numerator, denominator) => (denominator ? numerator / denominator : null);

  // --- text ---------------------------------------------------------------------------------------------------

  const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 2 : 1)} %`;
  const labelText = (entry) =>
    (entry.label === null ? "no label" : `label ${entry.label ? "defective" : "good"}`) + (entry.kind && `, ${entry.kind}`);

  /** The words for an entry's prediction, and the class that colours it. */
  function predictionOf(entry) {
    const called = isCalled(entry), text = called ? "defective" : "good";
    const kind = entry.label === 1 && !called ? "escape" : entry.label === 0 && called ? "overkill" : text;
    return { kind, told: `predicted ${text}${kind === text ? "" : `, an ${kind}`}` };
  }

  function element(name, properties = {}, children = []) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  // --- charts -------------------------------------------------------------------------------------------------

  function svg(name, attributes, parent) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (parent) parent.append(made);
    return made;
  }

  function svgText(parent, text, attributes) {
    svg("text", attributes, parent).textContent = text;
  }

  /** An empty square chart of two shares; `at` gives the place of a point. */
  function squareChart(id, title, xName, yName) {
    const side = 150, left = 26, top = 8;
    const at = (x, y) => [left + side * x, top + side * (1 - y)];
    const chart = svg("svg", { viewBox: "0 0 184 196", role: "img", "aria-label": title });
    for (const share of [0, 0.5, 1]) {
      const [x, y] = at(share, share);
      svg("path", { class: "grid", d: `M${left},${y}h${side}M${x},${top}v${side}` }, chart);
      svgText(chart, String(share), { x, y: top + side + 12, class: "tick middle" });
      svgText(chart, String(share), { x: left - 4, y: y + 3, class: "tick end" });
    }
    svgText(chart, xName, { x: left + side / 2, y: top + side + 26, class: "axis middle" });
    svgText(chart, yName, { x: 8, y: top + side / 2, class: "axis middle upright" });
    byId(id).replaceChildren(element("figcaption", { textContent: title }), chart);
    return { chart, at };
  }

  /** Draws the curve that `path` makes of its points, and a dot at the threshold; `shares` are null where undefined. */
  function drawCurve({ chart, at }, shares, path) {
    const point = (counts) => { const found = shares(counts); return found && at(...found); };
    const points = stops.map((_, k) => point(countsAt(last - k))).filter(Boolean);
    svg("path", { class: "curve", d: path(points) }, chart);
    const dot = svg("circle", { class: "dot", r: 5 }, chart);
    return (counts) => {
      const place = point(counts);
      dot.toggleAttribute("hidden", !place);
      if (place) [dot.cx.baseVal.value, dot.cy.baseVal.value] = place;
    };
  }

  function drawRoc() {
    const axes = squareChart("roc", `ROC, AUROC ${facts.areas[0]}`, "overkill rate", "detected");
    svg("path", { class: "chance", d: `M${axes.at(0, 0)}L${axes.at(1, 1)}` }, axes.chart);
    const shares = ({ tp, fp, fn, tn }) => [fp / (fp + tn), tp / (tp + fn)];
    return drawCurve(axes, shares, (points) => `M${points.join("L")}`);
  }

  function drawPrecisionRecall() {
    const axes = squareChart("pr", `Precision-recall, AP ${facts.areas[1]}`, "detected", "precision");
    const shares = ({ tp, fp, fn }) => tp + fp && [tp / (tp + fn), tp / (tp + fp)];
    // The step that average precision adds up: each precision holds back to the recall before it.
    return drawCurve(axes, shares, (points) =>
      `M${axes.at(0, 0)[0]},${points[0][1]}${points.map(([x, y]) => `V${y}H${x}`).join("")}`);
  }

  function drawHistogram() {
    const width = 360, height = 130;
    const chart = svg("svg", { viewBox: `0 0 ${width} ${height + 34}`, role: "img" });
    const names = { good: "good", defective: "defective", unknown: "no label" };
    const legend = element("figcaption");
    for (const [kind, number, heights] of histogram.bars) {
      const step = width / heights.length;
      const path = heights.map((share, k) =>
        share && `M${k * step},${height}v${-height * share}h${step - 1}v${height * share}z`).filter(Boolean).join("");
      svg("path", { class: `bars ${kind}`, d: path }, chart);
      legend.append(element("span", { className: `key ${kind}`, textContent: `${names[kind]} (${number})` }));
    }
    legend.append(element("span", { className: "key line", textContent: "threshold" }));
    svg("path", { class: "grid", d: `M0,${height}h${width}` }, chart);
    histogram.ticks.forEach(([part, text], k) => {
      const x = part * width, side = ["", "middle", "middle", "middle", "end"][k];
      svg("path", { class: "grid", d: `M${x},${height}v4` }, chart);
      svgText(chart, text, { x: { "": 2, end: width - 2 }[side] ?? x, y: height + 15, class: `tick ${side}` });
    });
    svgText(chart, histogram.axis, { x: width / 2, y: height + 30, class: "axis middle" });
    const line = svg("line", { class: "line", y1: 0, y2: height }, chart);
    chart.setAttribute("aria-label", "Histogram of the scores with the threshold");
    byId("histogram").replaceChildren(legend, chart);
    const choose = (event) => {
      const box = chart.getBoundingClientRect(), part = (event.clientX - box.left) / box.width;
      const place = histogram.scorePlaces.findIndex((x) => x >= part);
      moveTo(place < 0 ? last : place);
    };
    chart.addEventListener("pointerdown", (event) => {
      chart.setPointerCapture(event.pointerId);
      choose(event);
    });
    chart.addEventListener("pointermove", (event) => {
      if (chart.hasPointerCapture(event.pointerId)) choose(event);
    });
    return () => {
      const x = histogram.stopPlaces[state.place] * width;
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    };
  }

  // --- threshold ----------------------------------------------------------------------------------------------

  const slider = byId("slider"), field = byId("threshold");
  const charts = [];

  function moveTo(place) {
    setThreshold(stops[Math.min(Math.max(place, 0), last)]);
  }

  function setThreshold(threshold, typed = false) {
    state.threshold = threshold;
    state.place = placeOf(threshold);
    slider.value = state.place;
    if (!typed) field.value = threshold;
    showCounts();
    refresh();
  }

  function showShare(name, errors, trials, unit, intervals) {
    const output = byId(`${name}-rate`), detail = byId(`${name}-detail`);
    const [low, high] = intervals[errors] ?? [];
    output.textContent = trials ? percent(errors / trials) : "–";
    detail.textContent = trials
      ? `${errors} of ${trials} ${unit}; 95 %: ${percent(low)} to ${percent(high)}` : `no ${unit} image with a label`;
  }

  function showCounts() {
    const counts = countsAt(state.place), { tp, fp, fn, tn, called, cleared } = counts;
    const total = scored.length, share = (part) => (total ? `${percent(part / total)} of ${total} images` : "");
    byId("counts").textContent = `${called} of ${total} images predicted defective`;
    byId("num-defective").textContent = called;
    byId("num-good").textContent = cleared;
    byId("defective-detail").textContent = share(called);
    byId("good-detail").textContent = share(cleared);
    if (isLabelled) {
      showShare("escape", fn, tp + fn, "defective", facts.intervals.defective);
      showShare("overkill", fp, fp + tn, "good", facts.intervals.good);
      showConfusion(counts);
      const rates = { accuracy: ratio(tp + tn, tp + fp + fn + tn), precision: ratio(tp, tp + fp),
        detected: ratio(tp, tp + fn), F1: ratio(2 * tp, 2 * tp + fp + fn) };
      byId("other-rates").textContent =
        Object.entries(rates).map(([name, value]) => `${name} ${value?.toFixed(4) ?? "–"}`).join(" · ");
    }
    for (const update of charts) update(counts);
    byId("reset").disabled = state.threshold === stops[facts.place];
    slider.setAttribute("aria-valuetext", `score at least ${state.threshold}: ${sentence(counts)}`);
  }

  function sentence({ fp, fn, called }) {
    const errors = isLabelled ? `, ${fn} escapes, ${fp} overkills` : "";
    return `${called} of ${scored.length} predicted defective${errors}`;
  }

  function showConfusion(counts) {
    const names = { tp: "defects found", fn: "escapes", fp: "overkills", tn: "good passed" };
    for (const [id, name] of Object.entries(names)) {
      const cell = byId(id);
      cell.replaceChildren(element("b", { textContent: counts[id] }), element("span", { textContent: name }));
      cell.setAttribute("aria-label", `${counts[id]} ${name}: show them`);
      cell.classList.toggle("none", counts[id] === 0);
    }
  }

  // --- gallery ------------------------------------------------------------------------------------------------

  const gallery = byId("gallery"), filters = byId("filters");
  // The cards in the page, by entry; only those near the window are there.
  const cards = new Map();
  const view = { entries: [], active: null, columns: 1, cardPx: SMALLEST_CARD_PX };

  const COMPARE = {
    falling: (a, b) => b.score - a.score,
    rising: (a, b) => a.score - b.score,
    nearest: (a, b) => distance(a) - distance(b),
  };
  const distance = (entry) => Math.abs(entry.score / 2 - state.threshold / 2);

  const orders = new Map();
  /** All images with a score in an order, equal ones by name; only the distance to the threshold has to be sorted again. */
  function inOrder(order) {
    if (order === "nearest" || !orders.has(order)) {
      const made = [...byName];
      if (order === "name-falling") made.reverse();
      else if (order !== "name") made.sort(COMPARE[order]);
      orders.set(order, made);
    }
    return orders.get(order);
  }

  function isShown(entry, chosen) {
    const called = isCalled(entry), isError = (entry.label === 1) !== called;
    const errors = entry.label === null ? [] : isError ? ["errors", called ? "overkills" : "escapes"] : ["correct"];
    return (chosen.label === "" || String(entry.label ?? "unknown") === chosen.label)
      && (chosen.prediction === "" || called === (chosen.prediction === "1"))
      && (chosen.errors === "" || errors.includes(chosen.errors))
      && (chosen.kind === "" || entry.kind === chosen.kind)
      && entry.name.toLowerCase().includes(chosen.name);
  }

  function chosenFilters() {
    const { label, prediction, errors } = filters.elements;
    const name = byId("search").value.trim().toLowerCase();
    return { label: label.value, prediction: prediction.value, errors: errors.value, kind: byId("kind").value, name };
  }

  /** Brings the gallery up to date with threshold, filters and order. */
  function refresh() {
    const chosen = chosenFilters();
    view.entries = inOrder(byId("order").value).filter((entry) => isShown(entry, chosen));
    view.entries.forEach((entry, place) => { entry.place = place; });
    // Whoever looks at one image keeps it, wherever it has moved to.
    const isHeld = gallery.contains(document.activeElement) && view.entries.includes(view.active);
    if (!isHeld) view.active = view.entries[0] ?? null;
    const number = view.entries.length, total = scored.length;
    byId("shown").textContent = number === total ? `${total} images` : `${number} of ${total} images`;
    byId("empty").hidden = number > 0 || total === 0;
    showChosenCell(chosen);
    layOut();
    announce();
  }

  function showChosenCell(chosen) {
    for (const cell of document.querySelectorAll("#confusion button")) {
      const { label, prediction } = cell.dataset;
      cell.setAttribute("aria-pressed", chosen.label === label && chosen.prediction === prediction);
    }
  }

  function layOut() {
    const width = gallery.clientWidth;
    view.columns = Math.max(1, Math.floor((width + GAP_PX) / (SMALLEST_CARD_PX + GAP_PX)));
    view.cardPx = Math.floor((width - GAP_PX * (view.columns - 1)) / view.columns);
    const rows = Math.ceil(view.entries.length / view.columns);
    gallery.style.height = `${Math.max(0, rows * rowPx() - GAP_PX)}px`;
    const shown = new Set(view.entries);
    for (const [entry, card] of cards) if (!shown.has(entry)) removeCard(entry, card);
    render();
  }

  const rowPx = () => view.cardPx + CAPTION_PX + GAP_PX;

  /** Puts the cards near the window into the page, and takes the others out. */
  function render() {
    const top = gallery.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor((-top - SPARE_PX) / rowPx())) * view.columns;
    const end = Math.max(0, Math.ceil((window.innerHeight - top + SPARE_PX) / rowPx())) * view.columns;
    const near = view.entries.slice(first, end);
    const wanted = new Set(near);
    // The one with the focus stays: without it the keyboard would fall out of the gallery.
    if (view.active) wanted.add(view.active);
    for (const [entry, card] of cards) if (!wanted.has(entry)) removeCard(entry, card);
    // In their order, which is that of a screen reader; a card that moves in the page would lose the focus.
    const ordered = [...wanted].sort((a, b) => a.place - b.place);
    let before = null;
    for (const entry of ordered) {
      const card = cards.get(entry) ?? makeCard(entry);
      place(entry, card);
      if (card.item !== document.activeElement?.parentElement && card.item.previousSibling !== before) {
        gallery.insertBefore(card.item, before ? before.nextSibling : gallery.firstChild);
      }
      before = card.item;
    }
  }

  function removeCard(entry, card) {
    card.item.remove();
    cards.delete(entry);
  }

  function makeCard(entry) {
    const pictures = element("div", { className: "picture" });
    for (const [className, file] of [["", entry.thumbnail], ["map", entry.overlay]]) {
      if (file) pictures.append(element("img", { className, src: WEBP + file, alt: "", draggable: false }));
    }
    const badge = element("span", { className: "badge" });
    const label = entry.label === null ? [] : [element("span", { textContent: labelText(entry) })];
    const name = element("span", { className: "name", textContent: entry.name });
    const line = element("span", { className: "line" }, [
      element("b", { textContent: entry.text }), ...label]);
    const button = element("button", { type: "button", className: "card", title: entry.name },
      [pictures, badge, name, line]);
    const item = element("div", { className: "item" }, [button]);
    item.setAttribute("role", "listitem");
    button.addEventListener("focus", () => activate(entry));
    button.addEventListener("click", () => openViewer(entry));
    const card = { item, button, badge };
    cards.set(entry, card);
    gallery.append(item);
    return card;
  }

  /** Where a card lies, what its prediction is, and whether Tab reaches it. */
  function place(entry, { item, button, badge }) {
    const column = entry.place % view.columns, row = Math.floor(entry.place / view.columns);
    item.style.width = `${view.cardPx}px`;
    item.style.height = `${view.cardPx + CAPTION_PX}px`;
    item.style.transform = `translate(${column * (view.cardPx + GAP_PX)}px, ${row * rowPx()}px)`;
    item.setAttribute("aria-posinset", entry.place + 1);
    item.setAttribute("aria-setsize", view.entries.length);
    const { kind } = predictionOf(entry);
    badge.textContent = kind;
    button.className = `card ${kind}`;
    button.tabIndex = entry === view.active ? 0 : -1;
    button.setAttribute("aria-label", `${entry.name}, ${describe(entry)}`);
  }

  const describe = (entry) => `${predictionOf(entry).told}, ${labelText(entry)}, score ${entry.text}`;

  function activate(entry) {
    const old = view.active;
    view.active = entry;
    for (const one of [old, entry]) {
      const card = cards.get(one);
      if (card) card.button.tabIndex = one === entry ? 0 : -1;
    }
  }

  /** Moves the focus to the image at a place of the list, and the page so that it is seen. */
  function focusPlace(placeInList) {
    const entry = view.entries[Math.min(Math.max(placeInList, 0), view.entries.length - 1)];
    if (!entry) return;
    activate(entry);
    render();
    const { button } = cards.get(entry);
    button.focus({ preventScroll: true });
    button.scrollIntoView({ block: "nearest" });
    render();
  }

  function moveFocus(event) {
    if (!view.active || event.altKey || event.ctrlKey || event.metaKey) return;
    const page = view.columns * Math.max(1, Math.floor(window.innerHeight / rowPx()));
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -view.columns, ArrowDown: view.columns,
      PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity,
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    focusPlace(view.active.place + steps[event.key]);
  }

  let announcement = 0;
  /** Tells a screen reader what is shown now, once the hand rests. */
  function announce() {
    clearTimeout(announcement);
    announcement = setTimeout(() => {
      const shown = `${view.entries.length} images shown`;
      byId("live").textContent = `Threshold ${state.threshold}: ${sentence(countsAt(state.place))}; ${shown}.`;
    }, 300);
  }

  // --- viewer -------------------------------------------------------------------------------------------------

  const viewer = byId("viewer");
  let inViewer = null;

  function openViewer(entry) {
    showInViewer(entry);
    viewer.showModal();
  }

  function showInViewer(entry) {
    inViewer = entry;
    byId("viewer-name").textContent = entry.name;
    byId("viewer-detail").textContent = `${describe(entry)} (${entry.place + 1} of ${view.entries.length})`;
    const image = byId("viewer-image"), map = byId("viewer-map");
    const source = entry.picture ?? (entry.thumbnail && WEBP + entry.thumbnail);
    image.hidden = !source;
    image.src = source;
    image.alt = entry.name;
    const overlay = entry.picture ? entry.pictureOverlay : entry.overlay && WEBP + entry.overlay;
    map.hidden = byId("viewer-shows-map").parentElement.hidden = !overlay;
    if (overlay) map.src = overlay; else map.removeAttribute("src");
    const file = byId("viewer-file");
    file.hidden = !entry.picture;
    if (entry.picture) file.href = entry.picture;
    byId("viewer-back").disabled = entry.place === 0;
    byId("viewer-next").disabled = entry.place === view.entries.length - 1;
  }

  function stepViewer(step) {
    const entry = view.entries[inViewer.place + step];
    if (entry) showInViewer(entry);
  }

  function toggleMap() {
    viewer.classList.toggle("plain", !byId("viewer-shows-map").checked);
  }

  function handleViewerKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") stepViewer(-1);
    else if (event.key === "ArrowRight") stepViewer(1);
    else if ((event.key === "m" || event.key === "M") && !byId("viewer-map").hidden) {
      byId("viewer-shows-map").checked = !byId("viewer-shows-map").checked;
      toggleMap();
    } else return;
    event.preventDefault();
  }

  function connectViewer() {
    byId("viewer-close").addEventListener("click", () => viewer.close());
    byId("viewer-back").addEventListener("click", () => stepViewer(-1));
    byId("viewer-next").addEventListener("click", () => stepViewer(1));
    byId("viewer-shows-map").addEventListener("change", toggleMap);
    viewer.addEventListener("keydown", handleViewerKey);
    viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
    // Back to the image that was looked at last, which need not be the one that opened the viewer.
    viewer.addEventListener("close", () => focusPlace(inViewer.place));
  }

  // --- start --------------------------------------------------------------------------------------------------

  const byName = [...scored].sort((a, b) => collator.compare(a.name, b.name) || a.index - b.index);

  function showFacts() {
    const without = below.unknown[last];
    byId("unlabelled-note").textContent = !isLabelled
      ? "Without labels there are no escape and overkill rates: only predictions are counted."
      : without ? `${without} images without a label are in none of the rates and curves.` : "";
    byId("failed").hidden = failed.length === 0;
    byId("failed-heading").textContent = `Without a prediction: ${failed.length}`;
    byId("failed-list").replaceChildren(...failed.map((entry) =>
      element("li", {}, [element("b", { textContent: entry.name }), ` ${entry.error}`])));
    byId("kind").append(...kinds.map((kind) => element("option", { value: kind, textContent: kind })));
    const isMissing = { ".labelled": !isLabelled, ".unlabelled": isLabelled, ".unknown": !hasUnlabelled,
      ".kinds": !kinds.length,
      "#scores": !histogram, "#curves": !facts.areas };
    for (const [selector, hidden] of Object.entries(isMissing)) {
      for (const part of document.querySelectorAll(selector)) part.hidden = hidden;
    }
  }

  function connectThreshold() {
    slider.max = last;
    slider.addEventListener("input", () => moveTo(Number(slider.value)));
    field.addEventListener("input", () => {
      // An empty or unfinished number leaves all as it is.
      if (Number.isFinite(field.valueAsNumber)) setThreshold(field.valueAsNumber, true);
    });
    field.addEventListener("keydown", (event) => {
      const step = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (step) {
        event.preventDefault();
        moveTo(state.place + step);
      }
    });
    byId("reset").addEventListener("click", () => moveTo(facts.place));
    byId("calibrated").style.left = `calc(${ratio(facts.place, last) ?? 0} * (100% - 1.25rem) + 0.625rem)`;
  }

  function connectGallery() {
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.addEventListener("change", refresh);
    byId("search").addEventListener("input", refresh);
    // The fields are empty only after the event.
    filters.addEventListener("reset", () => setTimeout(() => { showMaps(); refresh(); }));
    byId("maps").addEventListener("change", showMaps);
    gallery.addEventListener("keydown", moveFocus);
    byId("confusion").addEventListener("click", (event) => {
      const cell = event.target.closest("button");
      if (cell) chooseCell(cell);
    });
    window.addEventListener("scroll", () => requestAnimationFrame(render), { passive: true });
    new ResizeObserver(layOut).observe(gallery.parentElement);
  }

  function showMaps() {
    gallery.classList.toggle("maps", byId("maps").checked);
  }

  function chooseCell(cell) {
    const wasChosen = cell.getAttribute("aria-pressed") === "true";
    const chosen = { ...(wasChosen ? { label: "", prediction: "" } : cell.dataset), errors: "" };
    byId("kind").value = "";
    for (const one of filters.querySelectorAll("input[type=radio]")) one.checked = one.value === chosen[one.name];
    refresh();
  }

  showFacts();
  byId("page").hidden = false;
  if (histogram) charts.push(drawHistogram());
  if (facts.areas) charts.push(drawRoc(), drawPrecisionRecall());
  connectThreshold();
  connectGallery();
  connectViewer();
  moveTo(facts.place);
  byId("loading").remove();
})();
