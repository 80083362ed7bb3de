"use strict";
// Everything that comes from outside is set as text: no value becomes markup.

const byId = (id) => document.getElementById(id);
let maxBytes = Infinity;
let running = null; // the request in work; choosing another image ends it

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Control and direction-changing characters are spelled out, so that a name cannot disguise itself.
const spelled = (text) =>
  String(text).replace(/[\p{Cc}\p{Cf}\p{Cs}]/gu, (c) => "\\u{" + c.codePointAt(0).toString(16) + "}");
const name = (text) => make("bdi", { textContent: spelled(text) });
const percent = (share) => (100 * share).toFixed(1) + "\u202f%";
const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(2);

function say(text) {
  byId("status").textContent = text;
}

function complain(text) {
  byId("error").hidden = !text;
  byId("error").textContent = text ? spelled(text) : "";
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; is it still running?");
  }
  const found = await answer.json().catch(() => ({ error: `The server answered with status ${answer.status}.` }));
  if (!answer.ok) throw new Error(found.error || `The server answered with status ${answer.status}.`);
  return found;
}

function bar(share, of) {
  const fill = make("i");
  fill.style.width = `${Math.max(0, Math.min(100, 100 * share))}%`;
  const box = make("div", { className: "bar" }, fill);
  if (of !== undefined) {
    // from the middle to the right what speaks for the category, to the left what speaks against it
    const half = of ? Math.min(50, (50 * Math.abs(share)) / of) : 0;
    box.className = "bar signed";
    fill.style.width = `${half}%`;
    fill.style.left = share < 0 ? `${50 - half}%` : "50%";
    fill.className = share < 0 ? "against" : "";
  }
  box.setAttribute("aria-hidden", "true"); // the number is beside it
  return box;
}

const shareOf = (model) => model.probabilities.find((row) => row.category === model.label).probability;

function probabilities(rows, label) {
  const table = make("table", {}, make("caption", { textContent: "Probabilities" }));
  const body = table.appendChild(make("tbody"));
  for (const row of rows) {
    const head = make("th", { scope: "row" }, name(row.category));
    const cells = [make("td", {}, bar(row.probability)), make("td", { className: "n", textContent: percent(row.probability) })];
    body.append(make("tr", { className: row.category === label ? "first" : "" }, head, ...cells));
  }
  return table;
}

function aspectCard(aspect, label, most, image) {
  const card = make("li");
  if (aspect.overlay) {
    card.append(make("img", { src: aspect.overlay, alt: `Where ${spelled(aspect.aspect)} looks in ${spelled(image)}` }));
  }
  const answer = aspect.answer ? name(aspect.answer) : make("em", { textContent: "no answer" });
  const sure = aspect.probability >= 0.0005 ? ` (${percent(aspect.probability)})` : "";
  card.append(make("p", {}, make("b", { textContent: spelled(aspect.aspect) }), ": ", answer, sure));
  if (aspect.contribution !== null) {
    const direction = aspect.contribution < 0 ? "against" : "for";
    card.append(bar(aspect.contribution, most));
    const text = make("p", { className: "muted" }, `${signed(aspect.contribution)} nats ${direction} `, name(label));
    card.append(text);
  }
  return card;
}

function together(model, most) {
  const rows = [
    ["all aspects together", model.all_aspects],
    ["of that, their interaction", model.interaction],
    ["vision features", model.vision_features],
  ].filter(([, value]) => value !== null && value !== undefined);
  const table = make("table", { className: "together" }, make("caption", { textContent: "Contributions together, in nats" }));
  const body = table.appendChild(make("tbody"));
  for (const [title, value] of rows) {
    const head = make("th", { scope: "row", textContent: title });
    body.append(make("tr", {}, head, make("td", {}, bar(value, most)), make("td", { className: "n", textContent: signed(value) })));
  }
  return rows.length ? [table] : [];
}

function modelColumn(model, image, order) {
  const isOne = order === null;
  const column = make("div", { className: "model" });
  if (!isOne) column.append(make("h3", { className: "run" }, name(model.name)));
  if (model.error) {
    column.append(make("p", { className: "error", textContent: spelled(model.error) }));
    return column;
  }
  const label = make("p", { className: "label" }, name(model.label), " ", make("small", { textContent: percent(shareOf(model)) }));
  // beside another model both have one order, so that a category is found across from itself
  const place = (row) => (isOne ? 0 : order.indexOf(row.category));
  const rows = [...model.probabilities].sort((one, other) => place(one) - place(other));
  column.append(make("div", { className: "decision" }, label, probabilities(rows, model.label)));
  if (model.aspects.length) {
    const values = [...model.aspects.map((a) => a.contribution), model.all_aspects, model.interaction, model.vision_features];
    const most = Math.max(...values.map((value) => Math.abs(value || 0)));
    column.append(make("h3", { textContent: "Aspects: what they answer, did, and where they look" }));
    const cards = model.aspects.map((aspect) => aspectCard(aspect, model.label, most, image));
    column.append(make("ul", { className: "aspects" }, ...cards));
    if (model.why_no_attention) column.append(make("p", { className: "muted", textContent: spelled(model.why_no_attention) }));
    column.append(...together(model, most));
    column.append(make("p", {
      className: "muted",
      textContent: "A contribution is the log-likelihood of the predicted category with this part of the prompt minus without it.",
    }));
  }
  return column;
}

