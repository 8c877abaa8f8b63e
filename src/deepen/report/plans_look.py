"""How the page of a search looks and what it does, beyond what every page has."""

STYLE = """
.map { display: block; width: 100%; height: auto; }
.map rect[role=button] { cursor: pointer; outline: none; stroke: var(--line); stroke-width: .6; }
.hatch { stroke: #fff; stroke-width: 2.4; opacity: .8; } .over { fill: url(#hatch); }
.over, .mark, .ring { pointer-events: none; } .mark { fill: #fff; stroke: #000; stroke-width: 1.4; }
.ring { fill: none; stroke: var(--ink); stroke-width: 2.5; }
.beside { display: grid; gap: 1.5rem; grid-template-columns: minmax(0, 5fr) minmax(16rem, 3fr); }
.aside { position: sticky; top: 1rem; align-self: start; } #told { min-height: 7.8em; }
.scale { width: 100%; max-width: 22rem; }
.key { list-style: none; padding: 0; margin: .6rem 0; font-size: .875rem; }
.key li { display: flex; gap: .5rem; align-items: center; margin: .25rem 0; }
.key svg { width: 20px; height: 20px; flex: none; }
.chart { min-width: 30rem; height: auto; } .curve { fill: none; stroke-width: 2; }
.dotted .curve, .dotted.sample .curve { stroke-dasharray: 1 5; stroke-linecap: round; }
.span { opacity: .5; } .hollow { fill: var(--paper); stroke-width: 2; }
.legend .sample { width: 28px; height: 12px; vertical-align: -1px; }
.command { display: flex; gap: .5rem; align-items: stretch; margin: .6rem 0; max-width: 44rem; }
.command code { flex: 1; padding: .55rem .7rem; background: var(--card); border-radius: 6px; overflow-wrap: anywhere; }
.command:has(code:empty) { visibility: hidden; }
button { font: inherit; color: inherit; cursor: pointer; }
.command button { border: 1px solid var(--line); border-radius: 6px; background: var(--paper); padding: 0 .8rem; }
button.plan { border: 0; background: none; padding: .1rem 0; white-space: nowrap; text-decoration: underline dotted;
  text-underline-offset: 3px; }
.rank { white-space: nowrap; }
.tied { font-size: .75rem; border: 1px solid var(--line); border-radius: 9px; padding: 0 .4rem; color: var(--soft); }
@media (max-width: 52rem) { .beside { grid-template-columns: minmax(0, 1fr); } .aside { position: static; } }
"""

SCRIPT = """
const told = document.getElementById("told"), chosen = document.getElementById("chosen") ?? document.getElementById("first");
const cells = document.getElementById("cells"), ring = document.getElementById("ring");
const choose = (text, command) => { if (told) told.textContent = text; chosen.textContent = command; };

if (cells) {
  const all = [...cells.children], places = new Map(all.map((cell) => [cell.dataset.i + ":" + cell.dataset.j, cell]));
  const far = Math.max(...all.map((cell) => Number(cell.dataset.j)));
  let current = all[0], pinned = null;
  const show = (cell) => {
    ring.setAttribute("visibility", "visible");
    ring.setAttribute("x", cell.x.baseVal.value - 1.5);
    ring.setAttribute("y", cell.y.baseVal.value - 1.5);
    told.textContent = cell.getAttribute("aria-label");
  };
  const pin = (cell) => {
    if (pinned) pinned.removeAttribute("aria-pressed");
    pinned = cell;
    cell.setAttribute("aria-pressed", "true");
    show(cell);
    choose(cell.getAttribute("aria-label"), cell.dataset.command);
  };
  cells.addEventListener("pointerover", (event) => { if (event.target.dataset.i) show(event.target); });
  cells.addEventListener("pointerleave", () => { if (pinned) show(pinned); });
  cells.addEventListener("click", (event) => { if (event.target.dataset.i) pin(event.target); });
  cells.addEventListener("focusin", (event) => {
    current.tabIndex = -1;
    current = event.target;
    current.tabIndex = 0;
    show(current);
  });
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  cells.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      pin(current);
    } else if (event.key in moves) {
      event.preventDefault();
      const [down, across] = moves[event.key];
      let i = Number(current.dataset.i) + down, j = Number(current.dataset.j) + across;
      for (; i >= 0 && i <= far && j >= 0 && j <= far; i += down, j += across) {
        const next = places.get(i + ":" + j);
        if (next) { next.focus(); break; }
      }
    }
  });
}

for (const button of document.querySelectorAll("button.plan")) {
  button.addEventListener("click", () => {
    choose(button.dataset.about, button.dataset.command);
    chosen.parentElement.scrollIntoView({ block: "center" });
  });
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
"""
