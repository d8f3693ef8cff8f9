// The admin page: shows what the JSON endpoints beside it say, and sends orders to them. No library, no build step.
//
// Rules of this file. Whatever comes from the server becomes text (textContent), never markup. Elements are made once and
// then only changed, so that focus and the place of a screen reader are kept. Times arrive as durations, and are counted down
// by this browser's own clock: the clocks of the two machines need not agree.
"use strict";

const SLOTS = 60; // seconds that a sparkline shows
const LATE = 2; // seconds that it is behind, so that all of a second is known when it appears
const POLL_EVERY = 2_000; // milliseconds between questions while there is no stream
const STREAM_AGAIN = 10_000; // milliseconds until a stream is tried again
const PATIENCE = 4_000; // milliseconds that a stream may take to come (back)
const LINES = 200; // lines of a kind on the page: calls, changes, audit entries
const CALLS = new Set(["ERROR", "IGNORED_ERROR", "SLOW_CALL", "NOT_PERMITTED", "REFUSED"]); // what there may be many of
const TOGETHER = 5; // seconds within which the same change in several workers is one
const SEEN = 2_000; // ids of events that are remembered
const DRAWN = 200; // circuits, and limiters, in the document at a time: thousands would hold the browser up at every look
const NAMED = 6; // circuits that are named in one sentence

const CALM = new Set(["closed"]);

const find = (id) => document.getElementById(id);

// -- words ----------------------------------------------------------------------------------------------------------------

const count = (number) => Math.round(number).toLocaleString("en");

const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const units = [["d", 86_400], ["h", 3_600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => whole >= size);
  if (first < 0) return "0 s";
  // The largest unit and the one below it: nobody waits a day for a second.
  const parts = units.slice(first, first + 2).map(([unit, size], place) => [
    Math.floor((place ? whole % units[first][1] : whole) / size), unit,
  ]);
  return parts.filter(([number]) => number).map(([number, unit]) => `${number} ${unit}`).join(" ");
}

function rate(percent, rule) {
  if (percent >= 0) return `${percent.toFixed(percent % 1 ? 1 : 0)} %`;
  return rule === null || rule === undefined ? "no rule" : "too few calls";
}

// 10 per hour, as people say it, and not per 3600 s.
const limit = (text) => text.replace(/^(\d+) per (1|60|3600|86400) s\b/, (_, calls, period) => `${calls} per ${{ 1: "second", 60: "minute", 3600: "hour", 86400: "day" }[period]}`);

const UNITS = {
  failure_rate: "%", slow_call_rate: "%", slow_call_duration: "s", window_calls: "calls", window_seconds: "s",
  minimum_calls: "calls", fail_max: "failures in a row", reset_timeout: "s", success_threshold: "successes",
  half_open_max_calls: "calls", probe_lease: "s", open_time_growth: "times", open_time_cap: "s", open_time_jitter: "of it",
  quorum: "hosts",
};

function setting(name, value, origin) {
  const unit = UNITS[name];
  const said = unit && typeof value === "number" ? `${unit === "%" ? Number((100 * value).toFixed(1)) : value} ${unit}` : String(value);
  return origin === "default" ? `${said} (default)` : said;
}

const workerName = (worker) => (worker ? `${worker.host} ${worker.pid}` : "");

const until = (seconds) => (seconds === null || seconds === undefined ? "" : `, for ${duration(Math.round(seconds))}`);

const because = (reason) => (reason ? `: “${reason}”` : "");

const by = (author) => (author ? ` by ${author}` : "");

const SENTENCES = {
  STATE_TRANSITION: (e) => `${e.old} to ${e.new}: ${e.cause}${by(e.author)}${until(e.expires_in)}${because(e.reason)}`,
  ERROR: (e) => `failed: ${e.error}`,
  IGNORED_ERROR: (e) => `neither failed nor succeeded: ${e.error}`,
  SLOW_CALL: (e) => `slow: ${e.duration.toFixed(2)} s`,
  NOT_PERMITTED: (e) => `refused ${plural(e.count, "call")}`,
  FAILURE_RATE_EXCEEDED: (e) => `would have opened: ${e.rule} (${e.failed} of ${e.calls} failed)`,
  RESET: (e) => (e.kind === "circuit" ? `reset${by(e.author)}${because(e.reason)}` : `bucket of ${e.key} filled${by(e.author)}`),
  SHARING: (e) => (e.alone ? `goes on alone: ${e.error}` : "shares its state again"),
  REFUSED: (e) => `${e.shadow ? "would have refused" : "refused"} ${plural(e.count, "call")} of ${e.key}`,
  OVERRIDE: (e) => (e.limits ? `${e.limits} instead${by(e.author)}${until(e.expires_in)}${because(e.reason)}` : `its own limits again${by(e.author)}`),
  MODE: (e) => `who decides: ${e.mode}${e.error ? ` (${e.error})` : ""}`,
};

