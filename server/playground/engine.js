// The engine at work: reads /backplane/events while the page is visible, and draws what comes.

import { call, events } from "./api.js";
import { BlockMap } from "./blocks.js";
import { Curves } from "./curves.js";

const $ = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");
const RATE_WINDOW_S = 1;
const KINDS = ["free", "cached", "used", "shared"];

let about = null;
let ticks = [];
let reading = null;

const seconds = (s) => s === 0 ? "0" : s < 0.001 ? `${(s * 1e6).toFixed(0)} us` : s < 1 ? `${+(s * 1000).toPrecision(2)} ms` : `${+s.toPrecision(3)} s`;
const short = (v) => v >= 1000 ? `${+(v / 1000).toPrecision(3)}k` : `${+v.toPrecision(3)}`;
const bytes = (v) => v >= 2 ** 30 ? `${(v / 2 ** 30).toFixed(1)} GiB` : `${(v / 2 ** 20).toFixed(1)} MiB`;

const blocks = new BlockMap($("blocks"), (cell, kind, share) => {
  if (cell < 0) {
    $("blocks-line").textContent = "Point at a cell, or use the arrow keys.";
    return;
  }
  const first = cell * about.blocks_a_cell, last = Math.min(first + about.blocks_a_cell, about.num_blocks) - 1;
  const which = first === last ? `block ${whole.format(first)}` : `blocks ${whole.format(first)} to ${whole.format(last)}`;
  const count = Math.round(share * (last - first + 1));
  $("blocks-line").textContent = first === last || kind === "free" ? `${which}: ${kind}` : `${which}: ${count} taken, mostly ${kind}`;
});
const rate = new Curves($("rate"), { output: "--c1", prompt: "--c2" }, short);
const latency = new Curves($("latency"), { gap: "--c1", gap99: "--c2", ttft: "--c3" }, seconds);

function show(state, text) {
  const node = $("state");
  if (node.textContent !== text) node.textContent = text;  // read aloud only when it is another
  node.dataset.state = state;
}

function pair(list, name, value) {
  const dt = document.createElement("dt"), dd = document.createElement("dd");
  dt.textContent = name.replaceAll("_", " ");
  dd.textContent = value;
  list.append(dt, dd);
}

function showEngine(engine, told) {
  about = engine;  // again when another engine took the place of one that died
  ticks = [];
  told(engine);
  $("model").textContent = `${engine.models.join(", ")} · ${whole.format(engine.max_model_len)} tokens · ${engine.version}`;
  $("pool").textContent = `${whole.format(engine.num_blocks)} blocks of ${engine.block_size} tokens` +
    (engine.blocks_a_cell > 1 ? `, ${engine.blocks_a_cell} a cell` : "");
  for (const id of ["choices", "memory", "timeline", "plugins"]) $(id).replaceChildren();
  for (const [name, value] of Object.entries(engine.choices)) pair($("choices"), name, value);
  for (const [name, value] of Object.entries(engine.memory)) pair($("memory"), name, bytes(value));
  const total = engine.timeline.reduce((sum, [, s]) => sum + s, 0);
  $("startup").textContent = `${total.toFixed(2)} s`;
  let begun = 0;
  for (const [name, spent] of engine.timeline) {
    const item = document.createElement("li"), label = document.createElement("span");
    const time = document.createElement("span"), bar = document.createElement("i");
    label.textContent = name;
    time.textContent = seconds(spent);
    bar.style.marginInlineStart = `${begun / total * 100}%`;
    bar.style.width = `${spent / total * 100}%`;
    item.append(label, time, bar);
    $("timeline").append(item);
    begun += spent;
  }
  for (const plugin of engine.plugins) {
    const item = document.createElement("li");
    item.textContent = plugin;
    $("plugins").append(item);
  }
}

function showRows(rows, running) {
  const body = $("rows").tBodies[0];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach(([row, prompt, computed, tokens, most, held, cached], i) => {
    let line = body.rows[i];
    if (!line) {
      line = body.insertRow();
      for (let c = 0; c < 4; c++) line.insertCell();
      const track = document.createElement("div");
      track.className = "track";
      for (let c = 0; c < 3; c++) track.append(document.createElement("i"));
      line.cells[2].append(track);
    }
    line.cells[0].textContent = row;
    line.cells[1].textContent = `${tokens} / ${most}`;
    line.cells[3].textContent = held;
    const done = Math.min(prompt, computed);
    const parts = [Math.min(cached, done), Math.max(0, done - cached), tokens - prompt];
    [...line.cells[2].firstChild.children].forEach((bar, c) => { bar.style.width = `${parts[c] / most * 100}%`; });
  });
  $("rows-more").textContent = running > rows.length ? `the first ${rows.length} of ${running}` : "";
}

