// The conversation: streaming, stopping, tool calls and their answers. Everything is text, nothing becomes markup.

import { call, events, key } from "./api.js";
import * as settings from "./settings.js";

const $ = (id) => document.getElementById(id);
const log = $("log"), prompt = $("prompt"), send = $("send"), stop = $("stop");
let messages = [];  // as the API takes them, without the system prompt
let running = null;  // AbortController of the answer that streams
let lastBody = null;
let model = "";

export function setModel(name) { model = name; }

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function add(role, text = "") {
  const node = element("article", { className: "message" },
    element("header", {}, element("b", { textContent: role })),
    element("div", { className: "text", textContent: text }));
  node.dataset.role = role;
  const follow = follows();
  log.append(node);
  if (follow || role === "user") log.scrollTop = log.scrollHeight;
  return node;
}

/** Is the end of the conversation in sight? Only then does new text scroll it. */
const follows = () => log.scrollHeight - log.scrollTop - log.clientHeight < 60;

function buttons() {
  const busy = running !== null;
  send.hidden = busy;
  stop.hidden = !busy;
  $("retry").disabled = busy || !messages.some((m) => m.role === "user");
  $("clear").disabled = busy || !log.children.length;
  $("curl").disabled = lastBody === null;
}

const milliseconds = (ms) => ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(2)} s`;

function pretty(json) {
  try { return JSON.stringify(JSON.parse(json), null, 2); } catch { return json; }
}

/** Ask for the next answer to what has been said, and stream it into the log. */
async function answer() {
  let options;
  try {
    options = settings.body();
  } catch (error) {
    fail(add("error"), error);
    return;
  }
  const system = settings.system();
  lastBody = {
    ...(model ? { model } : {}),
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    stream: true, stream_options: { include_usage: true }, ...options,
  };
  running = new AbortController();
  buttons();
  const node = add("assistant");
  node.dataset.open = "";
  node.setAttribute("aria-busy", "true");
  const textNode = node.querySelector(".text");
  let text = "", reasoning = "", reasoningNode = null, finish = "", usage = null, firstMs = 0, lastMs = 0;
  const calls = [];
  const begun = performance.now();
  // text is written once a frame, however many tokens came
  let due = 0;
  const write = () => {
    due = 0;
    const follow = follows();
    textNode.textContent = text;
    if (reasoning && !reasoningNode) {
      reasoningNode = element("div", { className: "reasoning" });
      textNode.before(reasoningNode);
    }
    if (reasoningNode) reasoningNode.textContent = reasoning;
    if (follow) log.scrollTop = log.scrollHeight;
  };
  try {
    const response = await call("v1/chat/completions", { body: lastBody, signal: running.signal });
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      const { content, reasoning_content, tool_calls } = choice.delta;
      if (content || reasoning_content || tool_calls) {
        lastMs = performance.now() - begun;
        firstMs ||= lastMs;
      }
      text += content ?? "";
      reasoning += reasoning_content ?? "";
      for (const part of tool_calls ?? []) {
        const known = calls[part.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } };
        if (part.id) known.id = part.id;
        if (part.function?.name) known.function.name = part.function.name;
        known.function.arguments += part.function?.arguments ?? "";
      }
      finish = choice.finish_reason ?? finish;
      due ||= requestAnimationFrame(write);
    }
  } catch (error) {
    if (error.name === "AbortError") finish = "stopped";
    else { finish = "error"; fail(node, error); }
  }
  cancelAnimationFrame(due);
  write();
  running = null;
  delete node.dataset.open;
  node.removeAttribute("aria-busy");
  const made = calls.filter(Boolean);
  if (text || made.length) {
    messages.push({ role: "assistant", content: text || null, ...(made.length ? { tool_calls: made } : {}) });
  }
  const parts = [finish];
  if (usage) {
    const seconds = (lastMs - firstMs) / 1000, n = usage.completion_tokens;
    parts.push(`${usage.prompt_tokens} + ${n} tokens`);
    if (usage.prompt_tokens_details?.cached_tokens) parts.push(`${usage.prompt_tokens_details.cached_tokens} cached`);
    if (n > 1 && seconds > 0) parts.push(`${((n - 1) / seconds).toFixed(0)} tok/s`);
  }
  if (firstMs) parts.push(`first after ${milliseconds(firstMs)}`);
  if (!text && !made.length) textNode.remove();
  node.append(element("footer", { textContent: parts.filter(Boolean).join(" · ") }));
  if (made.length) showCalls(node, made);
  buttons();
  log.scrollTop = log.scrollHeight;
}

function fail(node, error) {
  node.append(element("p", { className: "error", role: "alert", textContent: error.message }));
}

/** One card a call, with a field for its result; when all are sent the model goes on. */
function showCalls(node, calls) {
  const form = element("form", { className: "call" });
  const fields = calls.map((made, i) => {
    const id = `call-${Date.now()}-${i}`;
    const field = element("textarea", { id, className: "code", rows: 2, required: true, spellcheck: false,
      placeholder: '{"result": ...}' });
    form.append(
      element("div", { className: "line" }, element("b", { textContent: `${made.function.name}()` }),
        element("code", { className: "quiet", textContent: made.id })),
      element("pre", { textContent: pretty(made.function.arguments) }),
      element("label", { htmlFor: id, textContent: `Result of ${made.function.name}` }), field);
    return field;
  });
  const button = element("button", { type: "submit", textContent: calls.length > 1 ? "Send the results" : "Send the result" });
  form.append(button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) return;
    calls.forEach((made, i) => {
      messages.push({ role: "tool", tool_call_id: made.id, content: fields[i].value });
      fields[i].readOnly = true;
    });
    button.remove();
    answer();
  });
  node.append(form);
  fields[0].focus();
}

function shell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** The last request, to run in a shell. The key stays out of it. */
function curl() {
  const url = new URL("v1/chat/completions", document.baseURI).href;
  const auth = key() ? ` \\\n  -H "Authorization: Bearer $BACKPLANE_API_KEY"` : "";
  return `curl -N ${shell(url)} \\\n  -H 'Content-Type: application/json'${auth} \\\n  -d ${shell(JSON.stringify(lastBody))}`;
}

function say() {
  const text = prompt.value.trim();
  if (!text || running) return;
  prompt.value = "";
  messages.push({ role: "user", content: text });
  add("user", text);
  answer();
}

export function start() {
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); say(); });
  prompt.addEventListener("keydown", (event) => {
    // an input method's Enter picks a word and sends nothing
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) running?.abort();
  });
  stop.addEventListener("click", () => { running?.abort(); prompt.focus(); });
  $("clear").addEventListener("click", () => {
    messages = [];
    log.replaceChildren();
    buttons();
    prompt.focus();
  });
  $("retry").addEventListener("click", () => {
    if (running) return;
    while (messages.length && messages.at(-1).role !== "user") messages.pop();
    while (log.lastElementChild && log.lastElementChild.dataset.role !== "user") log.lastElementChild.remove();
    answer();
  });
  $("curl").addEventListener("click", async () => {
    const button = $("curl");
    try {
      await navigator.clipboard.writeText(curl());
      button.textContent = "Copied";
    } catch {
      add("curl", curl());  // no clipboard without https: show it instead
    }
    setTimeout(() => { button.textContent = "Copy as curl"; }, 1500);
  });
  buttons();
}
