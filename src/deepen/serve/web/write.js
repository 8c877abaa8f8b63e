import { citation, copies, describe, find, make, request, say, show, source, takesFiles, trouble, Trouble, works } from "./common.js";

const value = (selector) => find(selector).value.trim();
let most = 8e6;
describe().then((known) => { most = known.max_body_bytes; }, (error) => trouble(error.message));
const facts = takesFiles(find("#drop"), { most: () => most });
const [form, result, written, plan] = ["#form", "#result", "#written", "#plan"].map(find);
let planOnly = false;

find("#plan-first").addEventListener("click", () => {
  planOnly = true;
  form.requestSubmit();
});

works(form, find("#go"), async (signal) => {
  const wants = planOnly;
  planOnly = false;
  if (!value("#about")) {
    find("#about").focus();
    throw new Trouble("It is not said yet what it is about.\nWrite a sentence or two.");
  }
  const body = { kind: value("#kind"), about: value("#about") };
  for (const key of ["tone", "audience", "language"]) if (value(`#${key}`)) body[key] = value(`#${key}`);
  if (value("#words")) body.words = Number(value("#words"));
  if (facts.count()) body.facts = await facts.files();
  if (wants) body.outline = true;
  else if (value("#outline")) body.outline_file = value("#outline");
  result.hidden = find("#cited").hidden = find("#copy").hidden = true;
  for (const selector of ["#written", "#checks", "#sources"]) find(selector).replaceChildren();
  find("#facts").textContent = "";
  say("Planning…", true);
  try {
    let shown = "";
    const answer = await request("write", body, {
      signal,
      onText: (piece) => {
        if (wants) return;
        shown += piece;
        result.hidden = false;
        show(written, shown, { pending: true });
      },
      onProgress: ({ stage }) => stage && stage !== "working" && say(`${stage.charAt(0).toUpperCase()}${stage.slice(1)}…`, true),
    });
    if (wants) {
      plan.hidden = false;
      find("#outline").value = answer.text;
      find("#outline").focus();
      return "The outline is ready: change it, then write.";
    }
    finish(answer);
    find("#result-title").focus();
    return "The text is ready.";
  } finally {
    written.querySelector(".pending")?.classList.remove("pending");
  }
});

function finish(answer) {
  const resting = new Map(answer.citations.map((each) => [String(each.number), each]));
  const id = (label) => `source-${label}`;
  show(written, answer.text, { link: (label) => (resting.has(label) ? citation(label, id(label), resting.get(label).file) : null) });
  result.hidden = false;
  copies(find("#copy"), answer.text);
  find("#cited").hidden = !resting.size;
  find("#sources").replaceChildren(...[...resting].map(([label, each]) => source(id(label), label, { title: "", ...each })));
  const doubtful = answer.unsupported.filter((each) => !each.removed);
  const removed = answer.unsupported.filter((each) => each.removed);
  const checks = [];
  if (doubtful.length) {
    checks.push(make("div", { class: "trouble" }, make("strong", {}, "Not from your facts"), make("ul", {}, ...doubtful.map((each) => make("li", {}, `${each.text}: “${each.sentence}”`)))));
  }
  if (removed.length) {
    checks.push(make("details", {}, make("summary", {}, `Taken out (${removed.length}): your facts say otherwise`), make("ul", {}, ...removed.map((each) => make("li", {}, `${each.text}: “${each.sentence}”`)))));
  }
  find("#checks").replaceChildren(...checks);
  const off = answer.within_target === false ? ", more than 15 % off" : "";
  const unseen = answer.passages_left_out ? ` ${answer.passages_left_out} of ${answer.passages} passages of the facts did not fit into the model’s context.` : "";
  find("#facts").textContent = `${answer.words} words of ${answer.target_words}${off}; ${Math.round(answer.seconds)} s.${unseen}`;
}
