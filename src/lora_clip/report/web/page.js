// What was asked last ({text}, {file} or {shard, row, name}) is asked again when the embeddings are switched.
"use strict";
const element = (id) => document.getElementById(id);
const HITS = 24;
let outputs = [];
let asked = null;
let turn = 0;

const chosen = () => document.querySelector("#outputs input:checked")?.value ?? outputs[0]?.name;
const address = (path, values) => `${path}?${new URLSearchParams({ output: chosen(), ...values })}`;

function say(text, wrong = false) {
  element("status").textContent = text;
  element("status").classList.toggle("wrong", wrong);
}

async function fetchJson(url, options) {
  const response = await fetch(url, options);
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw new Error(typeof body.detail === "string" ? body.detail : "this cannot be searched for");
}

function request() {
  if (asked.text !== undefined) return fetchJson(address("api/search", { query: asked.text, k: HITS }));
  if (asked.file) return fetchJson(address("api/search", { k: HITS }), { method: "POST", body: asked.file });
  return fetchJson(address("api/like", { shard: asked.shard, row: asked.row, k: HITS }));
}

const spoken = () => asked.text ?? (asked.file ? "like your picture" : `like ${asked.name}`);

async function search() {
  if (!asked) return;
  const mine = ++turn;
  say("searching …");
  showExample();
  try {
    const hits = await request();
    if (mine !== turn) return;
    element("hits").replaceChildren(...hits.map(show));
    say(`${hits.length} nearest: ${spoken()}`);
    remember();
  } catch (error) {
    if (mine === turn) { element("hits").replaceChildren(); say(error.message, true); }
  }
}

function showExample() {
  const image = element("example");
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.hidden = asked.text !== undefined;
  if (asked.file) image.src = URL.createObjectURL(asked.file);
  else if (!image.hidden) image.src = address("api/picture", { shard: asked.shard, row: asked.row, pixels: 160 });
}

function show(hit) {
  const item = element("hit").content.cloneNode(true);
  const name = hit.caption || hit.key;
  const image = item.querySelector("img"), none = item.querySelector(".none");
  image.alt = name;
  image.onerror = () => { image.hidden = true; none.hidden = false; };
  image.src = address("api/picture", { shard: hit.shard, row: hit.row });
  item.querySelector(".name").textContent = name;
  item.querySelector(".score").textContent = hit.score.toFixed(3);
  item.querySelector("small").textContent = hit.caption ? hit.key : "";
  item.querySelector("button").onclick = () => ask({ shard: hit.shard, row: hit.row, name });
  item.querySelector("button").setAttribute("aria-label", `more like ${name}`);
  return item;
}

function ask(query) {
  asked = query;
  if (query.text === undefined) element("query").value = "";
  window.scrollTo(0, 0);
  return search();
}

function remember() {
  const values = asked.text !== undefined ? { text: asked.text } : asked.file ? {} : { shard: asked.shard, row: asked.row, name: asked.name };
  history.replaceState(null, "", `#${new URLSearchParams({ output: chosen(), ...values })}`);
}

function askFromAddress() {
  const values = new URLSearchParams(location.hash.slice(1));
  for (const input of document.querySelectorAll("#outputs input")) if (input.value === values.get("output")) input.checked = true;
  if (values.has("text")) { element("query").value = values.get("text"); ask({ text: values.get("text") }); }
  else if (values.has("shard")) ask({ shard: values.get("shard"), row: values.get("row"), name: values.get("name") ?? "" });
  else say(`${(outputs[0]?.images ?? 0).toLocaleString("en")} pictures`);
}

function offerOutputs() {
  outputs.forEach((output, number) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "output", value: output.name, checked: number === 0, onchange: search });
    label.title = output.model;
    label.append(input, `${output.name} (${output.kind})`);
    element("outputs").append(label);
  });
  element("outputs").hidden = outputs.length < 2;
}

function askFile(file) { if (file) ask({ file }); }

element("form").onsubmit = (event) => { event.preventDefault(); const text = element("query").value.trim(); if (text) ask({ text }); };
element("file").onchange = (event) => { askFile(event.target.files[0]); event.target.value = ""; };
document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("drop"); };
document.ondragleave = (event) => { if (!event.relatedTarget) document.body.classList.remove("drop"); };
document.ondrop = (event) => { event.preventDefault(); document.body.classList.remove("drop"); askFile(event.dataTransfer.files[0]); };
document.onpaste = (event) => askFile([...event.clipboardData.files].find((file) => file.type.startsWith("image/")));
window.onhashchange = askFromAddress;

fetchJson("api/outputs").then((found) => { outputs = found; offerOutputs(); askFromAddress(); }).catch((error) => say(error.message, true));
