import { find, make, request, say, show, trouble, Trouble, works } from "./common.js";

const [begin, reply, lesson, log, field] = ["#begin", "#reply", "#lesson", "#log", "#answer"].map(find);
const RUNGS = [["attempt", "Your own try"], ["question", "A question"], ["hint", "A hint"], ["step", "First step"], ["worked", "Worked answer"]];
const KINDS = {
  diagnosis: "To find where you stand", level: "Your level", explanation: "Explanation", exercise: "Exercise", hint: "Help", near: "Nearly",
  right: "Right", worked: "Worked answer", skipped: "Skipped", progress: "Progress", help: "Help", end: "End of the lesson",
};
let who = {};

const value = (selector) => find(selector).value.trim();

works(begin, find("#go"), async (signal) => {
  if (!value("#topic")) {
    find("#topic").focus();
    throw new Trouble("There is no topic yet.\nWrite one, for example fractions.");
  }
  who = { topic: value("#topic"), learner: value("#learner") || "me", ...(value("#level") && { level: value("#level") }) };
  log.replaceChildren();
  const turns = await take({}, signal);
  find("#lesson-title").textContent = `Lesson: ${who.topic}`;
  begin.hidden = true;
  goOn(turns);
});

works(reply, find("#send"), async (signal) => {
  const given = value("#answer");
  if (!given) {
    field.focus();
    throw new Trouble("There is no answer yet.\nWrite one, or ask for a hint.");
  }
  const mine = make("p", { class: "mine" }, make("span", { class: "unseen" }, "You: "), COMMANDS[given] ?? given);
  log.append(mine);
  field.value = "";
  try {
    goOn(await take({ answer: given }, signal));
  } catch (error) {
    mine.remove();
    field.value = given in COMMANDS ? "" : given;
    field.focus();
    throw error;
  }
});

const COMMANDS = { "/hint": "A hint, please.", "/explain": "Explain it, please.", "/skip": "Skip this one.", "/quit": "That is all for now." };
for (const button of document.querySelectorAll("[data-command]")) {
  button.addEventListener("click", () => {
    field.value = button.dataset.command;
    reply.requestSubmit();
  });
}

find("#forget").addEventListener("click", async () => {
  const learner = value("#learner") || "me";
  if (!confirm(`Delete all progress that is kept for “${learner}”?`)) return;
  trouble("");
  try {
    const gone = await request("tutor", { learner, forget: true });
    say(`Deleted for “${gone.learner}”: ${gone.topics} topics, ${gone.exercises} exercises, ${gone.attempts} answers.`);
  } catch (error) {
    trouble(error.message);
  }
});

/** Ask the tutor, and show what it says as it comes, then turn by turn. */
async function take(body, signal) {
  const coming = make("div", { class: "said", "aria-busy": "true" });
  const text = make("div", { class: "text" });
  coming.append(text);
  log.append(coming);
  lesson.hidden = false;
  say("The tutor is thinking…", true);
  let shown = "";
  try {
    const { turns } = await request("tutor", { ...who, ...body }, {
      signal,
      onText: (piece) => {
        shown += piece;
        show(text, shown, { pending: true });
      },
    });
    coming.replaceWith(...turns.map(said));
    return turns;
  } catch (error) {
    coming.remove();
    throw error;
  } finally {
    say("");
  }
}

function said(turn) {
  const text = make("div", { class: "text" });
  show(text, turn.text);
  const notes = [];
  if (turn.place) notes.push(`from ${turn.place}`);
  if (turn.judge === "model") notes.push("judged by the model, which can be wrong");
  if (turn.origin === "model") notes.push("in the model’s own words");
  if (turn.trouble) notes.push(turn.trouble);
  return make(
    "div",
    { class: `said turn-${turn.kind}` },
    make("p", { class: "kind" }, KINDS[turn.kind] ?? turn.kind),
    text,
    notes.length ? make("p", { class: "quiet small" }, `${notes.join("; ")}.`) : null,
  );
}

/** Where the learner stands after these turns, and what can be done next. */
function goOn(turns) {
  const last = turns.at(-1);
  const percent = Math.round(100 * last.mastery);
  find("#standing-text").textContent = `${last.level ? `Level: ${last.level}` : "Level: not known yet"} · mastery ${percent} %${last.box ? ` · box ${last.box} of 5` : ""}`;
  find("#mastery").value = last.mastery;
  const rung = RUNGS.findIndex(([name]) => name === last.rung);
  find("#ladder").replaceChildren(
    ...RUNGS.map(([, name], index) => make("li", { class: index < rung ? "passed" : null, "aria-current": index === rung ? "step" : null }, name)),
  );
  const over = last.kind === "end";
  reply.hidden = over;
  begin.hidden = !over;
  const target = over ? find("#lesson-title") : field;
  target.focus({ preventScroll: true });
  (over ? log.lastElementChild : reply).scrollIntoView({ block: over ? "center" : "end" });
}
