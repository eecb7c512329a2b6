// Puts the parts together: theme, panels, key.

import { askKey } from "./api.js";
import * as chat from "./chat.js";
import * as engine from "./engine.js";
import * as settings from "./settings.js";

const $ = (id) => document.getElementById(id);
const THEME = "backplane-theme";
const THEMES = { auto: "as the system says", light: "light", dark: "dark" };
let model = "";

function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme").textContent = `Theme: ${name}`;
  $("theme").setAttribute("aria-label", `Theme: ${THEMES[name]}`);
  try { localStorage.setItem(THEME, name); } catch { /* the system's then, next time */ }
  engine.redraw();
}

function theme() {
  let name = "auto";
  try { name = localStorage.getItem(THEME) || "auto"; } catch { /* as the system says */ }
  return name in THEMES ? name : "auto";
}

function told(about) {
  model = about.models[0];
  chat.setModel(model);
  settings.showDefaults(about.sampling_defaults);
}

setTheme(theme());
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(theme()) + 1) % names.length]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", engine.redraw);

for (const button of document.querySelectorAll("nav button")) {
  button.addEventListener("click", () => {
    document.body.dataset.view = button.dataset.view;
    for (const other of document.querySelectorAll("nav button")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
  });
}
$("key").addEventListener("click", async () => { if (await askKey()) engine.watch(told); });

settings.start();
chat.start();
engine.startLoad(() => model);
document.addEventListener("visibilitychange", () => engine.watch(told));
engine.watch(told);
