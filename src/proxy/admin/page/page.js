// Shows what the admin API tells. Every text goes in as text: nothing of it is ever markup.

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const SECONDS = 60;
const HISTORY = 10 * 60 * 1000;
const SILENT_AFTER = 5000;

// ---- small helpers ----

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Writes only what has changed, so that a screen reader is not told again and a selection stays.
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function mark(element, name) {
  if (element.className !== name) element.className = name;
}

const clock = (time) => new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const one = (number) => (number >= 100 ? number.toFixed(0) : number.toFixed(1));
const plural = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

function lasting(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

function millis(ms) {
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 10000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

// ---- words ----

const STATES = {
  closed: ["good", "● closed"],
  open: ["bad", "■ open"],
  half_open: ["warn", "◐ trying"],
  recovering: ["warn", "◔ recovering"],
  disabled: ["idle", "○ not watched"],
};

const CAUSES = {
  failures: "requests failed",
  rate: "too many requests failed",
  slow: "answers were slow",
  silence: "requests went unanswered",
  cooldown: "it asked to wait",
  fleet: "another replica says so",
  isolated: "isolated by hand",
};

function stateOf(circuit) {
  if (circuit.cause === "isolated") return ["bad", "■ isolated"];
  return STATES[circuit.state] || ["idle", circuit.state];
}

const RANK = { closed: 0, disabled: 1, recovering: 2, half_open: 3, open: 4 };
const worst = (circuits) => circuits.reduce((a, b) => (RANK[b.state] > RANK[a.state] ? b : a));

function why(circuit) {
  const order = circuit.order;
  if (order) {
    const who = order.by ? ` by ${order.by}` : "";
    return `${order.order === "isolate" ? "Isolated" : "Not watched"}${who}: ${order.reason}`;
  }
  if (circuit.state === "closed") return "";
  if (circuit.scope === "key" && circuit.cause === "cooldown") return `The key is out: ${told(circuit)}`;
  const cause = CAUSES[circuit.cause] || "";
  const error = told(circuit);
  return cause && error ? `${cause}: ${error}` : cause || error;
}

function told(circuit) {
  const error = circuit.error;
  if (!error) return "";
  return error.message ? `${error.error_type}, ${error.message}` : error.error_type;
}

// ---- what is known ----

// The newest view, when it came, and the seconds before it.
let view = null;
let cameAt = 0;
const pasts = new Map();
const rows = new Map();

function past(key, traffic) {
  let seconds = pasts.get(key) || [];
  seconds = traffic.seconds.length === 1 ? [...seconds, ...traffic.seconds].slice(-SECONDS) : traffic.seconds.slice(-SECONDS);
  pasts.set(key, seconds);
  return seconds;
}

// Of a second: models that nothing has come of are left out, and stay as they are.
function show(next, isWhole) {
  view = next;
  cameAt = performance.now();
  document.body.classList.remove("stale");
  write(byId("version"), next.version);
  const words = { ok: ["good", "All circuits are closed"], degraded: ["warn", "Degraded"], unhealthy: ["bad", "No provider is left"] };
  const [kind, text] = words[next.status] || ["idle", next.status];
  mark(byId("status"), `pill ${kind}`);
  write(byId("status"), next.draining ? `${text}, draining` : text);
  document.title = next.status === "ok" ? "fusebox" : `(!) fusebox: ${next.status}`;
  const kept = new Set();
  for (const provider of next.providers) showProvider(provider, kept);
  for (const [key, row] of rows) {
    if (kept.has(key) || !isWhole) continue;
    row.line.remove();
    rows.delete(key);
    pasts.delete(key);
  }
  for (const body of byId("circuits").tBodies) if (!body.rows.length) body.remove();
  showClients(next);
  showProblems();
  showFailovers(next);
  showChanges(next);
  tick();
}

function showProvider(provider, kept) {
  const key = JSON.stringify([provider.provider]);
  const own = row(key, null, provider.provider, provider.url, { provider: provider.provider });
  kept.add(key);
  const changes = provider.transitions.filter((it) => !it.model && !it.kind);
  const keys = provider.keys.map((it) => `key ${it.key}: ${it.error}`).join(", ");
  const note = [provider.hint, keys].filter(Boolean).join("; ");
  fill(own, key, [provider], provider.traffic, changes, provider.failures[0], note);
  const known = provider.models.filter((it) => it.circuits.length);
  const out = known.filter((it) => worst(it.circuits).state === "open").length;
  if (provider.state === "closed" && out) {
    mark(own.pill, `pill ${out === known.length ? "bad" : "warn"}`);
    write(own.pill, `▲ ${out} of ${provider.models.length} out`);
  }
  for (const model of provider.models) {
    const modelKey = JSON.stringify([provider.provider, model.model]);
    const target = { provider: provider.provider, model: model.model };
    const it = row(modelKey, own.line.parentNode, model.model || "(no model)", "", target);
    kept.add(modelKey);
    const ofModel = provider.transitions.filter((change) => change.model === model.model);
    const failure = provider.failures.find((it) => it.model === model.model);
    fill(it, modelKey, model.circuits, model.traffic, ofModel, failure, silence(model.circuits));
  }
}

// How surprising it is that nothing is answered, where that is worth a word.
function silence(circuits) {
  const loud = circuits.filter((it) => it.silence && it.silence.unanswered > 0 && it.silence.phi >= 1);
  return loud.map((it) => `${it.kind}: ${it.silence.unanswered} unanswered, the oldest for ${millis(it.silence.oldest_ms)} (phi ${it.silence.phi.toFixed(1)})`).join("; ");
}

function row(key, body, name, below, target) {
  let found = rows.get(key);
  if (found) {
    write(found.below, below);
    return found;
  }
  const cell = (label, name) => make("td", { "data-label": label, class: name });
  const line = make("tr", { class: body ? "model" : "provider" });
  const small = make("small", {}, below);
  const head = make("th", { scope: "row", class: "name" }, name, small);
  const pill = make("span", { class: "pill" });
  const until = make("small", { class: "times" });
  const state = make("td", { class: "state" }, pill, until);
  const [traffic, times, now, history, reason, act] =
    [cell("Last minute", "traffic"), cell("First byte", "times"), cell("Now", "now"), cell("Last 10 minutes", "history"), make("td", { class: "why" }), make("td", { class: "act" })];
  const button = (text, action) => {
    const it = make("button", { type: "button", "aria-label": `${text} ${name}` }, text);
    it.addEventListener("click", () => ask(action, target, name));
    return it;
  };
  const buttons = { isolate: button("Isolate", "isolate"), release: button("Release", "release"), reset: button("Reset", "reset") };
  act.append(...Object.values(buttons));
  line.append(head, state, traffic, times, now, history, reason, act);
  found = { line, below: small, pill, until, traffic, times, now, history, reason, buttons, name, target };
  rows.set(key, found);
  if (!body) {
    body = make("tbody");
    byId("circuits").append(body);
  }
  body.append(line);
  return found;
}

function fill(row, key, circuits, traffic, changes, failure, note) {
  const circuit = circuits.length ? worst(circuits) : { state: "closed", failure_count: 0, waiters: 0 };
  row.circuit = circuit;
  const [kind, text] = stateOf(circuit);
  const which = circuits.length > 1 && circuit.state !== "closed" && !circuits.every((it) => it.state === circuit.state) ? `, ${circuit.kind}` : "";
  const isKnown = circuits.length || row.target.model === undefined;
  mark(row.pill, `pill ${isKnown ? kind : "idle"}`);
  write(row.pill, isKnown ? text + which : "not asked yet");
  row.line.classList.toggle("out", circuit.state === "open");
  const seconds = past(key, traffic);
  sparkline(row.traffic, seconds, traffic);
  const bytes = traffic.first_byte_ms;
  write(row.times, bytes ? `${millis(bytes.p50)} / ${millis(bytes.p99)}` : "");
  row.times.title = "half of the requests, and 99 of 100, had their first byte within";
  const waiters = circuits.reduce((sum, it) => sum + it.waiters, 0);
  write(row.now, `${traffic.in_flight} in flight${waiters ? `, ${waiters} waiting` : ""}`);
  timeline(row.history, changes, circuit);
  const words = why(circuit);
  const last = !words && failure && Date.parse(view.at) - Date.parse(failure.at) < HISTORY ? `${failure.outcome}${failure.message ? `, ${failure.message}` : ""}, at ${clock(failure.at)}` : "";
  const lines = [words, last && `last failure: ${last}`, note].filter(Boolean);
  const said = lines.join("\n");
  if (row.said !== said) {
    row.said = said;
    row.reason.replaceChildren(...lines.map((it, at) => make(at || !words ? "small" : "span", {}, it)));
  }
  const isOrdered = circuits.some((it) => it.order || it.cause === "isolated" || it.state === "disabled");
  row.buttons.isolate.hidden = isOrdered;
  row.buttons.release.hidden = !isOrdered;
  row.buttons.reset.hidden = circuits.every((it) => it.state === "closed" && !it.failure_count);
}

function sparkline(cell, seconds, traffic) {
  const drawn = JSON.stringify([seconds, traffic.per_second]);
  if (cell.dataset.drawn === drawn) return;
  cell.dataset.drawn = drawn;
  const width = 150, height = 28, step = width / SECONDS;
  const most = Math.max(1, ...seconds.map(([ok, failed, other]) => ok + failed + other));
  const bars = [];
  seconds.forEach((counts, at) => {
    let y = height;
    counts.forEach((count, kind) => {
      const size = (count / most) * (height - 1);
      if (!size) return;
      y -= size;
      const x = (SECONDS - seconds.length + at) * step;
      bars.push(draw("rect", { class: ["ok", "failed", "other"][kind], x: x.toFixed(1), y: y.toFixed(1), width: (step - 0.5).toFixed(1), height: size.toFixed(1) }));
    });
  });
  const { ok, failed, other } = traffic.per_second;
  const text = `${one(ok + failed + other)}/s${failed ? `, ${one(failed)}/s failed` : ""}`;
  const graph = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `requests of the last minute: ${text}` }, ...bars);
  cell.replaceChildren(graph, make("span", { class: failed ? "wrong" : "dim" }, text));
}

