// Figures of the live page: curves as SVG, with axes, intervals as bands, and values under the pointer. Every word is
// written as text: nothing here makes HTML of a string, and the page's policy would not run it.
"use strict";

const SMOOTHED_FROM = 50;
const SVG = "http://www.w3.org/2000/svg";

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