// -- elements -------------------------------------------------------------------------------------------------------------

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function attribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

function made(tag, text = "", className = "") {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (className) element.className = className;
  return element;
}

const shown = (element, is) => {
  if (element.hidden === is) element.hidden = !is;
};

let announced = 0;

function announce(text) {
  const region = find("announcements");
  // The same words twice would not be read again.
  region.textContent = text + (announced++ % 2 ? "\u00a0" : "");
}

// -- what is asked of the server --------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

let csrf = "";

async function ask(path, body) {
  const options = { headers: { Accept: "application/json" }, credentials: "same-origin", cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
    if (csrf) options.headers["X-Resilience-Csrf"] = csrf;
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused(0, "The service does not answer.");
  }
  const document_ = await answer.json().catch(() => ({}));
  if (answer.ok) return document_;
  throw new Refused(answer.status, document_.detail || document_.title || `The service answered ${answer.status}.`);
}

const pathOf = (kind, name, action = "") =>
  [kind, ...name.split("/").map(encodeURIComponent), ...(action ? [action] : [])].join("/");

// -- sixty seconds of calls ---------------------------------------------------------------------------------------------------

class History {
  // Calls second by second, out of counters that only grow (or fall, when a worker has been replaced). What was counted
  // between two looks is spread evenly over the time between them.
  constructor(kinds) {
    this.kinds = kinds;
    this.slots = Array.from({ length: SLOTS + LATE + 1 }, () => this.empty(-1));
    this.last = null;
    this.began = null; // before it nothing is known: the counters do not tell when
    this.latest = -Infinity; // the second of the latest call
    this.drawn = { second: null, quiet: false, peak: 0 };
  }

  empty(second) {
    return { second, ...Object.fromEntries(this.kinds.map((kind) => [kind, 0])) };
  }

  slot(second) {
    const place = second % this.slots.length;
    if (this.slots[place].second !== second) this.slots[place] = this.empty(second);
    return this.slots[place];
  }

  add(counters, now) {
    this.began ??= now;
    if (this.last && now > this.last.now && this.kinds.some((kind) => counters[kind] > this.last.counters[kind])) {
      const { now: then, counters: before } = this.last;
      this.latest = Math.floor(now / 1_000);
      for (let second = Math.floor(Math.max(then, now - SLOTS * 1_000) / 1_000); second * 1_000 < now; second++) {
        const share = (Math.min(now, (second + 1) * 1_000) - Math.max(then, second * 1_000)) / (now - then);
        const slot = this.slot(second);
        for (const kind of this.kinds) slot[kind] += share * Math.max(0, counters[kind] - before[kind]);
      }
    }
    this.last = { now, counters: { ...counters } };
  }

  // For how many of the seconds that are shown there was somebody to look.
  watched(now) {
    return Math.min(SLOTS, Math.floor((now - this.began) / 1_000));
  }

  span(now) {
    const watched = this.watched(now);
    return watched < SLOTS ? `${plural(watched, "second")} since this page looks` : `last ${SLOTS} seconds`;
  }

  // Once a second at most, and not again and again where there is nothing.
  draw(svg, now) {
    const present = Math.floor(now / 1_000) - LATE;
    const quiet = this.latest <= present - SLOTS;
    const full = this.watched(now) >= SLOTS;
    if (this.drawn.second !== present && !(quiet && full && this.drawn.quiet)) {
      this.drawn = { second: present, quiet: quiet && full, peak: this.redraw(svg, present, this.span(now)) };
    }
    return this.drawn.peak;
  }

  redraw(svg, present, span) {
    const seconds = Array.from({ length: SLOTS }, (_, age) => {
      const slot = present - age < 0 ? this.empty(-1) : this.slots[(present - age) % this.slots.length];
      return slot.second === present - age ? slot : this.empty(-1);
    });
    const sum = (slot) => this.kinds.reduce((total, kind) => total + slot[kind], 0);
    const peak = Math.max(...seconds.map(sum));
    const paths = Object.fromEntries(this.kinds.map((kind) => [kind, ""]));
    seconds.forEach((slot, age) => {
      let bottom = 40;
      for (const kind of this.kinds) {
        if (!slot[kind]) continue;
        const top = bottom - Math.max(2, (slot[kind] / peak) * 38);
        paths[kind] += `M${238 - age * 4} ${bottom.toFixed(1)}V${Math.max(0, top).toFixed(1)}`;
        bottom = top;
      }
    });
    for (const kind of this.kinds) attribute(svg.querySelector(`.${kind}`), "d", paths[kind]);
    const totals = this.kinds.map((kind) => `${count(seconds.reduce((total, slot) => total + slot[kind], 0))} ${kind}`);
    attribute(svg, "aria-label", `Calls of the ${span}: ${totals.join(", ")}`);
    return peak;
  }
}

