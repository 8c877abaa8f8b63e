import { citation, describe, find, make, request, say, show, source, trouble, Trouble, works } from "./common.js";

const [form, field, log, clear] = ["#form", "#question", "#log", "#clear"].map(find);
let turns = [];
let count = 0;

describe().then(
  ({ support }) => {
    if (support) find("#about").textContent = `Answers from ${support.documents} documents, each with its source, or a plain “I do not know”.`;
    else trouble("This server has no documents to answer from.\nStart it with: deepen serve MODEL --docs FOLDER");
  },
  (error) => trouble(error.message),
);

field.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

clear.addEventListener("click", () => {
  turns = [];
  log.replaceChildren();
  clear.hidden = true;
  say("");
  trouble("");
  field.focus();
});

works(form, find("#go"), async (signal) => {
  const question = field.value.trim();
  if (!question) {
    field.focus();
    throw new Trouble("There is no question yet.\nWrite one, for example “How do I get a refund?”");
  }
  const number = ++count;
  const text = make("div", { class: "text" });
  const exchange = make("article", { class: "exchange", "aria-busy": "true" }, make("h2", {}, question), text);
  log.append(exchange);
  field.value = "";
  say("Searching the documents…", true);
  exchange.scrollIntoView({ block: "nearest" });
  try {
    let shown = "";
    const answer = await request("support", { question, turns }, {
      signal,
      onText: (piece) => {
        shown += piece;
        show(text, shown, { pending: true });
        say("Answering…", true);
      },
    });
    finish(exchange, text, answer, number);
    turns = [...turns, { question, answer: answer.text }].slice(-20);
    clear.hidden = false;
    return answer.status === "answered" ? `Answered, from ${answer.citations.length} of ${answer.passages.length} passages.` : "";
  } catch (error) {
    if (!text.textContent) {
      exchange.remove();
      field.value ||= question;
    }
    throw error;
  } finally {
    exchange.removeAttribute("aria-busy");
    text.querySelector(".pending")?.classList.remove("pending");
    field.focus();
  }
});

function finish(exchange, text, answer, number) {
  const id = (label) => `passage-${number}-${label}`;
  const cited = answer.passages.filter((passage) => passage.cited);
  const others = answer.passages.filter((passage) => !passage.cited);
  const titles = new Map(cited.map((passage) => [passage.id, passage.title]));
  show(text, answer.text, { link: (label) => (titles.has(label) ? citation(label, id(label), titles.get(label)) : null) });
  exchange.classList.add(answer.status);
  const list = (passages, options) => make("ol", { class: "sources" }, ...passages.map((each) => source(id(each.id), each.id, each, options)));
  if (answer.status === "ambiguous") {
    const again = (choice) => {
      field.value = `${answer.question} (${choice})`;
      form.requestSubmit();
    };
    exchange.append(make("div", { class: "choices" }, ...answer.choices.map((choice) => make("button", { type: "button", class: "slight", click: () => again(choice) }, choice))));
  }
  if (cited.length) exchange.append(list(cited, { cited: true }));
  if (others.length) {
    const name = cited.length ? "Also found, not cited" : "What was found instead";
    exchange.append(make("details", {}, make("summary", { class: "small" }, `${name} (${others.length})`), list(others, {})));
  }
}