function timeline(cell, changes, circuit) {
  const width = 150, height = 10, now = Date.parse(view.at), from = now - HISTORY;
  // One without changes looks the same at any time.
  const drawn = changes.some((it) => Date.parse(it.at) >= from - 1000) ? String(now) : circuit.state;
  if (cell.dataset.drawn === drawn) return;
  cell.dataset.drawn = drawn;
  const at = (time) => (Math.max(0, (time - from) / HISTORY) * width);
  const parts = [];
  let end = now, state = circuit.state;
  for (const change of changes) {
    const time = Math.min(end, Date.parse(change.at));
    parts.push([state, Math.max(from, time), end]);
    [end, state] = [time, change.from];
    if (time < from) break;
  }
  if (end > from) parts.push([state, from, end]);
  // A short one is as wide as the eye needs.
  const bars = parts.reverse().map(([state, a, b]) => draw("rect", { class: state, x: at(a).toFixed(1), y: 0, width: Math.max(state === "closed" ? 0 : 2, at(b) - at(a)).toFixed(1), height }));
  const openings = changes.filter((it) => it.to === "open" && Date.parse(it.at) >= from).length;
  const text = openings ? `opened ${openings === 1 ? "once" : `${openings} times`}` : "";
  const graph = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `the last ten minutes: ${text || "never open"}` }, ...bars);
  cell.replaceChildren(graph, make("span", { class: "dim" }, text));
}