// -- circuits -------------------------------------------------------------------------------------------------------------

let numbered = 0; // a name may have spaces, which end an id where one is referred to

// What is listed by its name. Its element is made when it is drawn for the first time.
class Listed {
  constructor(name, kinds) {
    this.name = name;
    this.history = new History(kinds);
    this.made = null;
  }

  get element() {
    if (!this.made) this.make();
    return this.made;
  }

  // Whoever works with it does not lose it.
  get isInUse() {
    const is = (element) => Boolean(element) && this.made.contains(element);
    return Boolean(this.made) && (is(document.activeElement) || is(this.made.querySelector("details[open]")) || (find("order").open && is(order.from)));
  }
}

class CircuitCard extends Listed {
  constructor(name) {
    super(name, ["succeeded", "failed", "refused"]);
  }

  get comesFirst() {
    return !CALM.has(this.circuit.state);
  }

  make() {
    const { name } = this;
    this.made = find("circuit-template").content.firstElementChild.cloneNode(true);
    this.made.id = `circuit-${++numbered}`;
    const parts = (selector) => this.made.querySelector(selector);
    this.state = parts(".state");
    this.use = parts("use");
    this.word = parts(".word");
    this.moment = parts(".moment");
    this.said = parts(".said");
    this.spark = parts(".spark");
    this.peak = parts(".peak");
    this.figures = { failures: parts(".failures"), failure: parts(".failure-rate"), slow: parts(".slow-rate"), refused: parts(".not-permitted") };
    this.more = parts(".more");
    this.detail = parts(".detail");
    const title = parts(".name");
    title.textContent = name;
    title.id = `circuit-name-${numbered}`;
    this.made.setAttribute("aria-labelledby", title.id);
    parts(".actions").setAttribute("aria-label", `Move ${name}`);
    this.detail.setAttribute("aria-label", `Workers and settings of ${name}`);
    parts("summary").setAttribute("aria-label", `Workers and settings of ${name}`);
    for (const button of this.made.querySelectorAll("[data-order]")) {
      button.setAttribute("aria-label", `${button.textContent} ${name}`);
      button.addEventListener("click", () => openOrder(button.dataset.order, name, button));
    }
    this.more.addEventListener("toggle", () => this.showDetail());
  }

  update(circuit, now) {
    const before = this.circuit;
    this.circuit = circuit;
    this.at = now;
    this.history.add({ ...circuit.calls, refused: circuit.calls.not_permitted }, now);
    if (before && before.state !== circuit.state) return `${this.name} is ${circuit.state}${circuit.cause ? `: ${circuit.cause}` : ""}`;
    return "";
  }

  show(now) {
    const { circuit } = this;
    attribute(this.element, "data-state", circuit.state);
    attribute(this.state, "data-state", circuit.state);
    attribute(this.use, "href", `#sign-${circuit.state}`);
    say(this.word, circuit.state);
    say(this.said, this.sentence());
    say(this.figures.failures, count(circuit.failures));
    say(this.figures.failure, rate(circuit.failure_rate, circuit.settings.failure_rate));
    say(this.figures.slow, rate(circuit.slow_call_rate, circuit.settings.slow_call_rate));
    say(this.figures.refused, count(circuit.calls.not_permitted));
    this.tick(now);
  }

  sentence() {
    const { cause, reason, author, sharing, state } = this.circuit;
    const said = [];
    if (cause && !(CALM.has(state) && !author)) said.push(`${cause}${by(author)}${because(reason)}`);
    const votes = (sharing && sharing.votes) || [];
    if (votes.length) said.push(`${votes.length} of ${plural(sharing.quorum, "vote")} to open it for all: ${votes.join(", ")}`);
    if (sharing && sharing.alone) said.push(`${plural(sharing.alone, "worker")} on their own: the shared state is out of reach`);
    return said.join("; ");
  }

  // What changes by itself as time goes by.
  tick(now) {
    const circuit = this.circuit;
    const passed = (now - this.at) / 1_000;
    const parts = [];
    if (circuit.since !== null) parts.push(`for ${duration(circuit.since + passed)}`);
    const workers = Object.values(circuit.states).reduce((total, number) => total + number, 0);
    const same = circuit.states[circuit.state] || 0;
    if (same < workers) parts.push(`in ${same} of ${plural(workers, "worker")}`);
    if (circuit.state === "open") {
      const left = Math.ceil(circuit.retry_after - passed);
      parts.push(left > 0 ? `next probe in ${duration(left)}` : "the next call is a probe");
    } else if (circuit.state === "half-open") {
      parts.push(`probing: ${circuit.successes} of ${circuit.settings.success_threshold} succeeded`);
    } else if (circuit.expires_in !== null) {
      parts.push(`over in ${duration(Math.ceil(circuit.expires_in - passed))}`);
    } else if (!CALM.has(circuit.state)) {
      parts.push("until somebody moves it");
    }
    say(this.moment, parts.join(" · "));
    const peak = this.history.draw(this.spark, now);
    const watched = this.history.watched(now);
    const since = watched < SLOTS ? `, watched for ${watched} s` : "";
    say(this.peak, peak ? `peak ${count(peak)}/s${since}` : since ? `no calls yet${since}` : `no calls for ${SLOTS} s`);
  }

