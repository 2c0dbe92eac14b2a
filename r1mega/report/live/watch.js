// The live page of `r1mega watch`. Asks for JSON, and writes every word of it as text: nothing here makes HTML of a
// string, and the page's policy would not run it.
"use strict";

const POLL_MS = 2000, CATCHING_UP_MS = 150, HIDDEN_MS = 15000, PATIENCE_MS = 30000;
const SMOOTHED_FROM = 50, MOST_ROWS = 12;
const SVG = "http://www.w3.org/2000/svg";
const feed = { stage: "", version: "", at: 0, figures: new Map() };
let answersId = "", wanted = "", lastHeard = Date.now();

const at = (id) => document.getElementById(id);

function made(tag, text = "", kind = "") {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

function drawn(tag, attributes, text = "") {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  return node;
}

// ---- figures as people read them ---------------------------------------------------------------------------

function figure(value) {
  if (!Number.isFinite(value)) return "";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e9 || size < 0.001) return value.toExponential(1);
  if (size >= 10000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(4)));
}

function span(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "";
  const s = Math.max(0, Math.round(seconds));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function moment(seconds) {
  if (!seconds) return "";
  return `${new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

// ---- curves ------------------------------------------------------------------------------------------------

function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  if (last < first) return [low, high];
  const every = Math.max(1, Math.ceil((last - first + 1) / 5)), found = [];
  for (let e = first; e <= last; e += every) found.push(10 ** e);
  return found;
}

function scaleOf(values, { log, share }, from, to) {
  let low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  if (share) [low, high] = [0, 1];
  if (log) {
    low = Math.max(low, high * 1e-6);
    if (low === high) [low, high] = [low / 2, high * 2];
    const [a, b] = [Math.log(low), Math.log(high)];
    return { ticks: logTicks(low, high), put: (v) => from + ((Math.log(Math.max(v, low)) - a) / (b - a)) * (to - from) };
  }
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  else if (!share) [low, high] = [low - (high - low) * 0.04, high + (high - low) * 0.04];
  return { ticks: ticks(low, high, 4), put: (v) => from + ((v - low) / (high - low)) * (to - from) };
}

function pathOf(points, x, y) {
  return points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
}

function bandOf(points, x, y) {
  const there = points.map((p) => `${x(p[0]).toFixed(1)} ${y(p[3] ?? p[1]).toFixed(1)}`);
  const back = points.slice().reverse().map((p) => `${x(p[0]).toFixed(1)} ${y(p[2] ?? p[1]).toFixed(1)}`);
  return `M${there.join("L")}L${back.join("L")}Z`;
}

function smoothed(points) { // a mean over a twentieth of the curve, around each point
  const half = Math.max(2, Math.round(points.length / 40)), sums = [0];
  for (const p of points) sums.push(sums[sums.length - 1] + p[1]);
  return points.map((p, i) => {
    const from = Math.max(0, i - half), to = Math.min(points.length, i + half + 1);
    return [p[0], (sums[to] - sums[from]) / (to - from)];
  });
}

class Plot {
  constructor(told) {
    this.told = told;
    this.points = new Map();
    this.node = made("figure");
    this.legend = made("div", "", "legend");
    this.svg = drawn("svg", { role: "img", "aria-label": told.title });
    this.node.append(made("h3", told.title), made("p", told.unit, "unit"), this.legend, this.svg, made("figcaption", told.says));
    this.svg.addEventListener("pointermove", (event) => this.draw(event.clientX - this.svg.getBoundingClientRect().left));
    this.svg.addEventListener("pointerleave", () => this.draw());
  }

  take(told) {
    let changed = false;
    this.told = told;
    for (const curve of told.curves) {
      const points = this.points.get(curve.id) ?? [];
      changed ||= curve.points.length > 0 || !this.points.has(curve.id);
      points.length = Math.min(points.length, curve.from);
      for (const point of curve.points) points.push(point);
      this.points.set(curve.id, points);
    }
    if (changed) this.draw();
  }

  draw(pointer) {
    const width = this.svg.clientWidth || 400, height = this.svg.clientHeight || 200;
    const right = width - 8, top = 6, bottom = height - 18, { log, share } = this.told;
    const usable = (p) => p[1] !== null && (!log || p[1] > 0);
    const curves = this.told.curves.map((c) => ({ ...c, points: (this.points.get(c.id) ?? []).filter(usable) }));
    const all = curves.flatMap((c) => c.points);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren();
    if (!all.length) {
      this.legend.replaceChildren(...curves.map((c, i) => made("span", c.label, `k${i % 8}`)));
      return;
    }
    const values = all.flatMap((p) => (p.length > 2 ? [p[1], p[2], p[3]] : [p[1]])).filter((v) => !log || v > 0);
    const y = scaleOf(values, { log, share }, bottom, top);
    const left = 10 + 6.3 * Math.max(...y.ticks.map((v) => figure(v).length));
    const x = scaleOf(all.map((p) => p[0]), { log: false, share: false }, left, right);
    this.axes(x, y, { left, right, top, bottom });
    curves.forEach((curve, i) => this.line(curve, i, x.put, y.put));
    this.tell(curves, x.put, pointer === undefined ? undefined : Math.max(left, Math.min(right, pointer)), { top, bottom });
  }

  axes(x, y, { left, right, top, bottom }) {
    for (const value of y.ticks) {
      const h = y.put(value);
      if (h < top - 1 || h > bottom + 1) continue;
      this.svg.append(drawn("line", { class: "rule", x1: left, x2: right, y1: h, y2: h }));
      this.svg.append(drawn("text", { x: left - 4, y: h + 4, "text-anchor": "end" }, figure(value)));
    }
    for (const value of x.ticks.filter(Number.isInteger)) {
      const w = x.put(value), anchor = w > right - 20 ? "end" : w < left + 10 ? "start" : "middle";
      this.svg.append(drawn("text", { x: w, y: bottom + 14, "text-anchor": anchor }, value.toLocaleString("en-US")));
    }
  }

  line(curve, i, x, y) {
    const kind = `k${i % 8}`, { points } = curve;
    if (!points.length) return;
    if (points.some((p) => p.length > 2)) this.svg.append(drawn("path", { class: `band ${kind}`, d: bandOf(points, x, y) }));
    const smooth = points.length >= SMOOTHED_FROM && !curve.bars;
    this.svg.append(drawn("path", { class: `${kind}${smooth ? " pale" : ""}${curve.dashed ? " dashed" : ""}`, d: pathOf(points, x, y) }));
    if (smooth) this.svg.append(drawn("path", { class: kind, d: pathOf(smoothed(points), x, y) }));
    if (points.length <= 12) for (const p of points) this.svg.append(drawn("circle", { class: kind, cx: x(p[0]), cy: y(p[1]), r: 2.4 }));
  }

  tell(curves, x, pointer, { top, bottom }) {
    const words = curves.map((curve, i) => {
      const { points } = curve;
      let point = points[points.length - 1];
      if (pointer !== undefined)
        for (const p of points) if (Math.abs(x(p[0]) - pointer) < Math.abs(x(point[0]) - pointer)) point = p;
      const bars = point && curve.bars && point.length > 2 ? ` (${figure(point[2])} to ${figure(point[3])})` : "";
      const step = point && pointer !== undefined ? ` @ ${point[0].toLocaleString("en-US")}` : "";
      return made("span", point ? `${curve.label} ${figure(point[1])}${bars}${step}` : curve.label, `k${i % 8}`);
    });
    this.legend.replaceChildren(...words);
    if (pointer !== undefined) this.svg.append(drawn("line", { class: "cross", x1: pointer, x2: pointer, y1: top, y2: bottom }));
  }
}

function showCurves(told) {
  if (told.whole || !told.version) feed.figures.clear();
  feed.version = told.version;
  feed.at = told.at;
  const places = { main: at("main"), rest: at("rest").querySelector(".grid") };
  const nodes = { main: [], rest: [] };
  for (const one of told.figures) {
    if (!feed.figures.has(one.id)) feed.figures.set(one.id, new Plot(one));
    nodes[one.main ? "main" : "rest"].push([feed.figures.get(one.id), one]);
  }
  for (const name of ["main", "rest"]) {
    const now = nodes[name].map(([plot]) => plot.node);
    if (now.length !== places[name].children.length || now.some((node, i) => node !== places[name].children[i])) places[name].replaceChildren(...now);
    for (const [plot, one] of nodes[name]) plot.take(one);
  }
  at("rest").hidden = !nodes.rest.length;
}

// ---- words -------------------------------------------------------------------------------------------------

function listed(id, texts) {
  at(id).hidden = !texts.length;
  at(id).querySelector("ul").replaceChildren(...texts.map((text) => made("li", text)));
}

function table(id, headings, rows) {
  at(id).hidden = !rows.length;
  const head = made("tr"), left = rows.length - MOST_ROWS;
  head.append(...headings.map((text) => made("th", text)));
  const body = rows.slice(0, MOST_ROWS).map(({ kind, cells }) => {
    const row = made("tr", "", kind);
    row.append(...cells.map((text, i) => made("td", text, i === 0 ? "name" : "")));
    return row;
  });
  if (left > 0) {
    const more = made("tr");
    more.append(made("td", `and ${left} more`));
    body.push(more);
  }
  at(id).querySelector("table").replaceChildren(head, ...body);
}

function showStages(status, shown) {
  at("stages").hidden = !status.chain;
  const buttons = status.stages.map((stage) => {
    const step = stage.state === "running" && stage.step !== null ? ` ${stage.step}${stage.num_steps ? `/${stage.num_steps}` : ""}` : "";
    const button = made("button", stage.name + step, stage.state);
    button.type = "button";
    button.title = `${stage.kind || "to come"}: ${stage.state}`;
    button.setAttribute("aria-pressed", String(stage.name === shown));
    button.addEventListener("click", () => { wanted = stage.name === status.current ? "" : stage.name; look(); });
    return button;
  });
  if (status.chain) at("stages").replaceChildren(...buttons);
}

function showWhere(status, stage) {
  const parts = [];
  if (stage.step !== null) parts.push(`step ${stage.step.toLocaleString("en-US")}${stage.num_steps ? ` of ${stage.num_steps.toLocaleString("en-US")}` : ""}`);
  if (stage.state === "running") {
    for (const phase of new Set(stage.ranks.map((rank) => rank.phase).filter((name) => name && name !== "ended"))) {
      const since = Math.min(...stage.ranks.filter((rank) => rank.phase === phase).map((rank) => rank.since));
      parts.push(`${phase} for ${span(status.time - since)}`);
    }
    if (stage.seconds_left !== null) parts.push(`about ${span(stage.seconds_left)} of steps left`);
  }
  if (stage.saved_step !== null && stage.state !== "done") parts.push(`saved at step ${stage.saved_step.toLocaleString("en-US")}`);
  if (status.chain) parts.unshift(`${stage.name} (${stage.kind || "to come"})`);
  else if (stage.kind) parts.unshift(stage.kind);
  at("where").textContent = parts.join(" · ");
  at("share").hidden = stage.share === null || stage.state === "done";
  if (stage.share !== null) at("share").value = stage.share;
  document.title = `${stage.share !== null ? `${Math.floor(stage.share * 100)}% · ` : ""}${status.state} · ${stage.name}`;
}

function tile(what, value, more = "") {
  const node = made("div", "", "tile");
  node.append(made("div", what, "what"), made("div", value, "value"));
  if (more) node.append(made("div", more, "more"));
  return node;
}

function showTiles(status, stage) {
  const tiles = Object.entries(stage.figures).map(([name, told]) => tile(name, figure(told.value), "mean" in told
    ? `mean of ${told.num}: ${figure(told.mean)} (${figure(told.low)} to ${figure(told.high)})` : ""));
  if ("value" in stage.held_out) tiles.splice(1, 0, tile("held out, right", `${(100 * stage.held_out.value).toFixed(1)}%`,
    "low" in stage.held_out ? `${(100 * stage.held_out.low).toFixed(1)} to ${(100 * stage.held_out.high).toFixed(1)}%` : ""));
  if (stage.seconds_a_step !== null) tiles.push(tile("a step", `${figure(stage.seconds_a_step)} s`));
  if (stage.last_sign_of_life && stage.state === "running") tiles.push(tile("last sign of life", `${span(status.time - stage.last_sign_of_life)} ago`));
  at("newest").replaceChildren(...tiles);
}

function showWords(view) {
  const { status } = view, stage = status.stages.find((one) => one.name === view.stage);
  at("name").textContent = status.run_dir;
  at("badge").textContent = status.state;
  at("badge").className = `badge ${status.state}`;
  at("why").textContent = status.why;
  showStages(status, view.stage);
  at("where").textContent = "";
  at("newest").replaceChildren();
  if (stage) showWhere(status, stage), showTiles(status, stage);
  listed("advice", [...status.advice.map((a) => `${a.what}: ${a.text}`), ...status.faults, ...(view.feed?.faults ?? [])]);
  listed("waits", status.waits_for);
  const ranks = stage && stage.state === "running" ? stage.ranks : [];
  table("ranks", ["rank", "host", "phase", "for", "step", "beat"], ranks.map((r) => ({
    kind: status.time - r.time > 60 ? "alert" : "",
    cells: [String(r.rank), r.host, r.phase, span(status.time - r.since), r.step === null ? "" : String(r.step), `${span(status.time - r.time)} ago`],
  })));
  table("happened", ["what", "times", "last", "step", ""], status.happened.map((h) => ({
    kind: h.level, cells: [h.kind, `${h.count} ×`, moment(h.last), h.step === null ? "" : `step ${h.step}`, (h.where ? `${h.where}: ` : "") + h.text],
  })));
  table("said", ["log", "times", "last", ""], status.logs_say.map((s) => ({
    kind: s.level, cells: [s.file.split("/").pop(), `${s.count} ×`, moment(s.last), s.text],
  })));
  table("logs", ["log", "size", "written"], status.logs.map((l) => ({
    kind: "", cells: [l.path, `${Math.ceil(l.bytes / 1024).toLocaleString("en-US")} KiB`, moment(l.written)],
  })));
  const behind = view.feed && view.feed.behind ? `, ${Math.ceil(view.feed.behind / 2 ** 20)} MiB of metrics to read` : "";
  const back = view.feed && view.feed.rollbacks ? `, steps went back ${view.feed.rollbacks} times` : "";
  at("footer").textContent = `read ${view.read}${behind}${back}`;
}

function pieces(parent, told) {
  for (const [kind, text] of told) parent.append(made("span", text, kind));
  return parent;
}

function showAnswers(told) {
  if (!told || told.same) return;
  answersId = told.id;
  at("answers").hidden = !told.rows.length;
  const nodes = told.rows.map((row) => {
    const node = made("article", "", `answer ${row.verdict.replace(" ", "-")}`);
    const says = pieces(made("p", `${row.verdict}, after step ${row.step} · `, "says"), row.says);
    node.append(pieces(made("p", "", "question"), row.question), pieces(made("pre"), row.text), says);
    return node;
  });
  at("answers").querySelector(".answers").replaceChildren(...nodes);
}

// ---- asking ------------------------------------------------------------------------------------------------

let timer = 0, asking = false, again = false;

async function look() {
  clearTimeout(timer);
  if (asking) { again = true; return; }
  asking = true;
  let wait = document.hidden ? HIDDEN_MS : POLL_MS;
  try {
    const query = new URLSearchParams({ stage: wanted, version: feed.version, at: String(feed.at), answers: answersId });
    const answer = await fetch(`state.json?${query}`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    const view = await answer.json();
    if (view.fault) throw new Error(view.fault);
    lastHeard = Date.now();
    at("lost").hidden = true;
    showWords(view);
    if (view.feed) showCurves(view.feed);
    showAnswers(view.answers);
    if (view.feed && view.feed.behind) wait = CATCHING_UP_MS;
    document.documentElement.dataset.read = String(Number(document.documentElement.dataset.read ?? 0) + 1);
  } catch (error) {
    at("lost").hidden = false;
    at("lost").textContent = `r1mega watch has not answered for ${span((Date.now() - lastHeard) / 1000)}: ${error.message}`;
  }
  asking = false;
  if (again) { again = false; wait = 0; }
  timer = setTimeout(look, wait);
}

let resizing = 0;
window.addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => { for (const plot of feed.figures.values()) plot.draw(); }, 100);
});
at("rest").addEventListener("toggle", () => { for (const plot of feed.figures.values()) plot.draw(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
look();