function showClients(view) {
  const seconds = past("", view.clients);
  const [ok, failed, other] = seconds.reduce((sum, it) => sum.map((count, at) => count + it[at]), [0, 0, 0]);
  const moved = view.failovers.reduce((sum, it) => sum + it.last_minute, 0);
  const whole = view.clients.whole_ms;
  const text = `Clients, in the last minute: ${plural(ok + failed + other, "request")}, ${failed} failed, ${moved} answered by another provider than the first one` +
    `${whole ? `; whole answers ${millis(whole.p50)} / ${millis(whole.p99)} (half / 99 of 100)` : ""}. ${view.clients.in_flight} in flight.`;
  write(byId("clients"), text);
}

// What an engineer who is called has to know, in words.
function problems() {
  const found = [];
  for (const provider of view.providers) {
    const name = provider.provider;
    if (provider.state !== "closed") found.push([provider, `${name} is ${stateOf(provider)[1].slice(2)}`]);
    for (const model of provider.models) {
      const out = model.circuits.filter((it) => it.state !== "closed");
      if (!out.length) continue;
      const it = worst(out);
      const kinds = out.length < model.circuits.length || out.length === 1 ? ` (${out.map((it) => it.kind).join(", ")})` : "";
      found.push([it, `${name}, ${model.model || "requests without a model"}${kinds} is ${stateOf(it)[1].slice(2)}`]);
    }
    for (const key of provider.keys) found.push([{ state: "half_open", retry_in_ms: key.retry_in_ms }, `${name}, key ${key.key} is out: ${key.error}`]);
    if (provider.hint) found.push([{ state: "half_open" }, `${name}: ${provider.hint}`]);
  }
  return found;
}

