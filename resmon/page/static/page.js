// The page: what is shown stands in the address, what it is comes from /api, again and again as long as somebody looks.
// Texts of runs reach the document as text only; figures come ready made and are escaped where they are made.

const LIVE = 1500, OVER = 8000, LISTED = 3000, RETRY = 3000; // milliseconds between two questions
const NARROW = 720; // pixels up to which figures have small margins
const NEWEST = 500; // steps
const BAD = new Set(["nonfinite", "failed", "out_of_memory", "shape_mismatch", "killed", "stalled", "unreadable"]);
const STATES = ["run", "quantity", "from", "to", "newest", "at", "block", "with"];

const $ = (name, within = document) => within.querySelector(`[data-${name}]`);
const make = (tag, { text, ...properties } = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) element.textContent = text;
  element.append(...children.filter(Boolean));
  return element;
};
const whole = new Intl.NumberFormat("en");
const number = (value) => {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  if (value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(3)));
};
const span = (seconds) => {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= length) return `${Math.round(seconds / length)} ${unit}`;
  return `${Math.max(0, Math.round(seconds))} s`;
};

let state = {}; // of the address
let tag = ""; // of the newest answer
let answer = null;
let clock = 0; // seconds that the agent's clock is ahead of the browser's
let timer = 0;
let asking = null; // the question under way
let last = 0; // when an answer came
let listed = 50;
let plotting = null; // the figures that are being drawn

const ago = (time) => `${span(Date.now() / 1000 + clock - time)} ago`;
const moment = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

// -- the address -----------------------------------------------------------------------------------------------------------

