// The page: one prompt at a time. Ranks and edits that are not saved yet are kept as a draft in this browser.
"use strict";

const $ = (id) => document.getElementById(id);
const key = new URLSearchParams(location.search).get("key") || "";
let state = null; // the prompt as the server sent it
let ranks = [], edits = [], marked = 0;
let busy = false;

function annotator() { return localStorage.getItem("annotator") || ""; }

function say(text) { $("message").textContent = text; $("message").hidden = !text; }

async function ask(path, body) {
  const headers = { "X-Key": key };
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  const answer = await response.json();
  if (!response.ok && response.status !== 409) throw new Error(answer.error);
  return { answer, isStale: response.status === 409 };
}

// One request at a time; an error stays on the page and nothing typed is lost.
async function once(work) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    say(error instanceof TypeError ? "No connection. Nothing is lost: try again." : error.message);
  }
  busy = false;
  document.body.removeAttribute("aria-busy");
}

function load(query) {
  return once(async () => {
    const { answer } = await ask(`api/prompt?annotator=${encodeURIComponent(annotator())}&${query}`);
    say("");
    show(answer);
  });
}

// ---- drafts: kept until the judgement is saved, dropped if another tab saved one since

function draftName() { return `draft/${state.annotator}/${state.key}`; }

function keepDraft() {
  localStorage.setItem(draftName(), JSON.stringify({ revision: state.revision, shown: state.shown, ranks, edits }));
}

function readDraft() {
  try {
    const draft = JSON.parse(localStorage.getItem(draftName()));
    if (draft.revision === state.revision && String(draft.shown) === String(state.shown)) return draft;
  } catch { /* none, or not ours */ }
  localStorage.removeItem(draftName());
  return null;
}

// ---- drawing

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function textOf(text) {
  if (!text.trim()) return element("p", { className: "text empty", textContent: "(empty)" });
  return element("p", { className: "text", dir: "auto", textContent: text });
}

function show(answer) {
  state = answer;
  $("who").hidden = true;
  $("work").hidden = false;
  $("rename").textContent = state.annotator;
  $("bar").max = state.total;
  $("bar").value = state.done;
  $("count").textContent = `${state.done} of ${state.total}`;
  const isDone = state.at === null;
  $("prompt").hidden = isDone;
  $("done").hidden = !isDone;
  showFlagging(false);
  if (isDone) return $("again").focus();
  const said = state.judgement;
  const draft = readDraft() || { ranks: said && said.ranks, edits: said && said.edits };
  ranks = draft.ranks || state.answers.map(() => null);
  edits = draft.edits || state.answers.map(() => null);
  $("note").value = said ? said.note : "";
  $("number").textContent = state.at + 1;
  const words = { rank: "ranked", skip: "skipped", flag: "flagged" };
  $("saved").hidden = !said;
  $("saved").textContent = said ? `✓ ${words[said.kind]}` : "";
  const names = { system: "System", user: "User", assistant: "Assistant" };
  $("turns").replaceChildren(...state.turns.map((turn) => {
    const box = element("div", { className: `turn ${turn.role}` });
    if (state.turns.length > 1) box.append(element("small", { textContent: names[turn.role] }));
    box.append(textOf(turn.content));
    return box;
  }));
  $("answers").replaceChildren(...state.answers.map((_, i) => element("li", { tabIndex: 0 })));
  state.answers.forEach((_, i) => draw(i));
  window.scrollTo(0, 0);
  const open = ranks.indexOf(null);
  mark(open < 0 ? 0 : open, state.answers.every((_, i) => ranks[i] === null));
}

function draw(i) {
  const item = $("answers").children[i];
  const text = edits[i] ?? state.answers[i];
  const tools = element("div", { className: "tools", role: "group", ariaLabel: "Rank" });
  for (let rank = 1; rank <= state.answers.length; rank++) {
    const button = element("button", { type: "button", textContent: rank, tabIndex: -1 });
    button.setAttribute("aria-pressed", ranks[i] === rank);
    button.onclick = () => setRank(i, rank);
    tools.append(button);
  }
  if (edits[i] !== null) {
    const undo = element("button", { type: "button", className: "undo", textContent: "Undo", tabIndex: -1 });
    undo.onclick = () => { edits[i] = null; keepDraft(); draw(i); mark(i); };
    tools.append(undo);
  }
  const edit = element("button", { type: "button", className: "edit", textContent: "Edit", tabIndex: -1 });
  edit.onclick = () => startEdit(i);
  tools.append(edit);
  item.replaceChildren(textOf(text), tools);
  item.classList.toggle("ranked", ranks[i] !== null);
  item.setAttribute("aria-label", `Answer ${i + 1}, ${ranks[i] === null ? "no rank" : `rank ${ranks[i]}`}: ${text}`);
  item.onfocus = () => { marked = i; };
  $("save").disabled = ranks.includes(null);
}