function showProblems() {
  const list = problems().map(([circuit, text]) => {
    const since = circuit.since ? ` since ${clock(circuit.since)}` : "";
    const reason = why(circuit);
    return [circuit.state === "open" ? "" : "warn", `${text}${since}${reason ? `: ${reason}` : ""}. ${again(circuit)}`.trim()];
  });
  if (!list.length) list.push(["fine", "Every provider and model takes requests."]);
  const items = byId("problems");
  list.forEach(([kind, text], at) => {
    const item = items.children[at] || items.appendChild(make("li"));
    mark(item, kind);
    write(item, text);
  });
  while (items.children.length > list.length) items.lastChild.remove();
}

const left = (circuit) => circuit.retry_in_ms - (performance.now() - cameAt);

function again(circuit) {
  if (circuit.order) return circuit.order.until ? `It is released at ${clock(circuit.order.until)}.` : "Until it is released.";
  if (circuit.state === "half_open" && circuit.retry_in_ms === undefined) return "";
  if (circuit.retry_in_ms === undefined) return "";
  return left(circuit) <= 0 ? "The next request is its probe." : `Tried again in ${lasting(left(circuit))}.`;
}

// Once a second what counts down.
function tick() {
  if (!view) return;
  for (const row of rows.values()) {
    const circuit = row.circuit;
    const since = circuit.state !== "closed" && circuit.since ? `since ${clock(circuit.since)}` : "";
    let text = since;
    if (circuit.state === "open" && circuit.retry_in_ms !== undefined && !circuit.order) {
      text = `${since}${since ? ", " : ""}${left(circuit) <= 0 ? "probe is due" : `again in ${lasting(left(circuit))}`}`;
    } else if (circuit.order && circuit.order.until) {
      text = `${since}${since ? ", " : ""}until ${clock(circuit.order.until)}`;
    }
    write(row.until, text);
  }
  showProblems();
}

function showFailovers(view) {
  const failovers = view.failovers.filter((it) => it.total > 0);
  byId("failovers").hidden = !failovers.length;
  const items = failovers.map((it) => `${it.from} → ${it.to}: ${it.last_minute} in the last minute, ${it.total} in all`);
  const said = items.join("\n");
  if (byId("flows").dataset.said === said) return;
  byId("flows").dataset.said = said;
  byId("flows").replaceChildren(...items.map((it) => make("li", {}, it)));
  const [from, to] = ["from", "to"].map((end) => [...new Set(failovers.map((it) => it[end]))]);
  const step = 34, width = 420, height = Math.max(from.length, to.length) * step;
  const y = (names, name) => names.indexOf(name) * step + step / 2;
  const most = Math.max(1, ...failovers.map((it) => it.last_minute));
  const cut = (name) => (name.length > 16 ? `${name.slice(0, 15)}…` : name);
  const paths = failovers.map((it) => {
    const [a, b] = [y(from, it.from), y(to, it.to)];
    return draw("path", { class: "flow", d: `M130 ${a} C210 ${a} 210 ${b} 285 ${b}`, "stroke-width": (1 + 13 * (it.last_minute / most)).toFixed(1) });
  });
  const names = [...from.map((name) => draw("text", { x: 122, y: y(from, name) + 5, "text-anchor": "end" }, cut(name))), ...to.map((name) => draw("text", { x: 293, y: y(to, name) + 5 }, cut(name)))];
  byId("flow").replaceChildren(draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" }, ...paths, ...names));
}

const place = (change) => [change.provider, change.model, change.kind].filter(Boolean).join(", ");

function sentence(change) {
  const reason = change.cause ? ` (${[CAUSES[change.cause] || change.cause, change.error_type, change.message].filter(Boolean).join(": ")})` : "";
  return `${place(change)}: ${change.from.replace("_", "-")} → ${change.to.replace("_", "-")}${reason}`;
}

function showChanges(view) {
  const all = view.providers.flatMap((provider) => provider.transitions);
  all.sort((a, b) => (a.at < b.at ? 1 : -1));
  const newest = all.slice(0, 30);
  const said = JSON.stringify(newest.map((it) => [it.at, place(it), it.to]));
  const list = byId("changes");
  if (list.dataset.said === said) return;
  list.dataset.said = said;
  const items = newest.map((it) => make("li", {}, make("time", { datetime: it.at }, clock(it.at)), ` ${sentence(it)}`));
  list.replaceChildren(...(items.length ? items : [make("li", { class: "dim" }, "None since the gateway began.")]));
}

// ---- acting ----

const token = () => sessionStorage.getItem("fusebox-token");

function headers(more = {}) {
  return token() ? { authorization: `Bearer ${token()}`, ...more } : more;
}

let asked = null;

const ASKED = {
  isolate: (name) => [`Isolate ${name}?`, "No request is sent there until it is released."],
  release: (name) => [`Release ${name}?`, "Requests are sent there again, and the circuit decides from now on."],
  reset: (name) => [`Reset ${name}?`, "The circuit closes at once. Failures, cooldowns and orders are forgotten, of a provider also those of its keys and models."],
};

function ask(action, target, name) {
  asked = { action, target };
  const [title, text] = ASKED[action](target.model === undefined ? name : `${target.provider}, ${name}`);
  write(byId("ask-title"), title);
  write(byId("ask-text"), text);
  write(byId("ask-error"), "");
  byId("ask-reason").value = "";
  byId("ask-for").value = "";
  byId("ask-reason").required = action === "isolate";
  byId("ask-for-label").hidden = action !== "isolate";
  write(byId("ask-yes"), title.split(" ")[0]);
  byId("ask").showModal();
  byId("ask-reason").focus();
}

byId("ask-no").addEventListener("click", () => byId("ask").close());
byId("ask-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { action, target } = asked;
  const parts = [target.provider, target.model].filter((it) => it !== undefined).map(encodeURIComponent);
  const wish = {};
  if (byId("ask-reason").value) wish.reason = byId("ask-reason").value;
  if (action === "isolate" && byId("ask-for").value) wish.for = byId("ask-for").value;
  try {
    const answer = await fetch(`admin/v1/circuits/${parts.join("/")}/${action}`, {
      method: "POST",
      headers: headers({ "content-type": "application/json" }),
      body: JSON.stringify(wish),
    });
    if (!answer.ok) {
      const said = await answer.json().catch(() => ({}));
      write(byId("ask-error"), said.error ? said.error.message : `The gateway answered ${answer.status}.`);
      return;
    }
    byId("ask").close();
  } catch {
    write(byId("ask-error"), "The gateway cannot be reached.");
  }
});

