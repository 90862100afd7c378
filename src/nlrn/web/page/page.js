// The page: an image goes to the service as it is, and what comes back is shown and can be saved, byte for byte.
import { View } from "/view.js";
import { showMaps } from "/maps.js";

const $ = (id) => document.getElementById(id);
const SHOWN = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/avif"];
const view = new View();
let file = null; // what was chosen
let models = [];
let running = null; // the AbortController of the work under way
let size = null; // of the image before
const urls = { before: null, after: null };

// -- what is said ----------------------------------------------------------------------------------------------

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function asked(path, form, signal) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", body: form, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer.");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const words = said.error || `The service answered ${answer.status}.`;
  throw new Error(answer.status === 503 ? `${words}. Try again in ${answer.headers.get("Retry-After") || 5} seconds.` : words);
}

// -- the image -----------------------------------------------------------------------------------------------

async function shown(blob, signal) {
  // The URL of something that the browser shows: the blob itself, or an 8-bit PNG that the service makes of it.
  if (SHOWN.includes(blob.type)) {
    const url = URL.createObjectURL(blob);
    try {
      const image = new Image();
      image.src = url;
      await image.decode();
      return { url, width: image.naturalWidth, height: image.naturalHeight };
    } catch {
      URL.revokeObjectURL(url);
    }
  }
  const form = new FormData();
  form.append("image", blob, "image");
  const preview = await (await asked("/v1/preview", form, signal)).blob();
  const url = URL.createObjectURL(preview);
  const image = new Image();
  image.src = url;
  await image.decode();
  return { url, width: image.naturalWidth, height: image.naturalHeight };
}

function place(which, url) {
  if (urls[which]) URL.revokeObjectURL(urls[which]);
  urls[which] = url;
  if (url) $(which).src = url;
  else $(which).removeAttribute("src");
}

async function choose(chosen) {
  stop();
  say("");
  file = chosen;
  size = null;
  $("chosen").textContent = chosen.name || "image";
  $("work").hidden = true;
  forget();
  $("go").disabled = true;
  try {
    const found = await shown(chosen);
    if (file !== chosen) return URL.revokeObjectURL(found.url);
    place("before", found.url);
    size = found;
    $("work").hidden = false;
    view.open(found.width, found.height);
    $("x").max = found.width - 1;
    $("y").max = found.height - 1;
    ready();
    say(`${found.width} × ${found.height} pixels.`);
  } catch (error) {
    if (file === chosen) say(error.message, true);
  }
}

function forget() {
  // What belongs to the result before.
  place("after", null);
  for (const id of ["upper", "line", "tag-before", "tag-after", "compare-row", "save", "mark"]) $(id).hidden = true;
  view.draw();
  $("maps").replaceChildren();
  if ($("save").href) URL.revokeObjectURL($("save").href);
  $("save").removeAttribute("href");
}

// -- the work --------------------------------------------------------------------------------------------------

const sigma = () => ($("noise").value === "given" ? $("sigma").value : "auto");
const task = () => document.querySelector("input[name=task]:checked").value;

function fields() {
  const form = new FormData();
  form.append("image", file, file.name || "image");
  if (task() === "denoise") {
    form.append("sigma", sigma());
    if ($("noise").value !== "given") form.append("noise", $("noise").value);
    if ($("noise").value === "photo") form.append("level", $("level").value);
    form.append("strength", $("strength").value);
  } else {
    form.append("scale", $("scale").value);
  }
  if ($("model").value) form.append("model", $("model").value);
  if ($("format").value) form.append("format", $("format").value);
  return form;
}

function word() {
  return Array.from(crypto.getRandomValues(new Uint8Array(24)), (n) => n.toString(16).padStart(2, "0")).join("");
}

async function restore() {
  const own = (running = new AbortController());
  const chosen = file;
  const form = fields();
  const watch = word();
  form.append("watch", watch);
  forget();
  busy(true);
  say("Sending the image.");
  const timer = setInterval(() => follow(watch, own), 400);
  const began = performance.now();
  try {
    const answer = await asked(`/v1/${task()}`, form, own.signal);
    const result = await answer.blob();
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    const name = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition") || "");
    const said = answer.headers.get("Nlrn-Said");
    const done = `Done in ${seconds} s.${said ? ` ${said[0].toUpperCase()}${said.slice(1)}.` : ""}`;
    offer(result, name ? name[1] : "restored", chosen, own);
    try {
      await reveal(result, own);
      say(done);
    } catch (error) {
      if (own.signal.aborted) throw error;
      say(`${done} It cannot be shown here (${error.message}), but downloaded.`);
    }
  } catch (error) {
    if (file !== chosen) return; // another image has the word
    if (own.signal.aborted) say("Stopped.");
    else say(error.message, true);
  } finally {
    clearInterval(timer);
    if (running === own) {
      running = null;
      busy(false);
    }
  }
}