function showTick(tick) {
  const { stats } = tick;
  ticks.push(tick);
  while (ticks.length > 2 && tick.time_s - ticks[1].time_s >= RATE_WINDOW_S) ticks.shift();
  const past = ticks[0], elapsed = tick.time_s - past.time_s;
  const per = (name) => elapsed > 0 ? Math.max(0, stats[name] - past.stats[name]) / elapsed : 0;
  const output = per("generation_tokens"), prompt = per("prompt_tokens");
  $("f-running").textContent = whole.format(stats.num_running);
  $("f-waiting").textContent = whole.format(stats.num_waiting);
  $("f-output").textContent = whole.format(Math.round(output));
  $("f-prompt").textContent = whole.format(Math.round(prompt));
  $("f-steps").textContent = whole.format(Math.round(per("num_steps")));
  $("f-preempted").textContent = whole.format(stats.num_preemptions);
  const used = stats.num_blocks ? 1 - stats.num_free_blocks / stats.num_blocks : 0;
  $("f-usage").textContent = `${(used * 100).toFixed(used && used < 0.1 ? 1 : 0)} %`;
  $("f-hits").textContent = stats.prefix_cache_queries ? `${Math.round(stats.prefix_cache_hits / stats.prefix_cache_queries * 100)} %` : "–";
  tick.block_counts.forEach((count, i) => { $(`k-${KINDS[i]}`).textContent = whole.format(count); });
  $("blocks").setAttribute("aria-label", `Block pool: ${tick.block_counts.map((n, i) => `${n} ${KINDS[i]}`).join(", ")}`);
  if (tick.cells) blocks.take(Uint8Array.from(atob(tick.cells), (c) => c.charCodeAt(0)));
  showRows(tick.rows, stats.num_running);
  const { gap, ttft } = tick.latency;
  rate.add({ t: tick.time_s, output, prompt });
  latency.add({ t: tick.time_s, gap: gap?.p50_s ?? null, gap99: gap?.p99_s ?? null, ttft: ttft?.p50_s ?? null });
  const dead = tick.error !== null && tick.error !== "busy";
  $("engine-error").textContent = dead ? tick.error : "";
  if (dead) show("bad", "engine down");
  else if (tick.draining) show("bad", "shutting down");
  else show("live", stats.num_running + stats.num_waiting ? "working" : "idle");
}

export function redraw() {
  blocks.draw();
  rate.draw();
  latency.draw();
}

async function read(told, signal) {
  for (let pause = 500; ; pause = Math.min(pause * 2, 8000)) {
    try {
      const response = await call("backplane/events", { signal });
      for await (const data of events(response)) {
        const tick = JSON.parse(data);
        if (tick.engine) showEngine(tick.engine, told);
        showTick(tick);
        pause = 500;
      }
      show("bad", "disconnected");
    } catch (error) {
      if (signal.aborted) return;
      show("bad", error.status === 401 ? "needs a key" : "disconnected");
      if (error.status === 401) return;  // whoever gives a key starts again
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
    if (signal.aborted) return;
  }
}

export function watch(told) {
  reading?.abort();
  reading = null;
  if (document.hidden) return;  // nobody looks: the server asks the engine nothing
  reading = new AbortController();
  read(told, reading.signal);
}

// All streams begin with the same text, so that the prefix cache has something to share.
const OPENING = "A long time ago there was a town between a river and a mountain. In the town lived a fox, a hen, a mole, " +
  "two old owls and a young hare, and every evening they met under the big tree by the bridge. One of them told a " +
  "story, and the others listened until the moon stood over the mill. This is the story of evening number ";

/** Some streams at once, to see the engine at work: one request of many prompts, since a browser opens six connections. */
export function startLoad(modelName) {
  const button = $("load-run"), line = $("load-line");
  let stopper = null;
  $("load").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (stopper) { stopper.abort(); return; }
    const count = Number($("load-streams").value), tokens = Number($("load-tokens").value);
    stopper = new AbortController();
    button.textContent = "Stop";
    line.textContent = `${count} streams run`;
    const body = {
      ...(modelName() ? { model: modelName() } : {}),
      prompt: Array.from({ length: count }, (_, i) => `${OPENING}${i + 1}:`),
      stream: true, stream_options: { include_usage: true }, max_tokens: tokens, ignore_eos: true, temperature: 0.8,
    };
    const begun = performance.now();
    try {
      const response = await call("v1/completions", { body, signal: stopper.signal });
      let made = 0;
      for await (const data of events(response)) {
        if (data === "[DONE]") break;
        const { error, usage } = JSON.parse(data);
        if (error) throw new Error(error.message);
        made = usage?.completion_tokens ?? made;
      }
      const spent = (performance.now() - begun) / 1000;
      line.textContent = `${whole.format(made)} tokens in ${spent.toFixed(1)} s, ${whole.format(Math.round(made / spent))} tok/s`;
    } catch (error) {
      line.textContent = error.name === "AbortError" ? "stopped" : error.message;
    }
    button.textContent = "Run";
    stopper = null;
  });
}
