// Talks to the server: the key, errors in words, and server-sent events over fetch (EventSource sends no headers).

const KEY = "backplane-key";
let dialogOpen = null;

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function key() {
  try { return sessionStorage.getItem(KEY) || ""; } catch { return ""; }
}

/** Show the dialog; resolves to true when a key was given. Two that ask at once share one dialog. */
export function askKey(why = "") {
  dialogOpen ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    const input = document.getElementById("key-input");
    document.getElementById("key-error").textContent = why;
    input.value = key();
    dialog.returnValue = "cancel";  // what Escape leaves
    document.getElementById("key-cancel").onclick = () => dialog.close("cancel");
    dialog.addEventListener("close", () => {
      dialogOpen = null;
      const given = dialog.returnValue === "ok";
      if (given) {
        try { sessionStorage.setItem(KEY, input.value.trim()); } catch { /* the tab forgets it */ }
      }
      resolve(given);
    }, { once: true });
    dialog.showModal();
    input.select();
  });
  return dialogOpen;
}

/** fetch with the key. Asks for a key when the server wants one. Throws ApiError with the server's own words. */
export async function call(path, { body, signal } = {}) {
  for (;;) {
    const headers = {};
    if (key()) headers.authorization = `Bearer ${key()}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    const response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers, signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (response.ok) return response;
    let message = `${response.status} ${response.statusText}`;
    try { message = (await response.json()).error.message; } catch { /* not ours: the status must do */ }
    if (response.status === 401 && await askKey(key() ? message : "")) continue;
    throw new ApiError(response.status, message);
  }
}

/** The `data:` payloads of a streamed response, as they come. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const parts = rest.split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (part.startsWith("data: ")) yield part.slice(6);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