  async showDetail() {
    if (!this.more.open) return;
    try {
      const { circuit } = await ask(pathOf("circuits", this.name));
      const workers = circuit.by_worker.map((each) => [
        workerName(each.worker), each.state, count(each.failures), count(each.succeeded), count(each.failed), count(each.not_permitted),
      ]);
      const settings = Object.entries(circuit.settings)
        .filter(([, value]) => value !== null)
        .map(([name, value]) => [name, setting(name, value, circuit.origins?.[name])]);
      const { uri, reach } = circuit.sharing || {};
      settings.push(["shared", uri ? `${reach === "hosts" ? "by all hosts" : "by this host's workers"}, ${uri}` : "by nobody: each worker for itself"]);
      this.detail.replaceChildren(
        table(`Workers of ${this.name}`, ["Worker", "State", "In a row", "Succeeded", "Failed", "Refused"], workers),
        table(`Settings of ${this.name}`, ["Setting", "Value"], settings.map(([name, said]) => [name.replaceAll("_", " "), said])),
      );
    } catch (error) {
      this.detail.replaceChildren(made("p", error.message, "problem"));
      leaveIfSignedOut(error);
    }
  }
}

function table(label, columns, rows) {
  const element = made("table");
  element.setAttribute("aria-label", label);
  const head = element.createTHead().insertRow();
  for (const column of columns) {
    const cell = made("th", column);
    cell.scope = "col";
    head.append(cell);
  }
  const body = element.createTBody();
  for (const [first, ...rest] of rows) {
    const row = body.insertRow();
    const cell = made("th", first);
    cell.scope = "row";
    row.append(cell, ...rest.map((text) => made("td", text)));
  }
  return element;
}

// -- rate limits ----------------------------------------------------------------------------------------------------------

class LimiterRow extends Listed {
  constructor(name) {
    super(name, ["succeeded", "refused"]);
  }

  get comesFirst() {
    return Boolean(this.limiter.override);
  }

  make() {
    const { name } = this;
    this.made = find("limiter-template").content.firstElementChild.cloneNode(true);
    const parts = (selector) => this.made.querySelector(selector);
    this.inForce = parts(".in-force");
    this.override = parts(".override");
    this.spark = parts(".spark");
    this.numbers = { allowed: parts(".allowed"), denied: parts(".denied"), waited: parts(".waited") };
    this.top = parts(".top");
    this.restore = parts("[data-order=restore]");
    parts(".name").textContent = name;
    parts(".actions").setAttribute("aria-label", `Change ${name}`);
    for (const button of this.made.querySelectorAll("[data-order]")) {
      button.setAttribute("aria-label", `${button.textContent} ${button.dataset.order === "fill" ? "of " : ""}${name}`);
      button.addEventListener("click", () => openOrder(button.dataset.order, name, button));
    }
  }

  update(limiter, now) {
    this.limiter = limiter;
    this.at = now;
    this.history.add({ succeeded: limiter.allowed, refused: limiter.denied + limiter.shadow_denied }, now);
  }

  show(now) {
    const { limiter } = this;
    say(this.inForce, limiter.limits.map(limit).join(", "));
    say(this.numbers.allowed, count(limiter.allowed));
    say(this.numbers.denied, count(limiter.denied) + (limiter.shadow_denied ? ` (+${count(limiter.shadow_denied)} in shadow)` : ""));
    say(this.numbers.waited, count(limiter.waited));
    this.restore.disabled = !limiter.override;
    const top = (limiter.top || []).slice(0, 5).map(({ key, refused }) => [key, count(refused)]);
    const shape = JSON.stringify(top);
    if (shape !== this.shape) {
      this.shape = shape;
      const list = made("ul");
      for (const [key, refused] of top) {
        const line = made("li");
        line.append(made("span", key), made("span", refused));
        list.append(line);
      }
      this.top.replaceChildren(...(top.length ? [list] : [made("span", "nobody", "hint")]));
    }
    this.tick(now);
  }

  tick(now) {
    const { override } = this.limiter;
    let text = "";
    if (override) {
      const left = override.expires_in === null ? "" : `, over in ${duration(Math.ceil(override.expires_in - (now - this.at) / 1_000))}`;
      text = `instead of ${override.replaces.map(limit).join(", ")}${left}${by(override.author)}${because(override.reason)}`;
    }
    say(this.override, text);
    this.history.draw(this.spark, now);
  }
}

// -- what there is, all of it -----------------------------------------------------------------------------------------------