// ---- listening ----

class Reloaded extends Error {}

let heard = 0;
let pause = 1000;

function connection(text, isLost) {
  write(byId("connection"), text);
  mark(byId("connection"), isLost ? "lost" : "");
  document.body.classList.toggle("stale", isLost && view !== null);
}

function hear(event) {
  const lines = event.split("\n");
  const field = (name) => lines.filter((line) => line.startsWith(`${name}: `)).map((line) => line.slice(name.length + 2)).join("\n");
  const [name, data] = [field("event"), field("data")];
  if (name === "circuits" || name === "figures") {
    const next = JSON.parse(data);
    // Providers or models may be others now: the first event of a new connection has all of them.
    if (name === "figures" && next.reloads !== view.reloads) throw new Reloaded();
    show(next, name === "circuits");
    connection("live", false);
  } else if (name === "transition") {
    const change = JSON.parse(data);
    if (change.from !== change.to) write(byId("spoken"), sentence(change));
  }
}

function signIn(message) {
  write(byId("login-error"), message);
  return new Promise((resolve) => {
    const dialog = byId("login");
    if (!dialog.open) dialog.showModal();
    byId("login-form").addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem("fusebox-token", byId("token").value);
      byId("token").value = "";
      dialog.close();
      resolve();
    }, { once: true });
    dialog.addEventListener("cancel", (event) => event.preventDefault());
  });
}

async function listen() {
  const stop = new AbortController();
  heard = performance.now();
  const watch = setInterval(() => performance.now() - heard > SILENT_AFTER && stop.abort(), 500);
  try {
    const answer = await fetch("admin/v1/events", { headers: headers(), signal: stop.signal, cache: "no-store" });
    if (answer.status === 401) {
      clearInterval(watch);
      connection("a token is needed", true);
      await signIn(token() ? "That is not one of its tokens." : "");
      return 0;
    }
    if (!answer.ok) {
      const said = await answer.json().catch(() => ({}));
      throw new Error(said.error ? said.error.message : `the gateway answered ${answer.status}`);
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the gateway has ended the connection");
      heard = performance.now();
      pause = 1000;
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      try {
        events.forEach(hear);
      } catch (error) {
        if (error instanceof Reloaded) {
          stop.abort();
          return 0;
        }
        console.error(error);
        throw new Error(`this page is mistaken: ${error.message}`);
      }
    }
  } catch (error) {
    const since = view ? ` Shown is ${clock(view.at)}.` : "";
    const reason = error.name === "AbortError" || error instanceof TypeError ? "" : ` (${error.message})`;
    connection(`Connection lost${reason}.${since} Trying again.`, true);
  } finally {
    clearInterval(watch);
  }
  pause = Math.min(pause * 1.5, 5000);
  return pause;
}

(async () => {
  setInterval(tick, 1000);
  for (;;) {
    const wait = await listen();
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
})();
