// What all pages share. Text of models and documents becomes text nodes, never HTML.

export const find = (selector) => document.querySelector(selector);

/** An element with attributes (functions are listeners) and children (strings are text). */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export class Trouble extends Error {}

const KEY = "deepen-key";

/** Ask the server; a key is asked for where it wants one. */
async function ask(method, path, body, signal) {
  for (let refused = false; ; refused = true) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
    let answer;
    try {
      answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The server does not answer.\nSee whether deepen serve is still running, then try again.");
    }
    if (answer.status === 401) {
      await askKey(refused || key !== null, signal);
      continue;
    }
    if (answer.ok) return answer;
    throw new Trouble(await reason(answer));
  }
}

async function reason(answer) {
  try {
    const { error } = await answer.json();
    return sentence(error.message);
  } catch {
    return `The server answered with status ${answer.status}.\nTry again, or look at its log.`;
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?)]$/.test(text) ? "" : ".");

/** A form for the key, above everything else; the key stays in this tab. */
function askKey(wrong, signal) {
  sessionStorage.removeItem(KEY);
  find("#key")?.remove();
  return new Promise((resolve, reject) => {
    const input = make("input", { type: "password", id: "key-input", autocomplete: "off", required: true, "aria-describedby": "key-hint" });
    const form = make(
      "form",
      {
        id: "key", class: "card", "aria-labelledby": "key-label",
        submit: (event) => {
          event.preventDefault();
          const given = input.value.trim();
          if (!/^[\x21-\x7e]+$/.test(given)) return input.focus();
          sessionStorage.setItem(KEY, given);
          form.remove();
          find("#main").focus();
          resolve();
        },
      },
      make("label", { for: "key-input", id: "key-label" }, wrong ? "That key was not accepted. Another key?" : "This server asks for a key"),
      make("span", { id: "key-hint", class: "hint" }, "Whoever started the server has it. It is kept until you close this tab."),
      make("div", { class: "row" }, input, make("button", {}, "Use this key")),
    );
    signal?.addEventListener("abort", () => (form.remove(), reject(new DOMException("stopped", "AbortError"))));
    find("#main").prepend(form);
    input.focus();
  });
}

/** What the server has: limits, and the documents of support. */
export async function describe() {
  return (await ask("GET", "/v1/apps")).json();
}

/** Ask an application and hear its events as they come; its result. */
export async function request(app, body, { onText = () => {}, onProgress = () => {}, signal } = {}) {
  const answer = await ask("POST", `/v1/apps/${app}`, { ...body, stream: true }, signal);
  const decoder = new TextDecoder();
  const reader = answer.body.getReader();
  let held = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The connection broke off.\nTry again.");
    }
    held += decoder.decode(piece.value, { stream: !piece.done });
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const [, name, data] = /^event: (\w+)\ndata: (.*)$/s.exec(event);
      const content = JSON.parse(data);
      if (name === "text") onText(content.text);
      if (name === "progress") onProgress(content);
      if (name === "error") throw new Trouble(sentence(content.error.message));
      if (name === "result") return content;
    }
    if (piece.done) throw new Trouble("The answer broke off.\nTry again.");
  }
}

/**
 * Let a form's button start work and stop it again. What goes wrong is said in `#trouble`, how it goes in `#state`.
 * `work` gets an abort signal and returns what is said at the end.
 */
export function works(form, button, work) {
  const name = button.textContent;
  let running = null;
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return running.abort();
    running = new AbortController();
    button.textContent = "Stop";
    say("");
    trouble("");
    try {
      say((await work(running.signal)) ?? "", false);
    } catch (error) {
      say(error.name === "AbortError" ? "Stopped." : "");
      if (error.name !== "AbortError") trouble(error instanceof Trouble ? error.message : `This page failed: ${error.message}\nReload it.`);
      if (error.name !== "AbortError" && !(error instanceof Trouble)) console.error(error);
    } finally {
      running = null;
      button.textContent = name;
    }
  });
}

/** A button that copies a text. */
export function copies(button, text) {
  button.hidden = false;
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(text);
      say("Copied.");
    } catch {
      trouble("The browser did not allow copying.\nSelect the text and copy it.");
    }
  };
}

/** Say how it goes, also to screen readers; `busy` shows that it goes on. */
export function say(text, busy = false) {
  const state = find("#state");
  if (state.textContent !== text) state.textContent = text;
  state.classList.toggle("busy", busy);
}

/** Say what went wrong and what to do. */
export const trouble = (text) => { find("#trouble").textContent = text; };

