import { citation, copies, describe, find, make, request, say, show, source, takesFiles, trouble, Trouble, works } from "./common.js";

const value = (selector) => find(selector).value.trim();
let most = 8e6;
describe().then((known) => { most = known.max_body_bytes; }, (error) => trouble(error.message));
const documents = takesFiles(find("#drop"), { most: () => most });
const [result, summary, progress] = ["#result", "#summary", "#progress"].map(find);

works(find("#form"), find("#go"), async (signal) => {
  const pasted = value("#text");
  const files = await documents.files();
  if (!pasted && !files.length) {
    find("#files").focus();
    throw new Trouble("There is nothing to summarize yet.\nChoose a file, drop one, or paste a text.");
  }
  const body = {
    documents: [...files, ...(pasted ? [{ name: "pasted text", text: pasted }] : [])],
    style: value("#style"), length: value("#length"), cite: find("#cite").checked,
  };
  for (const key of ["focus", "language"]) if (value(`#${key}`)) body[key] = value(`#${key}`);
  result.hidden = find("#cited").hidden = find("#copy").hidden = true;
  for (const selector of ["#summary", "#checks", "#sources"]) find(selector).replaceChildren();
  find("#facts").textContent = "";
  say("Reading…", true);
  try {
    let shown = "";
    const answer = await request("summarize", body, {
      signal,
      onText: (piece) => {
        shown += piece;
        result.hidden = false;
        progress.hidden = true;
        say("Writing the summary…", true);
        show(summary, shown, { pending: true });
      },
      onProgress: ({ done, total }) => {
        if (total === undefined || total < 2) return;
        progress.hidden = false;
        progress.max = total;
        progress.value = done;
        say(`Read ${done} of ${total} parts…`, true);
      },
    });
    finish(answer);
    find("#result-title").focus();
    return "The summary is ready.";
  } finally {
    progress.hidden = true;
    summary.querySelector(".pending")?.classList.remove("pending");
  }
});

function finish(answer) {
  const passages = new Map(answer.citations.map((each) => [String(each.id), each]));
  const id = (label) => `source-${label}`;
  show(summary, answer.summary, { link: (label) => (passages.has(label) ? citation(label, id(label), passages.get(label).title) : null) });
  result.hidden = false;
  find("#cited").hidden = !passages.size;
  find("#sources").replaceChildren(...[...passages].map(([label, each]) => source(id(label), label, each)));
  const checks = answer.left_out.map(({ file, reason }) => make("p", { class: "trouble" }, `Left out: ${file}: ${reason}`));
  const doubtful = [...answer.unsupported_numbers, ...answer.unsupported_names];
  if (doubtful.length) checks.push(make("div", { class: "trouble" }, `Not found in the documents: ${doubtful.join(", ")}. Check ${doubtful.length > 1 ? "these" : "this"} before you rely on the summary.`));
  if (answer.quoted) checks.push(make("p", { class: "quiet" }, "The model said nothing usable, so these are the documents’ own most central sentences."));
  else if (answer.chunks.quoted) checks.push(make("p", { class: "quiet" }, `For ${answer.chunks.quoted} of ${answer.chunks.count} parts the model said nothing usable; their most central sentences stood in.`));
  find("#checks").replaceChildren(...checks);
  copies(find("#copy"), answer.summary);
  const number = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
  find("#facts").textContent = `${answer.documents.join(", ")}: ${number(answer.chunks.tokens, "token")} in ${number(answer.chunks.count, "part")}, each read once; ${number(answer.calls, "call")} of the model in ${Math.round(answer.seconds)} s.`;
}