const cards = new Map();
const rows = new Map();
const drawn = { circuits: [], limiters: [] }; // those of them that are in the document

function renew(views, names, make) {
  for (const name of [...views.keys()].filter((name) => !names.has(name))) views.delete(name);
  for (const name of names) if (!views.has(name)) views.set(name, make(name));
}

// Where there are too many: those in use, then those that come first, then by name.
function choose(views) {
  const byName = (one, other) => (one.name < other.name ? -1 : 1);
  views.sort(byName);
  if (views.length <= DRAWN) return views;
  const rank = new Map(views.map((view) => [view, view.isInUse ? 0 : view.comesFirst ? 1 : 2]));
  return views.sort((one, other) => rank.get(one) - rank.get(other)).slice(0, DRAWN).sort(byName);
}

// Elements in that order, touching the document only where it has changed.
function arrange(list, views) {
  const wanted = new Set(views.map((view) => view.element));
  for (const element of [...list.children]) if (!wanted.has(element)) element.remove();
  let place = list.firstElementChild;
  for (const element of wanted) {
    if (element === place) place = place.nextElementSibling;
    else list.insertBefore(element, place);
  }
}

function draw(kind, views, is, first) {
  const found = [...views.values()].filter(is);
  const chosen = choose(found);
  drawn[kind] = chosen;
  arrange(find(`${kind.slice(0, -1)}-list`), chosen);
  const now = performance.now();
  for (const view of chosen) view.show(now);
  let note = "";
  if (chosen.length < found.length) note = `${count(chosen.length)} of ${count(found.length)} are shown here, ${first} first. A part of its name finds any other.`;
  else if (!found.length && views.size) note = `None of ${count(views.size)} is like that.`;
  say(find(`${kind}-note`), note);
}

function showSnapshot(snapshot) {
  const now = performance.now();
  const { circuits, limiters, workers } = snapshot;
  renew(cards, new Set(circuits.map((each) => each.name)), (name) => new CircuitCard(name));
  const moved = circuits.map((circuit) => cards.get(circuit.name).update(circuit, now)).filter(Boolean);
  if (moved.length > NAMED) moved.splice(NAMED, moved.length, `${moved.length - NAMED} more have moved`);
  if (moved.length) announce(moved.join(". "));
  renew(rows, new Set(limiters.map((each) => each.name)), (name) => new LimiterRow(name));
  for (const limiter of limiters) rows.get(limiter.name).update(limiter, now);
  shown(find("no-circuits"), circuits.length === 0);
  summarize(circuits);
  const hosts = new Set(workers.answered.map((worker) => worker.host));
  say(find("fleet"), `${plural(workers.answered.length, "worker")} on ${plural(hosts.size, "host")}`);
  const { storage } = snapshot;
  say(find("storage"), storage ? `counted in ${storage.uri}` : "");
  showTroubles(snapshot);
  filter();
}

function summarize(circuits) {
  const not = circuits.filter((circuit) => !CALM.has(circuit.state));
  const rest = circuits.length - not.length;
  const named = not.slice(0, NAMED).map((circuit) => `${circuit.name}: ${circuit.state}`);
  if (not.length > NAMED) named.push(`${count(not.length - NAMED)} more not closed`);
  say(find("circuits-summary"), [...named, `${count(rest)} closed`].join(", "));
  document.title = not.length ? `(${not.length} not closed) Circuits and limits` : "Circuits and limits";
}

function showTroubles({ storage, state, workers }) {
  const troubles = [];
  if (workers.unreached.length) troubles.push(`No answer from ${workers.unreached.map(workerName).join(", ")}: what is shown here lacks them.`);
  if (workers.problem) troubles.push(workers.problem);
  if (storage && storage.mode !== "primary") {
    const who = { local: "each worker counts its share by itself", allow: "every call is allowed", deny: "every call is refused" }[storage.mode] || storage.mode;
    troubles.push(`Rate limits: ${storage.uri} is out of reach, ${who}.`);
  }
  if (state && state.reachable === false) troubles.push(`Circuits: ${state.uri} is out of reach, each worker goes on alone.`);
  const region = find("troubles");
  const before = [...region.children].map((each) => each.textContent);
  if (before.join("\n") === troubles.join("\n")) return;
  region.replaceChildren(...troubles.map((text) => made("p", text)));
  const fresh = troubles.filter((text) => !before.includes(text));
  if (fresh.length) announce(fresh.join(" "));
}

function filter() {
  const contains = (id) => {
    const part = find(id).value.trim().toLowerCase();
    return (view) => view.name.toLowerCase().includes(part);
  };
  const [isCircuit, isLimiter] = [contains("filter"), contains("limiter-filter")];
  const only = find("only-moved").checked;
  draw("circuits", cards, (card) => isCircuit(card) && !(only && CALM.has(card.circuit.state)), "those that are not closed");
  draw("limiters", rows, isLimiter, "those with other limits for a time");
}

