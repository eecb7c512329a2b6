// The form at the left -> fields of a chat completion's body. Kept in localStorage, but for the key, which is not here.

const STORE = "backplane-settings";
const form = document.getElementById("form");
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed",
  "presence_penalty", "frequency_penalty", "repetition_penalty"];
const FIELDS = ["system", ...NUMBERS, "stop", "format", "schema", "regex", "tools", "tool_choice"];

const TOOLS = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather in a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];
const SCHEMA = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" }, city: { type: "string" } },
  required: ["name", "age", "city"],
};

function parse(name) {
  const area = form.elements[name];
  const line = document.getElementById(`${name}-error`);
  try {
    const value = area.value.trim() ? JSON.parse(area.value) : null;
    if (name === "tools" && value !== null && !Array.isArray(value)) throw new Error("tools must be a list");
    line.textContent = "";
    area.removeAttribute("aria-invalid");
    return value;
  } catch (error) {
    line.textContent = error.message;
    area.setAttribute("aria-invalid", "true");
    throw error;
  }
}

/** Throws when a field does not hold what it should; the field says so itself. */
export function body() {
  const found = {};
  for (const name of NUMBERS) {
    const input = form.elements[name];
    if (!input.checkValidity()) {
      input.reportValidity();
      throw new Error(`${name}: ${input.validationMessage}`);
    }
    if (input.value !== "") found[name] = Number(input.value);
  }
  if (form.elements.stop.value) found.stop = [form.elements.stop.value];
  const format = form.elements.format.value;
  if (format === "json_object") found.response_format = { type: "json_object" };
  if (format === "json_schema") {
    const schema = parse("schema");
    if (schema === null) throw new Error("JSON schema: the schema is empty");
    found.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  if (format === "regex") {
    if (!form.elements.regex.value) throw new Error("regex: the expression is empty");
    found.guided_regex = form.elements.regex.value;
  }
  const tools = parse("tools");
  if (tools?.length) {
    found.tools = tools;
    found.tool_choice = form.elements.tool_choice.value;
  }
  return found;
}

export function system() {
  return form.elements.system.value.trim();
}

/** The model's own defaults, as placeholders. */
export function showDefaults(defaults) {
  for (const [name, value] of Object.entries(defaults)) {
    if (form.elements[name]) form.elements[name].placeholder = String(value);
  }
}

function refresh() {
  const format = form.elements.format.value;
  document.getElementById("schema-box").hidden = format !== "json_schema";
  document.getElementById("regex-box").hidden = format !== "regex";
}

function save() {
  const values = Object.fromEntries(FIELDS.map((n) => [n, form.elements[n].value]));
  try { localStorage.setItem(STORE, JSON.stringify(values)); } catch { /* private mode: nothing is kept */ }
}

function load() {
  let values = {};
  try { values = JSON.parse(localStorage.getItem(STORE) || "{}"); } catch { /* as if nothing was kept */ }
  for (const name of FIELDS) if (typeof values[name] === "string") form.elements[name].value = values[name];
}

function example(name, value) {
  document.getElementById(`${name}-example`).addEventListener("click", () => {
    form.elements[name].value = JSON.stringify(value, null, 2);
    parse(name);
    save();
  });
  form.elements[name].addEventListener("change", () => { try { parse(name); } catch { /* shown */ } });
}

export function start() {
  load();
  refresh();
  example("tools", TOOLS);
  example("schema", SCHEMA);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { refresh(); save(); });
  document.getElementById("reset").addEventListener("click", () => {
    form.reset();
    for (const name of ["tools", "schema"]) parse(name);
    refresh();
    save();
  });
}