function show(found) {
  byId("seen").src = found.image;
  byId("seen").alt = spelled(found.name);
  byId("result-title").replaceChildren(name(found.name));
  byId("truth").hidden = !found.label;
  byId("truth").replaceChildren("Labeled ", name(found.label || ""));
  const leading = found.models.find((model) => !model.error);
  const order = found.models.length > 1 ? leading.probabilities.map((row) => row.category) : null;
  const columns = found.models.map((model) => modelColumn(model, found.name, order));
  byId("result").className = order ? "" : "beside";
  byId("models").className = columns.length > 1 ? "models two" : "models";
  byId("models").replaceChildren(...columns);
  byId("result").hidden = false;
  byId("result-title").focus({ preventScroll: true });
  byId("result").scrollIntoView({ block: "start" });
}

async function look(path, body, called) {
  if (running) running.abort();
  const own = (running = new AbortController());
  complain("");
  byId("result").hidden = true;
  say(`Looking at ${spelled(called)} …`);
  try {
    const found = await ask(path, { method: "POST", body, signal: own.signal });
    const heard = found.models.map((model) => (model.error ? "no answer" : `${spelled(model.label)}, ${percent(shareOf(model))}`));
    say(`${spelled(called)}: ${heard.join("; ")}`);
    show(found);
  } catch (error) {
    if (error.name === "AbortError") return;
    say("");
    complain(`${called}: ${error.message}`);
  } finally {
    if (running === own) running = null;
  }
}

function lookAtFile(file) {
  if (!file || byId("file").disabled) return;
  const called = file.name || "the pasted image";
  if (file.size > maxBytes - 1000) {
    byId("result").hidden = true;
    say("");
    complain(`${called}: is larger than ${Math.floor(maxBytes / 2 ** 20)} MiB, which this server takes at most`);
    return;
  }
  const body = new FormData();
  body.append("image", file, called);
  look("api/look", body, called);
}

function thumb(run, number, mistake) {
  const image = mistake.image
    ? make("img", { src: mistake.image, alt: "" })
    : make("span", { className: "none", textContent: "not there" });
  const sure = mistake.probability === null ? "" : ` ${percent(mistake.probability)}`;
  const said = make("span", {}, mistake.prediction === null ? "no category" : name(mistake.prediction), sure, ", labeled ", make("b", {}, name(mistake.label)));
  const button = make("button", { type: "button", disabled: !mistake.image }, image, said, make("small", {}, name(mistake.name)));
  button.addEventListener("click", () => {
    byId("file").value = "";
    look(`api/mistakes/${run}/${number}`, undefined, mistake.name);
  });
  return make("li", {}, button);
}

async function moreMistakes(run, start) {
  const list = byId("mistakes-list");
  try {
    const found = await ask(`api/mistakes/${run}?start=${start}`);
    const of = found.num_samples ? ` of ${found.num_samples.toLocaleString("en")}` : "";
    const order = found.by_confidence ? ", the surest first" : "";
    byId("mistakes-lead").textContent =
      `${found.num_mistakes.toLocaleString("en")}${of} images of the ${spelled(found.split || "evaluated")} split${found.num_mistakes ? order : ""}. Choose one to see why.`;
    if (!start) list.replaceChildren();
    const added = found.mistakes.map((mistake, place) => thumb(run, start + place, mistake));
    list.append(...added);
    if (start && added.length) added[0].firstChild.focus();
    byId("more").hidden = list.children.length >= found.num_mistakes;
  } catch (error) {
    list.replaceChildren();
    byId("more").hidden = true;
    byId("mistakes-lead").textContent = spelled(error.message);
  }
}

function describe(about) {
  const fact = (title, ...values) => make("div", {}, make("dt", { textContent: title }), make("dd", {}, ...values));
  const listed = (values) => values.flatMap((value, place) => (place ? [", ", name(value)] : [name(value)]));
  const [first] = about.models;
  const facts = [
    fact(about.models.length > 1 ? "runs" : "run", ...listed(about.models.map((model) => model.name))),
    fact("VLM", ...listed([...new Set(about.models.map((model) => model.vlm))])),
    fact(first.target, ...listed(first.categories)),
  ];
  byId("about").replaceChildren(...facts);
  const notes = [...new Set(about.models.flatMap((model) => model.notes))];
  byId("notes").hidden = !notes.length;
  byId("notes").replaceChildren(...notes.map((note) => make("p", { textContent: spelled(note) })));
  byId("footer").textContent = `MASP ${about.version}`;
  document.title = `${spelled(about.models.map((model) => model.name).join(", "))} – MASP`;
}

function listen() {
  const root = document.documentElement;
  byId("file").addEventListener("change", (event) => {
    lookAtFile(event.target.files[0]);
  });
  // so that the same file can be chosen again
  byId("file").addEventListener("click", (event) => (event.target.value = ""));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    root.classList.add("dragging");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) root.classList.remove("dragging");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    root.classList.remove("dragging");
    byId("file").value = "";
    lookAtFile(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    byId("file").value = "";
    lookAtFile(event.clipboardData.files[0]);
  });
  byId("more").addEventListener("click", () => moreMistakes(Number(byId("which-run").value), byId("mistakes-list").children.length));
  byId("which-run").addEventListener("change", (event) => moreMistakes(Number(event.target.value), 0));
}

async function start() {
  listen();
  let about = null;
  while (!about || !about.ready) {
    try {
      about = await ask("api/about");
    } catch (error) {
      complain(error.message);
      return;
    }
    maxBytes = about.max_bytes;
    describe(about);
    if (!about.ready) {
      say("The VLM is being loaded …");
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  byId("which-run").append(...about.models.map((model, place) => make("option", { value: String(place), textContent: spelled(model.name) })));
  byId("which").hidden = about.models.length < 2;
  byId("file").disabled = false;
  say("Ready.");
  byId("mistakes").hidden = false;
  await moreMistakes(0, 0);
}

start();