// -- events and audit -------------------------------------------------------------------------------------------------------

const seen = new Set();
let waiting = []; // events that came while the list was paused

function clockTime(at) {
  const element = made("time", new Date(at * 1_000).toLocaleTimeString("en-GB"));
  element.dateTime = new Date(at * 1_000).toISOString();
  return element;
}

function addEvent(event) {
  if (seen.has(event.id)) return;
  seen.add(event.id);
  if (seen.size > SEEN) seen.delete(seen.values().next().value);
  if (find("pause").getAttribute("aria-pressed") === "true") {
    waiting.push(event);
    waiting = waiting.slice(-LINES);
    say(find("pause"), `Go on (${waiting.length})`);
    return;
  }
  insertEvent(event);
}

// Every worker tells of what happens to something that all of them share: that is one line.
function changeIn(event) {
  const parts = [event.type, event.policy, event.old, event.new, event.cause, event.limits, event.alone, event.mode, event.key];
  return CALLS.has(event.type) ? "" : JSON.stringify(parts);
}

function joinsLine(list, event) {
  const change = changeIn(event);
  if (!change) return false;
  for (const line of list.children) {
    const apart = Math.abs(Number(line.dataset.at) - event.at);
    if (line.dataset.change !== change || apart > TOGETHER || line.workers.has(workerName(event.worker))) continue;
    line.workers.add(workerName(event.worker));
    say(line.querySelector(".where"), [...line.workers].join(", "));
    if (event.author && !line.author) {
      line.author = event.author; // only who was asked to knows who asked
      say(line.said, ` ${sentenceOf(event)} `);
    }
    return true;
  }
  return false;
}

const sentenceOf = (event) => (SENTENCES[event.type] || (() => event.type))(event);

// The newest comes first; those of other workers may arrive a little late.
function insertEvent(event) {
  const list = find("event-list");
  list.querySelector(".empty")?.remove();
  if (joinsLine(list, event)) return;
  const line = made("li");
  line.dataset.at = event.at;
  line.dataset.kind = event.kind;
  line.dataset.change = changeIn(event);
  line.workers = new Set([workerName(event.worker)]);
  line.dataset.about = CALLS.has(event.type) ? "call" : "change";
  const text = made("div");
  const name = made("strong", event.policy);
  const what = made("span", ` ${sentenceOf(event)} `);
  line.said = what;
  line.author = event.author;
  if (event.type === "STATE_TRANSITION") {
    what.className = "tint";
    what.dataset.state = event.new;
  }
  text.append(name, what, made("span", workerName(event.worker), "where"));
  line.append(clockTime(event.at), text);
  hideByChoice(line);
  let before = list.firstElementChild;
  while (before && Number(before.dataset.at) > event.at) before = before.nextElementSibling;
  list.insertBefore(line, before);
  // Many calls do not push out the few changes.
  const alike = list.querySelectorAll(`[data-about=${line.dataset.about}]`);
  if (alike.length > LINES) alike[alike.length - 1].remove();
}

function hideByChoice(line) {
  const choice = find("event-kind").value;
  shown(line, !choice || line.dataset.kind === choice || line.dataset.about === choice);
}

function showAudit(entries) {
  const lines = entries.slice(0, LINES).map((entry) => {
    const line = made("li");
    const text = made("div");
    const term = entry.ttl ? `, for ${duration(entry.ttl)}` : "";
    const outcome = entry.outcome === "done" ? "" : ` (${entry.outcome})`;
    const missed = entry.unreached.length ? `; not reached: ${entry.unreached.join(", ")}` : "";
    text.append(
      made("strong", entry.action), ` ${entry.target}${term}${outcome}${because(entry.reason)}${entry.detail ? `; ${entry.detail}` : ""}${missed} `,
      made("span", entry.author, "where"),
    );
    line.append(clockTime(entry.at), text);
    return line;
  });
  find("audit-list").replaceChildren(...(lines.length ? lines : [made("li", "Nobody has changed anything since these workers began.", "empty")]));
}

// -- live -------------------------------------------------------------------------------------------------------------------

const live = { source: null, poll: 0, again: 0, patience: 0, cursor: "" };

function connection(state, text) {
  const element = find("connection");
  if (element.dataset.state === state && element.textContent === text) return;
  element.dataset.state = state;
  element.textContent = text;
}

function startStream() {
  stopStream();
  if (!("EventSource" in window)) {
    startPolling();
    return;
  }
  const source = new EventSource("events?snapshots=1");
  live.source = source;
  const waitForIt = () => {
    clearTimeout(live.patience);
    live.patience = setTimeout(startPolling, PATIENCE);
  };
  waitForIt();
  source.addEventListener("snapshot", (message) => {
    clearTimeout(live.patience);
    stopPolling();
    connection("live", "Live");
    showSnapshot(JSON.parse(message.data));
    waitForIt(); // a stream from which nothing comes is no stream
  });
  source.addEventListener("policy", (message) => addEvent(JSON.parse(message.data)));
  source.addEventListener("audit", (message) => showAudit(JSON.parse(message.data).entries));
  source.addEventListener("error", () => {
    if (source !== live.source || source.readyState !== EventSource.CLOSED) return;
    // Refused for good: too many streams, or signed out, which the first question will tell.
    stopStream();
    startPolling();
    live.again = setTimeout(startStream, STREAM_AGAIN);
  });
}

