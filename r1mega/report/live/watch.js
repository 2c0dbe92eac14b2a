// The live page of `r1mega watch`. Asks for JSON, and writes every word of it as text: nothing here makes HTML of a
// string, and the page's policy would not run it.
"use strict";

const POLL_MS = 2000, CATCHING_UP_MS = 150, HIDDEN_MS = 15000, PATIENCE_MS = 30000;
const MOST_ROWS = 12;
const feed = { stage: "", version: "", at: 0, figures: new Map() };
let answersId = "", wanted = "", lastHeard = Date.now();

const at = (id) => document.getElementById(id);

// ---- curves ------------------------------------------------------------------------------------------------

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