const readState = () => {
  const query = new URLSearchParams(location.search);
  state = Object.fromEntries(STATES.filter((name) => query.get(name)).map((name) => [name, query.get(name)]));
};
const address = (changes = {}) => {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries({ ...state, ...changes })) if (value !== "" && value !== null && value !== undefined) query.set(name, value);
  const text = query.toString();
  return text ? `/?${text}` : "/";
};
const go = (changes, { replace = false } = {}) => {
  const to = address(changes);
  if (to === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", to);
  arrive();
};
const arrive = () => {
  const before = state.run;
  readState();
  tag = "";
  if (state.run !== before) { answer = null; clear(); scrollTo(0, 0); }
  ask();
};

// -- questions -------------------------------------------------------------------------------------------------------------

const question = () => {
  if (!state.run) return `/api/runs?limit=${listed}&match=${encodeURIComponent($("match").value)}`;
  const { run, ...rest } = state;
  const query = new URLSearchParams({ id: run, ...rest });
  if (innerWidth <= NARROW) query.set("narrow", "1");
  return `/api/run?${query}`;
};

const ask = async () => {
  clearTimeout(timer);
  asking?.abort();
  if (document.hidden) return;
  const mine = asking = new AbortController(), asked = question();
  let next = RETRY;
  try {
    const response = await fetch(asked, { headers: tag ? { "if-none-match": tag } : {}, cache: "no-store", signal: mine.signal });
    const now = Number(response.headers.get("x-now"));
    if (now) clock = now - Date.now() / 1000;
    last = Date.now();
    if (response.status === 404 && state.run) {
      const { error } = await response.json();
      banner(answer ? `This run is gone: ${error}. What you see is what was read before.` : `There is nothing to show: ${error}.`);
      connection("over", "the run is gone");
      if (!answer) { show("run"); $("tools").hidden = true; $("name").textContent = state.run.replace(/~[0-9a-f]+(@\d+)?$/, ""); }
    } else if (response.ok || response.status === 304) {
      banner("");
      if (response.status === 200) {
        const content = await response.json();
        if (mine !== asking) return;
        tag = response.headers.get("etag") ?? "";
        answer = content;
        if (state.run) showRun(content); else showRuns(content);
      }
      ages();
      const lives = state.run && (answer.run.lives || answer.other?.lives);
      connection(!state.run || lives ? "live" : "over", !state.run || lives ? "live" : "the run is over");
      next = asked !== question() ? 0 : !state.run ? LISTED : lives ? LIVE : OVER;
    } else {
      throw new Error(`it answered ${response.status}`);
    }
  } catch (error) {
    if (mine.signal.aborted) return;
    connection("gone", "no answer");
    banner(`The agent does not answer (${error.message})${last ? `; what you see is ${span((Date.now() - last) / 1000)} old` : ""}. Trying again.`);
  }
  timer = setTimeout(ask, next);
};

const connection = (kind, text) => {
  const element = $("connection");
  element.parentElement.dataset.state = kind;
  if (element.textContent !== text) element.textContent = text;
};
const banner = (text) => {
  const element = $("banner");
  element.hidden = !text;
  if (element.textContent !== text) element.textContent = text;
};
const show = (view) => {
  for (const section of document.querySelectorAll("[data-view]")) section.hidden = section.dataset.view !== view;
  $("all").hidden = view === "runs";
};
const chip = (element, outcome) => {
  element.textContent = outcome.replaceAll("_", " ");
  element.className = `chip ${outcome === "running" ? "good" : BAD.has(outcome) ? "bad" : ""}`;
};
const ages = () => {
  for (const element of document.querySelectorAll("[data-time]")) {
    const time = Number(element.dataset.time), at = moment.format(time * 1000);
    element.textContent = `${element.dataset.before ?? ""}${"exact" in element.dataset ? `${at}, ` : ""}${ago(time)}`;
    if (element.title !== at) element.title = at;
  }
};
const follow = (event) => { // a link of ours goes without a reload, but for who wants it elsewhere
  const link = event.target.closest("a[data-local], a[data-home]");
  if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  history.pushState(null, "", link.getAttribute("href"));
  arrive();
  document.getElementById("main").focus({ preventScroll: true });
};

// -- the runs --------------------------------------------------------------------------------------------------------------

const showRuns = ({ runs, total, version }) => {
  show("runs");
  document.title = "resmon";
  const lines = runs.map((run) => {
    const line = make("a", { className: "run", href: `/?run=${encodeURIComponent(run.id)}` },
      make("span", { className: "name", text: run.name }, make("span", { className: "model", text: `${run.model}${run.attempt > 1 ? `, attempt ${run.attempt}` : ""}` })),
      make("span", { className: "chip" }),
      make("span", { className: "value", text: whole.format(run.steps) }, make("span", { className: "label", text: "steps" })),
      make("span", { className: "value", text: number(run.loss) }, make("span", { className: "label", text: "loss" })),
      make("span", { className: "value blocks", text: whole.format(run.blocks) }, make("span", { className: "label", text: "blocks" })),
      make("span", { className: "value age" }),
      (run.incident || run.finding) && broke(run),
    );
    line.dataset.local = "";
    line.dataset.key = run.id;
    line.setAttribute("role", "listitem");
    line.children[5].dataset.time = run.newest;
    chip(line.children[1], run.outcome);
    return line;
  });
  const focused = document.activeElement?.dataset?.key;
  $("runs").replaceChildren(...lines);
  if (focused) lines.find((line) => line.dataset.key === focused)?.focus({ preventScroll: true });
  $("count").textContent = total ? `${whole.format(total)} ${total === 1 ? "run" : "runs"}` : "";
  $("more").hidden = runs.length >= total;
  $("empty").hidden = total > 0;
  $("empty").textContent = $("match").value
    ? "No run has that in its name."
    : "No run has been recorded on this machine since the agent is here. A script that calls resmon.watch makes one; so does: resmon demo";
  $("footer").textContent = `resmon ${version}. Read-only; nothing on this page comes from elsewhere.`;
};

const broke = ({ incident, finding, findings, severity }) => { // what is wrong: what broke it, else what was found and is not over
  const more = findings - (incident ? 0 : 1), found = incident ? "finding" : "more";
  const text = `${incident || finding}${more > 0 ? ` (and ${more} ${found}${incident && more > 1 ? "s" : ""})` : ""}`;
  return make("span", { className: `broke ${incident || severity === "page" ? "" : "ticket"}`, text });
};

// -- a run -----------------------------------------------------------------------------------------------------------------

const clear = () => {
  plotting = null;
  for (const figure of document.querySelectorAll("figure .plot")) Plotly.purge(figure);
  $("figures").replaceChildren();
  $("trouble").replaceChildren();
  $("facts").hidden = true;
  $("tools").hidden = false;
  $("line").replaceChildren();
  $("name").textContent = "";
  $("outcome").textContent = "";
  $("outcome").className = "";
};

const showRun = (content) => {
  show("run");
  const { run, other } = content;
  document.title = `${run.title}${other ? ` and ${other.title}` : ""} · resmon`;
  $("name").textContent = other ? `${run.title} beside ${other.title}` : run.title;
  $("tools").hidden = false;
  chip($("outcome"), run.outcome);
  if (other) $("outcome").textContent += ` beside ${other.outcome.replaceAll("_", " ")}`;
  facts(run, content.attempts);
  trouble(content);
  tools(content);
  figures(content);
  environment(run, other);
};

const facts = (run, attempts) => {
  const shown = [
    ["step", whole.format(run.steps)], ["loss", number(run.loss)], ["blocks", whole.format(run.blocks)], ["model", run.model],
    attempts.length > 1 && ["attempt", `${run.attempt} of ${attempts[0].number}`],
    run.ranks > 1 && ["ranks", run.ranks],
    run.skipped > 0 && ["damaged rows left out", whole.format(run.skipped)],
  ].filter((fact) => fact && fact[1] !== "");
  const newest = make("span");
  newest.dataset.time = run.newest;
  newest.dataset.before = "newest step ";
  const began = make("span");
  if (run.started) { began.dataset.time = run.started; began.dataset.before = "began "; }
  $("line").replaceChildren(...shown.map(([name, value]) => make("span", {}, `${name} `, make("b", { text: value }))), began, newest, ...(run.lives ? [] : [postmortem(run)]));
};

const when = (time, before = "") => {
  const element = make("span");
  Object.assign(element.dataset, { time, before, exact: "" });
  return element;
};
const postmortem = (run) => make("a", { text: "post-mortem", href: `/postmortem?id=${encodeURIComponent(run.id)}`, target: "_blank" });
const runbook = (name) => name && make("a", { text: `runbook: ${name}`, href: `/runbooks/${name}`, target: "_blank" });

const trouble = (content) => { // of two runs, each one's under its name
  const place = $("trouble");
  const wasOpen = [...place.querySelectorAll("details")].map((details) => details.open);
  const runs = [content.run, content.other].filter(Boolean);
  place.replaceChildren(...runs.flatMap((run) => {
    const told = ofRun(run, content);
    return runs.length > 1 && told.length ? [make("h2", { className: "whose", text: run.title }), ...told] : told;
  }));
  [...place.querySelectorAll("details")].forEach((details, i) => { if (wasOpen[i]) details.open = true; });
};

const ofRun = (run, content) => {
  const cards = run.incidents.map((each) => {
    const actions = make("div", { className: "actions" },
      when(each.time),
      each.step !== null && looks(each, content),
      runbook(each.runbook),
      postmortem(run),
      each.checkpoint && make("span", { text: `last good checkpoint: ${each.checkpoint}` }),
      each.capsule && make("code", { text: each.capsule }),
    );
    return make("div", { className: "card bad" },
      make("p", { text: each.summary }), each.line && !each.summary.includes(each.line) && make("p", { className: "mono advice", text: each.line }),
      each.advice && make("p", { className: "advice", text: each.advice }), actions);
  }).reverse();
  const lasting = run.findings.filter((each) => each.lasts), closed = run.findings.filter((each) => !each.lasts);
  for (const each of lasting) {
    cards.push(make("div", { className: `card ${each.severity === "page" ? "bad" : ""}` }, make("p", { text: each.summary }),
      make("div", { className: "actions" }, when(each.time, "found "), looks(each, content), runbook(each.runbook), each.expected && make("span", { text: `expected ${each.expected}, seen ${each.seen}` }))));
  }
  if (run.stopped) {
    cards.unshift(make("div", { className: "card bad" }, make("p", { text: run.stopped }),
      make("p", { className: "advice", text: `${run.lives ? "Training goes on. " : ""}What came after that is not on file, so no figure, finding or incident tells of it.` })));
  }
  const rest = [];
  if (cards.length > 4) rest.push(make("details", { className: "more" }, make("summary", { text: `${cards.length - 3} more${run.lives ? " that are open" : ""}` }), ...cards.splice(3)));
  if (closed.length) {
    rest.push(make("details", { className: "more" }, make("summary", { text: `${closed.length} ${closed.length === 1 ? "finding that is" : "findings that are"} closed` }),
      make("ul", {}, ...closed.map((each) => make("li", {}, make("span", { className: "step", text: `step ${whole.format(each.step)}` }), each.summary, " ", looks(each, content), " ", runbook(each.runbook))))));
  }
  return [...cards, ...rest];
};

const looks = (each, { blocks = [] }) => {
  const block = blocks.indexOf(each.block);
  const where = `step ${whole.format(each.step)}${block >= 0 ? `, ${short(each.block)}` : ""}`;
  return make("button", { type: "button", className: "link", text: `look at ${where}`, onclick: () => {
    const around = 250;
    go({ at: each.step, block: block >= 0 ? block : state.block, from: Math.max(0, each.step - around), to: each.step + around, newest: "" });
    $("figures").scrollIntoView({ block: "start" });
  } });
};
const short = (name) => (name.length > 32 ? `…${name.slice(-31)}` : name);

const options = (select, wanted, value) => {
  const same = wanted.length === select.options.length && wanted.every(([key, text], i) => select.options[i].value === String(key) && select.options[i].textContent === text);
  if (!same) select.replaceChildren(...wanted.map(([key, text]) => make("option", { value: key, text })));
  if (document.activeElement !== select || select.value !== value) select.value = value;
};

const told = ({ outcome, steps }) => `${outcome.replaceAll("_", " ")}, ${whole.format(steps)} ${steps === 1 ? "step" : "steps"}`;

const tools = (content) => {
  const { quantities = [], quantity = "", range, whole: all, other } = content;
  options($("quantity"), quantities.map(({ name, label }) => [name, label]), quantity);
  $("attempts").hidden = content.attempts.length < 2;
  options($("attempt"), content.attempts.map((each) => [each.id, `${each.number}: ${told(each)}`]), content.attempts.find(({ number }) => number === content.run.attempt)?.id ?? "");
  if (other && ![...$("beside").options].some((option) => option.value === other.id)) $("beside").append(make("option", { value: other.id, text: other.title }));
  $("beside").value = state.with ?? "";
  if (!range) { $("shown").textContent = "no step yet"; return; }
  const isWhole = range[0] <= all[0] && range[1] >= all[1];
  $("shown").textContent = isWhole ? `all steps to ${whole.format(all[1])}` : `steps ${whole.format(range[0])} to ${whole.format(range[1])}`;
  const pressed = { whole: isWhole, newest: Boolean(state.newest) };
  for (const button of document.querySelectorAll("[data-range]")) if (button.dataset.range in pressed) button.setAttribute("aria-pressed", pressed[button.dataset.range]);
};

const figures = (content) => {
  const place = $("figures");
  place.classList.toggle("two", Boolean(content.other));
  const wanted = content.figures.map(({ key }) => key);
  for (const figure of [...place.querySelectorAll("figure")]) {
    if (!wanted.includes(figure.dataset.key)) { Plotly.purge($("plot", figure) ?? figure.querySelector(".plot")); figure.remove(); }
  }
  place.querySelector(".waiting")?.remove();
  if (!wanted.length) place.append(make("p", { className: "waiting", text: content.run.lives ? "No step has been recorded yet." : "No step was recorded." }));
  let steps = place.querySelector(".steps");
  if (!steps && wanted.length) steps = stepTools();
  let before = null;
  const plots = [];
  for (const each of content.figures) {
    const element = [...place.querySelectorAll("figure")].find((figure) => figure.dataset.key === each.key) ?? newFigure(each.key);
    element.querySelector("h2").textContent = each.title;
    element.querySelector("figcaption").textContent = [each.caption, each.key === "depth" ? content.differing : ""].filter(Boolean).join(" ");
    const plot = element.querySelector(".plot");
    plot.style.height = `${each.height}px`;
    plot.setAttribute("aria-label", `${each.title}. ${each.caption}`);
    if (before ? before.nextElementSibling !== element : place.firstElementChild !== element) before ? before.after(element) : place.prepend(element);
    before = element;
    if (each.key === (wanted.includes("heat-2") ? "heat-2" : "heat")) { if (element.nextElementSibling !== steps) element.after(steps); before = steps; }
    plots.push([plot, each]);
  }
  if (steps && content.range) setSteps(steps, content);
  draw(plots);
};

const draw = async (plots) => { // what is seen first, and with room for clicks and keys between two; newer figures take the place of these
  const mine = plotting = Symbol("plots");
  const near = ([plot]) => { const { top, bottom } = plot.getBoundingClientRect(); return bottom > 0 && top < innerHeight ? 0 : 1; };
  for (const [plot, { key, plot: figure }] of plots.map((each) => [near(each), each]).sort(([a], [b]) => a - b).map(([, each]) => each)) {
    await drawFigure(plot, figure);
    listen(plot, key);
    await new Promise((resolve) => setTimeout(resolve));
    if (mine !== plotting) return;
  }
};

const newFigure = (key) => {
  const element = document.getElementById("figure-template").content.firstElementChild.cloneNode(true);
  element.dataset.key = key;
  if (/^(heat|magnitudes)(-2)?$/.test(key)) element.classList.add("half");
  const plot = element.querySelector(".plot");
  plot.setAttribute("role", key === "heat" ? "application" : "img");
  if (key === "heat") {
    plot.tabIndex = 0;
    plot.setAttribute("aria-describedby", "keys");
    plot.addEventListener("keydown", keys);
  }
  return element;
};

const listen = (plot, key) => {
  if (plot.dataset.listens) return;
  plot.dataset.listens = "1";
  plot.on("plotly_relayout", (change) => {
    const name = Object.keys(change).find((each) => /^xaxis\d*\.range\[0\]$/.test(each));
    if (name) go({ from: Math.max(0, Math.round(change[name])), to: Math.max(0, Math.round(change[name.replace("[0]", "[1]")])), newest: "" });
    else if (Object.keys(change).some((each) => /^xaxis\d*\.autorange$/.test(each))) go({ from: "", to: "", newest: "" });
  });
  plot.on("plotly_click", ({ points: [point] }) => {
    if (key.startsWith("heat")) go({ block: point.pointIndex[0], at: Math.round(point.x) });
    else if (key === "depth") go({ block: Math.round(point.x) });
    else if (Number.isFinite(point.x)) go({ at: Math.round(point.x) });
  });
};

const keys = (event) => { // of the heat map: blocks up and down, steps left and right
  const { range, blocks } = answer;
  // Keys come faster than answers: what counts is what was chosen last.
  const at = Number(state.at ?? answer.at), block = state.block === undefined ? null : Number(state.block);
  const stride = Math.max(1, Math.round((range[1] - range[0]) / 100));
  const moves = {
    ArrowUp: () => go({ block: Math.max(0, (block ?? blocks.length) - 1) }, { replace: true }),
    ArrowDown: () => go({ block: Math.min(blocks.length - 1, (block ?? -1) + 1) }, { replace: true }),
    ArrowLeft: () => go({ at: Math.max(range[0], at - stride) }, { replace: true }),
    ArrowRight: () => go({ at: Math.min(range[1], at + stride) }, { replace: true }),
    Escape: () => go({ block: "" }, { replace: true }),
  };
  if (!moves[event.key]) return;
  event.preventDefault();
  moves[event.key]();
};

const stepTools = () => {
  const steps = document.getElementById("steps-template").content.firstElementChild.cloneNode(true);
  let wait = 0;
  $("at", steps).addEventListener("input", ({ target }) => {
    $("at-shown", steps).textContent = `step ${whole.format(target.value)}`;
    clearTimeout(wait);
    wait = setTimeout(() => go({ at: target.value }, { replace: true }), 120);
  });
  $("newest", steps).addEventListener("click", () => go({ at: "" }));
  $("block", steps).addEventListener("change", ({ target }) => go({ block: target.value }));
  return steps;
};

const setSteps = (steps, { range, at, block, blocks, whole: all }) => {
  const slider = $("at", steps);
  slider.min = Math.max(range[0], all[0]);
  slider.max = Math.min(range[1], all[1]);
  if (document.activeElement !== slider || !state.at) slider.value = at;
  slider.setAttribute("aria-valuetext", `step ${at}`);
  $("at-shown", steps).textContent = `step ${whole.format(at)}`;
  $("newest", steps).setAttribute("aria-pressed", !state.at);
  options($("block", steps), [["", "choose a block"], ...blocks.map((name, i) => [i, short(name)])], block === null ? "" : String(block));
};

const environment = (run, other) => {
  $("facts").hidden = !run.facts.length;
  const theirs = new Map(other?.facts ?? []);
  const rows = run.facts.map(([name, value]) => {
    const row = make("tr", {}, make("th", { text: name, scope: "row" }), make("td", { text: value }));
    if (other) row.append(make("td", { text: theirs.get(name) ?? "–", className: theirs.get(name) === value ? "" : "differs" }));
    return row;
  });
  if (other) rows.unshift(make("tr", {}, make("th"), make("th", { text: run.title, scope: "col" }), make("th", { text: other.title, scope: "col" })));
  $("facts").querySelector("table").replaceChildren(...rows);
};

// -- what people do --------------------------------------------------------------------------------------------------------

const ranges = {
  whole: () => ({ from: "", to: "", newest: "" }),
  newest: () => ({ from: "", to: "", newest: NEWEST, at: "" }),
  earlier: ([a, b], all) => moved(a, b, all, -(b - a) / 2),
  later: ([a, b], all) => moved(a, b, all, (b - a) / 2),
  in: ([a, b], all, at) => { const half = Math.max(4, Math.round((b - a) / 4)); const middle = Math.min(Math.max(at, a + half), b - half); return { from: middle - half, to: middle + half, newest: "" }; },
  out: ([a, b], all) => { const more = Math.round((b - a) / 2) + 1; return a - more <= all[0] && b + more >= all[1] ? ranges.whole() : { from: Math.max(0, a - more), to: b + more, newest: "" }; },
};
const moved = (a, b, all, by) => {
  const shift = Math.round(Math.min(Math.max(by, all[0] - a), Math.max(0, all[1] - b)));
  return { from: a + shift, to: b + shift, newest: "" };
};

const theme = (wanted) => {
  if (wanted) document.documentElement.dataset.theme = wanted; else delete document.documentElement.dataset.theme;
  if (answer?.figures) figures(answer);
};
const dark = matchMedia("(prefers-color-scheme: dark)");
const kept = { get: () => { try { return localStorage.getItem("theme") ?? ""; } catch { return ""; } }, set: (value) => { try { localStorage.setItem("theme", value); } catch { /* for this page only, then */ } } };

addEventListener("popstate", arrive);
document.addEventListener("click", follow);
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : ask()));
addEventListener("online", ask);
addEventListener("pageshow", (event) => event.persisted && ask());
dark.addEventListener("change", () => theme(kept.get()));
$("theme-button").addEventListener("click", () => {
  const shown = document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  kept.set(shown === "dark" ? "light" : "dark");
  theme(kept.get());
});
let typing = 0;
$("match").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => { tag = ""; ask(); }, 200); });
$("more").addEventListener("click", () => { listed += 50; tag = ""; ask(); });
$("quantity").addEventListener("change", ({ target }) => go({ quantity: target.value }));
$("attempt").addEventListener("change", ({ target }) => go({ run: target.value, with: state.with === target.value ? "" : state.with, at: "", from: "", to: "" }));
$("beside").addEventListener("change", ({ target }) => go({ with: target.value }));
$("beside").addEventListener("focus", async ({ target }) => { // the runs that there are now
  const { runs } = await fetch("/api/runs?limit=200").then((response) => response.json()).catch(() => ({ runs: null }));
  if (!runs || !answer?.run) return;
  const attempts = answer.attempts.filter(({ number }) => number !== answer.run.attempt).map((each) => [each.id, `attempt ${each.number}: ${told(each)}`]);
  const others = runs.filter(({ folder }) => folder !== answer.run.folder).map(({ id, name }) => [id, name]);
  options(target, [["", "no other run"], ...attempts, ...others], state.with ?? "");
});
$("tools").addEventListener("submit", (event) => event.preventDefault());
for (const button of document.querySelectorAll("[data-range]")) {
  button.addEventListener("click", () => answer?.range && go(ranges[button.dataset.range](answer.range, answer.whole, answer.at)));
}
let was = innerWidth <= NARROW;
addEventListener("resize", () => { if (was !== (innerWidth <= NARROW)) { was = !was; tag = ""; ask(); } });
setInterval(ages, 1000);
theme(kept.get());
readState();
ask();