function stopStream() {
  clearTimeout(live.again);
  clearTimeout(live.patience);
  live.source?.close();
  live.source = null;
}

function startPolling() {
  if (!live.poll) live.poll = setTimeout(poll, 0);
}

function stopPolling() {
  clearTimeout(live.poll);
  live.poll = 0;
}

async function poll() {
  const mine = live.poll;
  try {
    const since = live.cursor ? `&since=${encodeURIComponent(live.cursor)}` : "";
    const [circuits, limiters, events, audit] = await Promise.all(
      [ask("circuits"), ask("limiters"), ask(`events?limit=${LINES}${since}`), ask("audit")],
    );
    if (live.poll !== mine) return;
    connection("polling", `Asking every ${POLL_EVERY / 1_000} s`);
    showSnapshot({ ...limiters, ...circuits });
    events.events.forEach(addEvent);
    live.cursor = events.cursor;
    showAudit(audit.entries);
  } catch (error) {
    if (leaveIfSignedOut(error) || live.poll !== mine) return;
    connection("lost", `No connection: ${error.message}`);
  }
  if (live.poll === mine) live.poll = setTimeout(poll, POLL_EVERY);
}

setInterval(() => {
  const now = performance.now();
  if (document.hidden || find("board").hidden) return;
  for (const view of [...drawn.circuits, ...drawn.limiters]) view.tick(now);
}, 250);

setInterval(() => {
  if (document.hidden) return;
  for (const card of drawn.circuits) card.showDetail();
}, 2_000);

// -- orders -----------------------------------------------------------------------------------------------------------------

const ORDERS = {
  open: {
    meaning: "Every call is refused, in every worker, until the time is over.",
    openEnded: "until somebody moves it",
    time: "600", // who forgets it has not closed the door for good
  },
  close: {
    meaning: "Calls pass. For a time: whatever comes of them. Otherwise the circuit is left to itself again.",
    openEnded: "leave it to itself from now on",
  },
  "half-open": { meaning: "Probes may pass. When enough of them succeed the circuit closes, when one fails it opens." },
  disable: { meaning: "Calls pass, and nothing is counted.", openEnded: "until somebody moves it" },
  "metrics-only": {
    meaning: "Calls pass and are counted. The circuit tells when it would have opened, and does not.",
    openEnded: "until somebody moves it",
  },
  reset: { meaning: "The circuit closes, and everything that it has counted is forgotten." },
  override: { kind: "limiters", meaning: "Other limits hold for a time, in every worker.", limits: true, needsTime: true },
  restore: { kind: "limiters", meaning: "The limiter's own limits hold again." },
  fill: { kind: "limiters", action: "reset", meaning: "The bucket of one caller is full again.", key: true },
};

let order = null;

function openOrder(action, name, from) {
  const what = ORDERS[action];
  order = { action: what.action || action, name, from, kind: what.kind || "circuits", ...what };
  find("order-title").textContent = from.getAttribute("aria-label");
  find("order-confirm").textContent = from.textContent;
  find("order-meaning").textContent = what.meaning;
  find("order-problem").textContent = "";
  find("order-reason").value = "";
  const hasTime = Boolean(what.openEnded || what.needsTime);
  shown(find("order-time-row"), hasTime);
  const openEnded = find("order-time-open-ended");
  openEnded.textContent = what.openEnded || "";
  openEnded.hidden = openEnded.disabled = !what.openEnded;
  find("order-time").value = what.time ?? (what.openEnded ? "" : "600");
  shown(find("order-limits-row"), Boolean(what.limits));
  find("order-limits").required = Boolean(what.limits);
  find("order-limits").value = "";
  shown(find("order-burst-row"), Boolean(what.limits));
  find("order-burst").disabled = !what.limits;
  find("order-burst").value = "";
  shown(find("order-key-row"), Boolean(what.key));
  find("order-key").required = Boolean(what.key);
  find("order-key").value = what.key ? rows.get(name).limiter.top?.[0]?.key || "" : "";
  showSeconds();
  find("order").showModal();
  find(what.limits ? "order-limits" : what.key ? "order-key" : "order-reason").focus();
}

function showSeconds() {
  const is = !find("order-time-row").hidden && find("order-time").value === "other";
  shown(find("order-seconds-row"), is);
  find("order-seconds").required = is;
  find("order-seconds").disabled = !is;
}