function mark(i, isStill) {
  marked = Math.min(Math.max(i, 0), state.answers.length - 1);
  $("answers").children[marked].focus({ preventScroll: Boolean(isStill) });
}

// ---- what an annotator does

function setRank(i, rank) {
  if (rank > state.answers.length) return say(`Ranks go from 1 to ${state.answers.length}.`);
  say("");
  ranks[i] = rank;
  keepDraft();
  draw(i);
  const rest = [...ranks.keys()].map((j) => (i + 1 + j) % ranks.length).find((j) => ranks[j] === null);
  mark(rest ?? i);
}

function startEdit(i) {
  const item = $("answers").children[i];
  const area = element("textarea", { dir: "auto", value: edits[i] ?? state.answers[i] });
  area.setAttribute("aria-label", `Edit answer ${i + 1}`);
  const done = element("button", { type: "button", className: "main", textContent: "Done" });
  const end = () => { draw(i); mark(i); };
  area.oninput = () => { edits[i] = area.value === state.answers[i] ? null : area.value; keepDraft(); };
  area.onkeydown = (event) => { if (event.key === "Escape") { event.preventDefault(); end(); } };
  done.onclick = end;
  item.replaceChildren(area, element("div", { className: "tools" }, done));
  area.focus();
}

function judge(kind) {
  if (kind === "rank" && ranks.includes(null)) {
    say("Give every answer a rank first.");
    return mark(ranks.indexOf(null));
  }
  const { key, shown, at } = state;
  const body = { annotator: annotator(), key, kind, shown, revision: state.revision + 1 };
  if (kind === "rank") Object.assign(body, { ranks, edits });
  if (kind === "flag") body.note = $("note").value;
  return once(async () => {
    const { answer, isStale } = await ask("api/judge", body);
    localStorage.removeItem(draftName());
    if (isStale) {
      show(answer);
      return say("This question was judged in another tab. Here is what was saved there; change it and save again.");
    }
    const next = await ask(`api/prompt?annotator=${encodeURIComponent(annotator())}&after=${at}`);
    say("");
    show(next.answer);
  });
}

// The form of the note stands in the place of the buttons.
function showFlagging(isShown) {
  $("flagging").hidden = !isShown;
  document.querySelector("nav").hidden = isShown;
}

function startFlag() {
  showFlagging(true);
  $("note").focus();
}

const actions = {
  rank: (action) => setRank(marked, action.rank),
  down: () => mark(marked + 1),
  up: () => mark(marked - 1),
  edit: () => startEdit(marked),
  save: () => judge("rank"),
  skip: () => judge("skip"),
  flag: startFlag,
  back: () => state.at > 0 && load(`at=${state.at - 1}`),
  next: () => state.at < state.total - 1 && load(`at=${state.at + 1}`),
};

document.addEventListener("keydown", (event) => {
  const isButton = event.target.closest("button, summary") && ["Enter", " "].includes(event.key);
  if (!state || state.at === null || busy || isButton || event.target.closest("input, textarea")) return;
  const action = actionOf(event);
  if (!action || (event.repeat && !["up", "down"].includes(action.name))) return;
  event.preventDefault();
  actions[action.name](action);
});

for (const name of ["save", "skip", "flag", "back", "next"]) $(name).onclick = () => actions[name]();
$("flagging").onsubmit = (event) => { event.preventDefault(); judge("flag"); };
$("unflag").onclick = () => { showFlagging(false); mark(marked); };
$("note").onkeydown = (event) => { if (event.key === "Escape") $("unflag").onclick(); };
$("again").onclick = () => load("at=0");
$("who").onsubmit = (event) => {
  event.preventDefault();
  localStorage.setItem("annotator", $("name").value.trim());
  load("");
};
$("rename").onclick = () => {
  $("name").value = annotator();
  $("who").hidden = false;
  $("work").hidden = true;
  state = null;
  $("name").select();
};
// Another tab may have gone on: look again when this one comes back to the front, unless something is typed here.
document.addEventListener("visibilitychange", () => {
  const isTyping = document.activeElement && document.activeElement.closest("input, textarea");
  if (document.visibilityState === "visible" && state && state.at !== null && !isTyping) load(`at=${state.at}`);
});

if (annotator()) load(""); else { $("who").hidden = false; $("name").focus(); }
