"use strict";
(() => {
  const WEBP = "data:image/webp;base64,";
  // The normal quantile of 0.975.
  const Z = 1.959963984540054;
  const CAPTION_PX = 50, GAP_PX = 12, SMALLEST_CARD_PX = 148, SPARE_PX = 600;
  const LOGIT_CLIP = 1e-6;
  // Of the histogram: its bars, and the share of its width that is free at either end.
  const NUM_BARS = 48, MARGIN = 0.03;
  const SVG = "http://www.w3.org/2000/svg";
  const byId = (id) => document.getElementById(id);
  const collator = new Intl.Collator("en", { numeric: true });

  // --- data ---------------------------------------------------------------------------------------------------

  /** An image of the page; a row is what `_row` of page.py writes. */
  function readEntry(row, index) {
    const [name, label, score, thumbnail, overlay, picture, pictureOverlay, error] = row;
    return { index, name, label, score, thumbnail, overlay, picture, pictureOverlay, error };
  }

  function readEntries() {
    const blocks = [...document.querySelectorAll("script.entry")];
    return blocks.map((block, index) => {
      const entry = readEntry(JSON.parse(block.textContent), index);
      block.remove();
      return entry;
    });
  }

  const facts = JSON.parse(byId("facts").textContent);
  const entries = readEntries();
  const judged = entries.filter((entry) => entry.score !== null);
  const failed = entries.filter((entry) => entry.score === null);
  const isLabelled = judged.some((entry) => entry.label !== null);
  const hasUnlabelled = judged.some((entry) => entry.label === null);

  // --- decisions ----------------------------------------------------------------------------------------------

  /** The index of the first value that is not below `value`, in rising values. */
  function lowerBound(values, value) {
    let low = 0, high = values.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] < value) low = middle + 1; else high = middle;
    }
    return low;
  }

  /** The least number above a finite one. */
  function nextAbove(value) {
    if (value === 0) return Number.MIN_VALUE;
    const bits = new BigInt64Array(new Float64Array([value]).buffer);
    bits[0] += value > 0 ? 1n : -1n;
    return new Float64Array(bits.buffer)[0];
  }

  /** A threshold that parts two neighbouring scores: the middle, or the higher one where there is none. */
  function between(low, high) {
    const middle = low / 2 + high / 2;
    return middle > low ? middle : high;
  }

  const distinct = Float64Array.from(new Set(judged.map((entry) => entry.score))).sort();
  // Of each group the number of images whose score lies below distinct[k], k = 0 … K; the last one counts all.
  const below = { defective: countsBelow(1), good: countsBelow(0), unknown: countsBelow(null) };

  function countsBelow(label) {
    const counts = new Uint32Array(distinct.length + 1);
    for (const entry of judged) {
      if (entry.label === label) counts[lowerBound(distinct, entry.score) + 1] += 1;
    }
    for (let k = 1; k < counts.length; k += 1) counts[k] += counts[k - 1];
    return counts;
  }

  /** One threshold for every possible set of decisions, rising; the calibrated one stands for its own. */
  function makeStops() {
    const last = distinct.length;
    if (last === 0) return [facts.threshold];
    const stops = [distinct[0]];
    for (let k = 1; k < last; k += 1) stops.push(between(distinct[k - 1], distinct[k]));
    stops.push(nextAbove(distinct[last - 1]));
    stops[lowerBound(distinct, facts.threshold)] = facts.threshold;
    return stops;
  }

  const stops = makeStops();
  const state = { threshold: facts.threshold, place: lowerBound(distinct, facts.threshold) };
  const isCalled = (entry) => entry.score >= state.threshold;

  /** The confusion matrix at a place of the slider, and the numbers of images called defective and good. */
  function countsAt(place) {
    const last = distinct.length;
    const fn = below.defective[place], tn = below.good[place];
    const tp = below.defective[last] - fn, fp = below.good[last] - tn;
    const unknownGood = below.unknown[place];
    const called = tp + fp + below.unknown[last] - unknownGood;
    return { tp, fp, fn, tn, called, cleared: fn + tn + unknownGood };
  }

  /** Wilson's 95 % interval of a share, as in metrics.wilson_interval; null without trials. */
  function wilson(successes, trials) {
    if (trials === 0) return null;
    const share = successes / trials, scale = 2 * (trials + Z * Z);
    const centre = (2 * trials * share + Z * Z) / scale;
    const half = (Z * Math.sqrt(4 * trials * share * (1 - share) + Z * Z)) / scale;
    return { low: successes === 0 ? 0 : centre - half, high: successes === trials ? 1 : centre + half };
  }

  const ratio = (numerator, denominator) => (denominator ? numerator / denominator : null);

  function auroc() {
    const last = distinct.length, pairs = below.defective[last] * below.good[last];
    let sum = 0;
    for (let k = 0; k < last; k += 1) {
      const positive = below.defective[k + 1] - below.defective[k];
      sum += positive * (below.good[k] + 0.5 * (below.good[k + 1] - below.good[k]));
    }
    return ratio(sum, pairs);
  }

  function averagePrecision() {
    const last = distinct.length;
    let sum = 0;
    for (let k = last - 1; k >= 0; k -= 1) {
      const { tp, fp } = countsAt(k);
      if (tp + fp) sum += ((below.defective[k + 1] - below.defective[k]) * tp) / (tp + fp);
    }
    return ratio(sum, below.defective[last]);
  }

  // --- text ---------------------------------------------------------------------------------------------------

  /** A score or threshold with the digits that tell it apart from 0, 1 and its neighbours. */
  function scoreText(value) {
    const digits = value > 0.99 && value < 1 ? 7 : 4;
    return String(Number(value.toPrecision(digits)));
  }

  /** The threshold with as few digits as leave every decision as it is. */
  function shortText(threshold) {
    const place = lowerBound(distinct, threshold);
    for (let digits = 4; digits < 17; digits += 1) {
      const short = Number(threshold.toPrecision(digits));
      if (Number.isFinite(short) && lowerBound(distinct, short) === place) return String(short);
    }
    return String(threshold);
  }

  const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 2 : 1)} %`;
  const labelText = (entry) => (entry.label === null ? "no label" : `label ${entry.label ? "defective" : "good"}`);

  /** What is said of an entry's verdict, and the class that colours it. */
  function verdictOf(entry) {
    const called = isCalled(entry);
    if (entry.label === 1 && !called) return { text: "escape", kind: "escape", told: "judged good, an escape" };
    if (entry.label === 0 && called) return { text: "overkill", kind: "overkill", told: "judged defective, an overkill" };
    const text = called ? "defective" : "good";
    return { text, kind: text, told: `judged ${text}` };
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

  const places = () => Array.from({ length: distinct.length + 1 }, (_, k) => distinct.length - k);

  function drawRoc() {
    const area = auroc();
    const { chart, at } = squareChart("roc", `ROC, AUROC ${area.toFixed(4)}`, "overkill rate", "detected");
    byId("roc").dataset.value = area;
    const point = ({ tp, fp, fn, tn }) => at(fp / (fp + tn), tp / (tp + fn));
    svg("path", { class: "chance", d: `M${at(0, 0)}L${at(1, 1)}` }, chart);
    svg("path", { class: "curve", d: `M${places().map((k) => point(countsAt(k))).join("L")}` }, chart);
    const dot = svg("circle", { class: "dot", r: 5 }, chart);
    return (counts) => movePoint(dot, point(counts));
  }

  function drawPrecisionRecall() {
    const area = averagePrecision();
    const title = `Precision-recall, AP ${area.toFixed(4)}`;
    const { chart, at } = squareChart("pr", title, "detected", "precision");
    byId("pr").dataset.value = area;
    const point = ({ tp, fp, fn }) => (tp + fp ? at(tp / (tp + fn), tp / (tp + fp)) : null);
    const points = places().map((k) => point(countsAt(k))).filter(Boolean);
    // The step that average precision adds up: each precision holds back to the recall before it.
    let path = `M${at(0, 0)[0]},${points[0][1]}`;
    for (const [x, y] of points) path += `V${y}H${x}`;
    svg("path", { class: "curve", d: path }, chart);
    const dot = svg("circle", { class: "dot", r: 5 }, chart);
    return (counts) => movePoint(dot, point(counts));
  }

  function movePoint(dot, point) {
    dot.toggleAttribute("hidden", point === null);
    if (point !== null) {
      dot.setAttribute("cx", point[0]);
      dot.setAttribute("cy", point[1]);
    }
  }

  /** The axis of the histogram: logits where all scores lie in [0, 1], as in verdict.spread_scores. */
  function makeAxis() {
    const ends = [distinct[0], distinct[distinct.length - 1]];
    const isBounded = ends[0] >= 0 && ends[1] <= 1;
    const spread = (value) => {
      if (!isBounded) return value;
      const clipped = Math.min(Math.max(value, LOGIT_CLIP), 1 - LOGIT_CLIP);
      return Math.log(clipped) - Math.log1p(-clipped);
    };
    const unspread = (value) => (isBounded ? 1 / (1 + Math.exp(-value)) : value);
    const placed = [...ends, facts.threshold].map(spread);
    const low = Math.min(...placed), high = Math.max(...placed);
    // Halves, because the range of two floats need not be a float.
    const width = high / 2 - low / 2;
    const share = (value) => (width > 0 ? (spread(value) / 2 - low / 2) / width : 0.5);
    const value = (part) => unspread(low * (1 - part) + high * part);
    const inner = 1 - 2 * MARGIN;
    return { share: (score) => MARGIN + inner * share(score), value: (part) => value((part - MARGIN) / inner), isBounded };
  }

  function barHeights(axis, label) {
    const heights = new Float64Array(NUM_BARS);
    let number = 0;
    for (const entry of judged) {
      if (entry.label === label) {
        heights[Math.min(NUM_BARS - 1, Math.floor(axis.share(entry.score) * NUM_BARS))] += 1;
        number += 1;
      }
    }
    return { heights: heights.map((height) => height / Math.max(number, 1)), number };
  }

  function drawHistogram() {
    const width = 360, height = 130, axis = makeAxis();
    const chart = svg("svg", { viewBox: `0 0 ${width} ${height + 34}`, role: "img" });
    const groups = [[0, "good"], [1, "defective"], [null, "no label"]]
      .map(([label, name]) => ({ name, kind: name.replace(" ", "-"), ...barHeights(axis, label) }))
      .filter((group) => group.number);
    const highest = Math.max(...groups.map((group) => Math.max(...group.heights)));
    for (const { kind, heights } of groups) {
      let path = "";
      heights.forEach((share, k) => {
        const tall = (height * share) / highest;
        if (share) path += `M${(k * width) / NUM_BARS},${height}v${-tall}h${width / NUM_BARS - 1}v${tall}z`;
      });
      svg("path", { class: `bars ${kind}`, d: path }, chart);
    }
    svg("path", { class: "grid", d: `M0,${height}h${width}` }, chart);
    for (const part of [MARGIN, 0.265, 0.5, 0.735, 1 - MARGIN]) {
      const x = part * width, side = part < 0.1 ? "" : part > 0.9 ? " end" : " middle";
      svg("path", { class: "grid", d: `M${x},${height}v4` }, chart);
      const text = axis.isBounded ? probabilityText(axis.value(part)) : scoreText(axis.value(part));
      svgText(chart, text, { x: part < 0.1 ? 2 : part > 0.9 ? width - 2 : x, y: height + 15, class: `tick${side}` });
    }
    const name = axis.isBounded ? "score (logit axis), share of each group" : "score, share of each group";
    svgText(chart, name, { x: width / 2, y: height + 30, class: "axis middle" });
    const line = svg("line", { class: "line", y1: 0, y2: height }, chart);
    const legend = element("figcaption", {}, groups.map((group) =>
      element("span", { className: `key ${group.kind}`, textContent: `${group.name} (${group.number})` })));
    legend.append(element("span", { className: "key line", textContent: "threshold" }));
    chart.setAttribute("aria-label", "Histogram of the scores with the threshold");
    byId("histogram").replaceChildren(legend, chart);
    let isDragged = false;
    const choose = (event) => {
      const box = chart.getBoundingClientRect();
      const part = (event.clientX - box.left) / box.width;
      // Beyond the ends there is no score, whatever the logit axis has cut off.
      if (part < MARGIN) moveTo(0);
      else if (part > 1 - MARGIN) moveTo(distinct.length);
      else moveTo(lowerBound(distinct, axis.value(part)));
    };
    chart.addEventListener("pointerdown", (event) => {
      isDragged = true;
      chart.setPointerCapture(event.pointerId);
      choose(event);
    });
    chart.addEventListener("pointermove", (event) => { if (isDragged) choose(event); });
    for (const end of ["pointerup", "pointercancel"]) chart.addEventListener(end, () => { isDragged = false; });
    return () => {
      const x = Math.min(Math.max(axis.share(state.threshold), 0), 1) * width;
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    };
  }

  /** A probability in short, counted from 1 where it is near 1. */
  function probabilityText(value) {
    return value > 0.99 ? `1 - ${Number((1 - value).toPrecision(1))}` : String(Number(value.toPrecision(2)));
  }

  // --- threshold ----------------------------------------------------------------------------------------------

  const slider = byId("slider"), field = byId("threshold");
  const charts = [];

  function moveTo(place) {
    setThreshold(stops[Math.min(Math.max(place, 0), distinct.length)]);
  }

  function setThreshold(threshold, typed = false) {
    state.threshold = threshold;
    state.place = lowerBound(distinct, threshold);
    slider.value = state.place;
    if (!typed) field.value = shortText(threshold);
    showCounts();
    refresh();
  }

  function showShare(name, successes, trials, unit) {
    const output = byId(`${name}-rate`), detail = byId(`${name}-detail`), interval = wilson(successes, trials);
    output.textContent = interval ? percent(successes / trials) : "–";
    detail.textContent = interval
      ? `${successes} of ${trials} ${unit}; 95 %: ${percent(interval.low)} to ${percent(interval.high)}`
      : `no ${unit} image with a label`;
    Object.assign(output.dataset, interval ? { value: successes / trials, ...interval } : { value: "" });
  }

  function showCounts() {
    const counts = countsAt(state.place), { tp, fp, fn, tn, called, cleared } = counts;
    const total = judged.length;
    byId("counts").textContent = `${called} of ${total} images judged defective`;
    byId("num-defective").textContent = called;
    byId("num-good").textContent = cleared;
    byId("defective-detail").textContent = total ? `${percent(called / total)} of ${total} images` : "";
    byId("good-detail").textContent = total ? `${percent(cleared / total)} of ${total} images` : "";
    if (isLabelled) {
      showShare("escape", fn, tp + fn, "defective");
      showShare("overkill", fp, fp + tn, "good");
      showConfusion(counts);
      const rates = [["accuracy", ratio(tp + tn, tp + fp + fn + tn)], ["precision", ratio(tp, tp + fp)],
        ["detected", ratio(tp, tp + fn)], ["F1", ratio(2 * tp, 2 * tp + fp + fn)]];
      byId("other-rates").textContent = rates
        .map(([name, value]) => `${name} ${value === null ? "–" : value.toFixed(4)}`).join(" · ");
    }
    for (const update of charts) update(counts);
    byId("reset").disabled = state.threshold === facts.threshold;
    slider.setAttribute("aria-valuetext", `score at least ${scoreText(state.threshold)}: ${sentence(counts)}`);
  }

  function sentence({ fp, fn, called }) {
    const errors = isLabelled ? `, ${fn} escapes, ${fp} overkills` : "";
    return `${called} of ${judged.length} judged defective${errors}`;
  }

  function showConfusion(counts) {
    const names = { tp: "defects found", fn: "escapes", fp: "overkills", tn: "good passed" };
    for (const [id, name] of Object.entries(names)) {
      const cell = byId(id);
      const count = element("b", { textContent: counts[id] });
      cell.replaceChildren(count, element("span", { textContent: name }));
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
  /** All judged images in an order, equal ones by name; only the distance to the threshold has to be sorted again. */
  function inOrder(order) {
    if (order === "nearest" || !orders.has(order)) {
      const made = [...byName];
      if (order === "name-falling") made.reverse();
      else if (order !== "name") made.sort(COMPARE[order]);
      orders.set(order, made);
    }
    return orders.get(order);
  }

  const IS_OF = {
    errors: (entry) => entry.label !== null && (entry.label === 1) !== isCalled(entry),
    escapes: (entry) => entry.label === 1 && !isCalled(entry),
    overkills: (entry) => entry.label === 0 && isCalled(entry),
    correct: (entry) => entry.label !== null && (entry.label === 1) === isCalled(entry),
  };

  function isShown(entry, chosen) {
    if (chosen.label !== "" && String(entry.label ?? "unknown") !== chosen.label) return false;
    if (chosen.verdict !== "" && isCalled(entry) !== (chosen.verdict === "1")) return false;
    if (chosen.errors !== "" && !IS_OF[chosen.errors](entry)) return false;
    return entry.name.toLowerCase().includes(chosen.name);
  }

  function chosenFilters() {
    const { label, verdict, errors } = filters.elements;
    return {
      label: label.value, verdict: verdict.value, errors: errors.value,
      name: byId("search").value.trim().toLowerCase(),
    };
  }

  /** Brings the gallery up to date with threshold, filters and order. */
  function refresh() {
    const chosen = chosenFilters();
    view.entries = inOrder(byId("order").value).filter((entry) => isShown(entry, chosen));
    view.entries.forEach((entry, place) => { entry.place = place; });
    // Whoever looks at one image keeps it, wherever it has moved to.
    const isHeld = gallery.contains(document.activeElement) && view.entries.includes(view.active);
    if (!isHeld) view.active = view.entries[0] ?? null;
    const isAll = view.entries.length === judged.length;
    byId("shown").textContent = isAll
      ? `${judged.length} images` : `${view.entries.length} of ${judged.length} images`;
    byId("empty").hidden = view.entries.length > 0 || judged.length === 0;
    showChosenCell(chosen);
    layOut();
    announce();
  }

  function showChosenCell(chosen) {
    for (const cell of document.querySelectorAll("#confusion button")) {
      const isChosen = chosen.label === cell.dataset.label && chosen.verdict === cell.dataset.verdict;
      cell.setAttribute("aria-pressed", isChosen);
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
    if (entry.thumbnail) pictures.append(element("img", { src: WEBP + entry.thumbnail, alt: "", draggable: false }));
    if (entry.overlay) {
      pictures.append(element("img", { className: "map", src: WEBP + entry.overlay, alt: "", draggable: false }));
    }
    const badge = element("span", { className: "badge" });
    const label = entry.label === null ? [] : [element("span", { textContent: labelText(entry) })];
    const name = element("span", { className: "name", textContent: entry.name });
    const line = element("span", { className: "line" }, [
      element("b", { textContent: scoreText(entry.score) }), ...label]);
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

  /** Where a card lies, what its verdict is, and whether Tab reaches it. */
  function place(entry, { item, button, badge }) {
    const column = entry.place % view.columns, row = Math.floor(entry.place / view.columns);
    item.style.width = `${view.cardPx}px`;
    item.style.height = `${view.cardPx + CAPTION_PX}px`;
    item.style.transform = `translate(${column * (view.cardPx + GAP_PX)}px, ${row * rowPx()}px)`;
    item.setAttribute("aria-posinset", entry.place + 1);
    item.setAttribute("aria-setsize", view.entries.length);
    const verdict = verdictOf(entry);
    badge.textContent = verdict.text;
    button.className = `card ${verdict.kind}`;
    button.tabIndex = entry === view.active ? 0 : -1;
    button.setAttribute("aria-label",
      `${entry.name}, ${verdict.told}, ${labelText(entry)}, score ${scoreText(entry.score)}`);
  }

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
      byId("live").textContent = `Threshold ${scoreText(state.threshold)}: ${sentence(countsAt(state.place))}; ${shown}.`;
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
    const verdict = verdictOf(entry);
    inViewer = entry;
    byId("viewer-name").textContent = entry.name;
    byId("viewer-detail").textContent =
      `${verdict.told}, ${labelText(entry)}, score ${scoreText(entry.score)} (${entry.place + 1} of ${view.entries.length})`;
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

  const byName = [...judged].sort((a, b) => collator.compare(a.name, b.name) || a.index - b.index);

  function showFacts() {
    byId("title").textContent = facts.title;
    byId("summary").replaceChildren(...facts.summary.map(([name, text]) =>
      element("div", {}, [element("dt", { textContent: name }), element("dd", { textContent: text })])));
    const without = below.unknown[distinct.length];
    byId("unlabelled-note").textContent = !isLabelled
      ? "Without labels there are no escape and overkill rates: only what was judged is counted."
      : without ? `${without} images without a label are in none of the rates and curves.` : "";
    if (failed.length) {
      byId("failed").hidden = false;
      byId("failed-heading").textContent = `Not judged: ${failed.length}`;
      byId("failed-list").replaceChildren(...failed.map((entry) =>
        element("li", {}, [element("b", { textContent: entry.name }), ` ${entry.error}`])));
    }
  }

  function hideWhatLacks() {
    for (const part of document.querySelectorAll(".labelled")) part.hidden = !isLabelled;
    for (const part of document.querySelectorAll(".unknown")) part.hidden = !hasUnlabelled;
    byId("scores").hidden = judged.length === 0;
    for (const part of document.querySelectorAll(".unlabelled")) part.hidden = isLabelled;
    const last = distinct.length;
    byId("curves").hidden = !(below.defective[last] && below.good[last]);
  }

  function connectThreshold() {
    slider.max = distinct.length;
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
    byId("reset").addEventListener("click", () => setThreshold(facts.threshold));
    const share = distinct.length ? lowerBound(distinct, facts.threshold) / distinct.length : 0;
    byId("calibrated").style.left = `calc(${share} * (100% - 1.25rem) + 0.625rem)`;
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
    let isDue = false;
    window.addEventListener("scroll", () => {
      if (!isDue) requestAnimationFrame(() => { isDue = false; render(); });
      isDue = true;
    }, { passive: true });
    new ResizeObserver(layOut).observe(gallery.parentElement);
  }

  function showMaps() {
    gallery.classList.toggle("maps", byId("maps").checked);
  }

  function chooseCell(cell) {
    const wasChosen = cell.getAttribute("aria-pressed") === "true";
    const chosen = { ...(wasChosen ? { label: "", verdict: "" } : cell.dataset), errors: "" };
    for (const one of filters.querySelectorAll("input[type=radio]")) one.checked = one.value === chosen[one.name];
    refresh();
  }

  showFacts();
  hideWhatLacks();
  byId("page").hidden = false;
  if (judged.length) charts.push(drawHistogram());
  if (!byId("curves").hidden) charts.push(drawRoc(), drawPrecisionRecall());
  connectThreshold();
  connectGallery();
  connectViewer();
  setThreshold(facts.threshold);
  byId("loading").remove();
})();