function bodyOfOrder() {
  const body = { reason: find("order-reason").value.trim() };
  const time = find("order-time-row").hidden ? "" : find("order-time").value;
  if (time) body.ttl = Number(time === "other" ? find("order-seconds").value : time);
  if (order.limits) body.limits = find("order-limits").value.trim();
  if (order.limits && find("order-burst").value) body.burst = Number(find("order-burst").value);
  if (order.key) body.key = find("order-key").value.trim();
  return body;
}

async function sendOrder(event) {
  event.preventDefault();
  const confirm = find("order-confirm");
  confirm.disabled = true;
  say(find("order-problem"), "");
  try {
    await ask(pathOf(order.kind, order.name, order.action), bodyOfOrder());
    find("order").close();
    announce(`Done: ${find("order-title").textContent}`);
    refresh();
  } catch (error) {
    say(find("order-problem"), error.message);
    leaveIfSignedOut(error);
  } finally {
    confirm.disabled = false;
  }
}

// What was ordered is shown at once, and not only with the next snapshot.
async function refresh() {
  try {
    const [circuits, limiters, audit] = await Promise.all([ask("circuits"), ask("limiters"), ask("audit")]);
    showSnapshot({ ...limiters, ...circuits });
    showAudit(audit.entries);
  } catch (error) {
    leaveIfSignedOut(error);
  }
}

// -- who is here --------------------------------------------------------------------------------------------------------------

function leaveIfSignedOut(error) {
  if (error.status !== 401) return false;
  showSignIn("Your session is over: sign in again.");
  return true;
}

function showSignIn(problem) {
  const wasHere = !find("sign-in").hidden;
  stopStream();
  stopPolling();
  if (find("order").open) find("order").close();
  shown(find("board"), false);
  shown(find("leave"), false);
  shown(find("sign-in"), true);
  say(find("fleet"), "");
  connection("waiting", "Signed out");
  say(find("sign-in-problem"), problem);
  if (!wasHere) find("name").focus();
}

function showBoard(session) {
  csrf = session.csrf || "";
  shown(find("sign-in"), false);
  shown(find("board"), true);
  shown(find("leave"), Boolean(csrf));
  find("leave").textContent = session.author && session.author !== "page" ? `Sign out ${session.author}` : "Sign out";
  connection("waiting", "Connecting");
  startStream();
}

async function signIn(event) {
  event.preventDefault();
  const token = find("token");
  const button = find("sign-in-form").querySelector("button");
  button.disabled = true; // one answer at a time
  say(find("sign-in-problem"), "");
  try {
    const session = await ask("login", { token: token.value, name: find("name").value.trim() });
    token.value = "";
    showBoard(session);
    find("circuits").focus();
  } catch (error) {
    say(find("sign-in-problem"), error.message);
    token.select();
  } finally {
    button.disabled = false;
  }
}

async function signOut() {
  try {
    await ask("logout", {});
  } catch (error) {
    if (error.status !== 401) {
      announce(error.message);
      return;
    }
  }
  csrf = "";
  showSignIn("");
}

async function begin() {
  try {
    showBoard(await ask("session"));
  } catch (error) {
    if (error.status === 401) {
      showSignIn("");
      return;
    }
    connection("lost", `No connection: ${error.message}`);
    setTimeout(begin, POLL_EVERY);
  }
}

// -- colours ------------------------------------------------------------------------------------------------------------------

function useTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

function storedTheme() {
  try {
    return localStorage.getItem("resilience-theme") || "";
  } catch {
    return ""; // a browser may refuse
  }
}

function chooseTheme() {
  const theme = find("theme").value;
  useTheme(theme);
  try {
    localStorage.setItem("resilience-theme", theme);
  } catch {
    // It holds for this page then.
  }
}

find("theme").value = storedTheme();
useTheme(storedTheme());
find("theme").addEventListener("change", chooseTheme);
find("sign-in-form").addEventListener("submit", signIn);
find("leave").addEventListener("click", signOut);
find("filter").addEventListener("input", filter);
find("limiter-filter").addEventListener("input", filter);
find("only-moved").addEventListener("change", filter);
find("event-kind").addEventListener("change", () => find("event-list").querySelectorAll("[data-kind]").forEach(hideByChoice));
find("pause").addEventListener("click", () => {
  const paused = find("pause").getAttribute("aria-pressed") === "true";
  find("pause").setAttribute("aria-pressed", String(!paused));
  say(find("pause"), paused ? "Pause" : "Go on");
  if (paused) waiting.splice(0).forEach(insertEvent);
});
find("order-form").addEventListener("submit", sendOrder);
find("order-cancel").addEventListener("click", () => find("order").close());
find("order-time").addEventListener("change", showSeconds);
find("order").addEventListener("close", () => order?.from.focus());
find("event-list").append(made("li", "Nothing has happened since these workers began.", "empty"));
begin();