/** Show Markdown of the simplest kind in an element; `[1]` and `[S1]` go through `link` where it knows them. */
export function show(element, text, { link = () => null, pending = false } = {}) {
  const blocks = [];
  let list = null;
  for (const line of text.split("\n")) {
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    const item = /^\s*(?:[-*•]|(\d{1,3})[.)])\s+(.*)$/.exec(line);
    if (heading) blocks.push(make("h3", {}, ...inline(heading[2], link)));
    else if (item) {
      const tag = item[1] ? "ol" : "ul";
      if (!list || list.tagName.toLowerCase() !== tag) blocks.push((list = make(tag, item[1] ? { start: item[1] } : {})));
      list.append(make("li", {}, ...inline(item[2], link)));
      continue;
    } else if (line.trim()) blocks.push(make("p", {}, ...inline(line, link)));
    list = null;
  }
  if (pending) {
    const last = blocks.at(-1);
    (last?.lastElementChild?.tagName === "LI" ? last.lastElementChild : last)?.classList.add("pending");
  }
  element.replaceChildren(...blocks);
}

function inline(text, link) {
  return text.split(/(\*\*[^*]+\*\*|\[S?\d+\]|\(no source found\))/).map((part) => {
    const label = /^\[(S?\d+)\]$/.exec(part);
    if (label) return link(label[1]) ?? part;
    if (part === "(no source found)") return make("span", { class: "unsure" }, part);
    return part.startsWith("**") && part.length > 4 ? make("strong", {}, part.slice(2, -2)) : part;
  });
}

/** A label in a text that opens and shows its passage. */
export function citation(label, id, name) {
  return make("a", { class: "cite", href: `#${id}`, "aria-label": `source ${label}: ${name}`, click: (event) => reveal(event, id) }, label);
}

function reveal(event, id) {
  event.preventDefault();
  const item = document.getElementById(id);
  const details = item.querySelector("details");
  details.open = true;
  for (const other of document.querySelectorAll(".sources .shown")) other.classList.remove("shown");
  item.classList.add("shown");
  item.scrollIntoView({ block: "center" });
  details.querySelector("summary").focus({ preventScroll: true });
}

/** A passage in a list of sources. */
export function source(id, label, passage, { open = false, cited = false } = {}) {
  const place = passage.page ? `${passage.file}, page ${passage.page}` : `${passage.file}, line ${passage.line}`;
  const title = [...new Set([passage.title, ...passage.headings])].filter(Boolean).join(" › ") || passage.text.trim().slice(0, 80);
  return make(
    "li",
    { id, class: cited ? "cited" : null },
    make(
      "details",
      { open },
      make(
        "summary",
        {},
        make("span", { class: "badge" }, cited ? `${label} cited` : label),
        make("span", { class: "title" }, title),
        " ",
        make("span", { class: "place" }, place),
      ),
      make("blockquote", {}, passage.text.trim()),
    ),
  );
}

/** A box that takes files by dropping and by choosing; `files()` gives what was taken. */
export function takesFiles(box, { most }) {
  const input = box.querySelector("input[type=file]");
  const list = box.querySelector(".files");
  let taken = [];
  const add = (files) => {
    const size = [...taken, ...files].reduce((sum, file) => sum + Math.ceil(file.size / 3) * 4, 1000);
    if (size > most()) return trouble(`These files are too large for this server: together ${format(size)} as they are sent, at most ${format(most())}.\nTake fewer, or start it with a larger --max-body.`);
    trouble("");
    taken = [...taken, ...[...files].filter((file) => !taken.some((other) => other.name === file.name && other.size === file.size))];
    draw();
  };
  const draw = () => {
    list.replaceChildren(
      ...taken.map((file) =>
        make("li", {}, make("span", {}, `${file.name} `, make("span", { class: "quiet small" }, format(file.size))),
          make("button", { type: "button", class: "slight", "aria-label": `Remove ${file.name}`, click: () => {
            taken = taken.filter((other) => other !== file);
            draw();
            input.focus();
          } }, "Remove")),
      ),
    );
  };
  input.addEventListener("change", () => { add(input.files); input.value = ""; });
  for (const name of ["dragenter", "dragover"]) box.addEventListener(name, (event) => { event.preventDefault(); box.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) box.addEventListener(name, () => box.classList.remove("over"));
  box.addEventListener("drop", (event) => { event.preventDefault(); add(event.dataTransfer.files); });
  return { files: () => Promise.all(taken.map(encoded)), count: () => taken.length };
}

const format = (bytes) => (bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

function encoded(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ name: file.name, base64: reader.result.slice(reader.result.indexOf(",") + 1) });
    reader.onerror = () => reject(new Trouble(`${file.name} cannot be read.\nChoose it again.`));
    reader.readAsDataURL(file);
  });
}