async function follow(watch, own) {
  const state = await fetch(`/v1/progress/${watch}`).then((answer) => answer.json()).catch(() => ({}));
  if (running !== own) return;
  if (state.state === "waiting") say("Waiting for others.");
  if (state.state !== "running") return;
  if (state.total) {
    $("progress").value = state.done / state.total;
    say(`Working: ${state.done} of ${state.total} tiles.`);
  } else {
    say("Working.");
  }
}

function halted(own) {
  if (own.signal.aborted) throw new DOMException("stopped", "AbortError");
}

function offer(result, name, chosen, own) {
  // To be saved: the service's own bytes, whether they can be shown or not.
  halted(own);
  $("save").href = URL.createObjectURL(result);
  $("save").download = `${(chosen.name || "image").replace(/\.[^.]*$/, "")}-${name}`;
  $("save").hidden = false;
}

async function reveal(result, own) {
  const found = await shown(result, own.signal);
  if (own.signal.aborted) URL.revokeObjectURL(found.url);
  halted(own);
  place("after", found.url);
  for (const id of ["upper", "line", "tag-before", "tag-after", "compare-row"]) $(id).hidden = false;
  view.open(found.width, found.height);
  $("compare").value = 50;
  view.split(50);
  $("work").scrollIntoView({ block: "nearest" });
}

function busy(on) {
  $("stop").hidden = $("progress").hidden = !on;
  $("progress").removeAttribute("value");
  $("form").setAttribute("aria-busy", String(on));
  ready();
}

function stop() {
  if (running) running.abort();
}

function ready() {
  const offered = models.some((model) => model.task === (task() === "denoise" ? "denoise" : "sr"));
  $("no-model").hidden = offered || !models.length;
  $("go").disabled = !file || !size || Boolean(running) || !offered;
}

// -- look-alikes -----------------------------------------------------------------------------------------------

async function look(x, y) {
  const chosen = file;
  const form = new FormData();
  form.append("image", file, file.name || "image");
  form.append("x", x);
  form.append("y", y);
  form.append("sigma", sigma());
  if (task() === "denoise" && $("model").value) form.append("model", $("model").value);
  $("x").value = x;
  $("y").value = y;
  say(`Looking where pixel ${x}, ${y} finds its look-alikes.`);
  try {
    const maps = await (await asked("/v1/explain", form)).json();
    if (file !== chosen) return;
    showMaps($("maps"), maps, x, y);
    view.mark(x, y, maps, size);
    say("");
  } catch (error) {
    if (file === chosen) say(error.message, true);
  }
}

// -- what a person does ----------------------------------------------------------------------------------------

function fillModels() {
  const wanted = task() === "denoise" ? "denoise" : "sr";
  const fitting = models.filter((model) => model.task === wanted);
  const named = fitting.map((model) => new Option(model.name, model.name));
  $("noise").querySelector("[value=photo]").hidden = !models.some((model) => model.name.startsWith("denoise-photo"));
  $("model").replaceChildren(new Option("the one for the image", ""), ...named);
  for (const part of document.querySelectorAll("[data-task]")) part.hidden = part.dataset.task !== task();
  ready();
}

$("file").addEventListener("change", (event) => {
  const chosen = event.target.files[0];
  event.target.value = ""; // so that the same one can be chosen again
  if (chosen) choose(chosen);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) choose(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => event.clipboardData.files[0] && choose(event.clipboardData.files[0]));
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", async () => {
    const answer = await fetch(`/samples/${button.dataset.sample}.png`);
    choose(new File([await answer.blob()], `${button.dataset.sample}.png`, { type: "image/png" }));
  });
}
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("go").disabled) restore();
});
$("stop").addEventListener("click", stop);
for (const choice of document.querySelectorAll("input[name=task]")) choice.addEventListener("change", fillModels);
function tell() {
  $("sigma-row").hidden = $("noise").value !== "given";
  $("level-row").hidden = $("noise").value !== "photo";
  $("sigma-said").textContent = $("sigma").value;
  $("level-said").textContent = $("level").value;
  $("strength-said").textContent = `${Math.round($("strength").value * 100)} %`;
  $("scale-said").textContent = $("scale").value;
}
for (const id of ["noise", "level", "sigma", "strength", "scale"]) $(id).addEventListener("input", tell);
$("compare").addEventListener("input", () => view.split(Number($("compare").value)));
view.onSplit = (share) => ($("compare").value = share);
view.onPick = (x, y) => look(Math.floor((x * size.width) / view.width), Math.floor((y * size.height) / view.height));
$("ask").addEventListener("click", () => {
  view.asking = !view.asking;
  $("ask").setAttribute("aria-pressed", String(view.asking));
  $("view").classList.toggle("asking", view.asking);
  $("at").hidden = !view.asking;
});
$("look").addEventListener("click", () => look(Number($("x").value), Number($("y").value)));

tell();
models = await fetch("/v1/models").then((answer) => (answer.ok ? answer.json() : [])).catch(() => []);
if (!models.length) say("The service does not answer.", true);
fillModels();
