// The page: images go to the service as they are, and what comes back is shown and can be saved, byte for byte.
import { showMaps } from "/maps.js";
import { Preview } from "/preview.js";
import { Refusal, asked, check, checkSize, form, mega, messages, sample, shown } from "/service.js";
import * as settings from "/settings.js";
import { View } from "/view.js";
import { zipped } from "/zip.js";

const $ = (id) => document.getElementById(id);
const view = new View();
const preview = new Preview();
let items = []; // {file, state, words, url, size, result, key}: all that were chosen; one of them is shown
let item = null; // the one that is shown
let models = [], limits = {};
let running = null; // the AbortController of the work
let afterUrl = null; // of the result that is shown

// -- what is said ----------------------------------------------------------------------------------------------

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function fail(error, of = item) {
  // Beside what caused it: a field of the form, the file, or else below the button.
  const words = error.message;
  if (of) Object.assign(of, { state: "failed", words });
  if (error instanceof Refusal && settings.showError(error.field, words)) say("");
  else if (of && !of.size) fileError(of === item || items.length < 2 ? words : "");
  else say(words, true);
  list();
}

function fileError(words) {
  $("file-error").hidden = !($("file-error").textContent = words);
}

// -- the images ------------------------------------------------------------------------------------------------

function list() {
  $("list").hidden = items.length < 2;
  $("list").replaceChildren(
    ...items.map((one) => {
      const entry = document.createElement("li");
      const words = Object.assign(document.createElement("span"), { textContent: one.words });
      const className = ["failed", "bad"].includes(one.state) ? "bad" : "";
      const button = Object.assign(document.createElement("button"), { type: "button", className });
      button.setAttribute("aria-pressed", String(one === item));
      button.append(one.file.name || "image", words);
      button.addEventListener("click", () => show(one).then(focusListed));
      entry.append(button);
      return entry;
    }),
  );
  const done = items.filter((one) => one.result);
  $("zip").hidden = done.length < 2 || Boolean(running);
  const waiting = items.filter((one) => needed(one)).length;
  $("go").textContent = items.length > 1 && waiting > 1 ? `Restore ${waiting} images` : "Restore";
  ready();
}

const focusListed = () => document.querySelector("#list [aria-pressed=true]")?.focus();
const needed = (one) => one.state !== "bad" && (!one.result || one.key !== settings.key());

async function choose(files) {
  stop();
  say("");
  fileError("");
  for (const one of items) if (one.url) URL.revokeObjectURL(one.url);
  items = [...files].map((file) => ({ file, state: "waiting", words: "waiting" }));
  $("chosen").textContent = items.length === 1 ? files[0].name || "image" : `${items.length} images`;
  await show(items[0]);
}

async function show(one) {
  item = one;
  say("");
  fileError("");
  settings.clearErrors();
  forget();
  $("work").hidden = true;
  list();
  try {
    await open(one);
    if (item !== one) return;
    place("before", one.url);
    $("work").hidden = false;
    view.open(one.size.width, one.size.height);
    $("x").max = one.size.width - 1;
    $("y").max = one.size.height - 1;
    if (one.result) await reveal(one);
    say(one.said || `${one.size.width} × ${one.size.height} pixels, ${mega(one.file.size)}.`);
    if (one.state === "failed") say(one.words, true);
  } catch (error) {
    if (item === one && error.name !== "AbortError") {
      fail(error, one);
      one.state = "bad";
    }
  }
  list();
}

async function open(one) {
  // With its URL and size, once; Refusal for what the service would refuse.
  if (one.size) return one;
  await check(one.file, limits);
  const found = await shown(one.file);
  const size = { width: found.width, height: found.height };
  try {
    checkSize(size, limits);
  } catch (error) {
    URL.revokeObjectURL(found.url);
    throw error;
  }
  return Object.assign(one, { url: found.url, size });
}

const place = (which, url) => (url ? ($(which).src = url) : $(which).removeAttribute("src"));

function forget() {
  // What belongs to the result that was shown.
  if (afterUrl) URL.revokeObjectURL(afterUrl);
  afterUrl = null;
  place("after", null);
  preview.drop();
  for (const id of ["upper", "line", "tag-before", "tag-after", "compare-row", "save", "mark", "stale"]) $(id).hidden = true;
  view.draw();
  $("maps").replaceChildren();
  if ($("save").href) URL.revokeObjectURL($("save").href);
  $("save").removeAttribute("href");
}

// -- the work --------------------------------------------------------------------------------------------------

const word = () => Array.from(crypto.getRandomValues(new Uint8Array(24)), (n) => n.toString(16).padStart(2, "0")).join("");

async function restore() {
  // Every image that has no result of these settings; one after the other, as the service works.
  const own = (running = new AbortController());
  const todo = items.length > 1 ? items.filter(needed) : [item];
  settings.clearErrors();
  preview.drop();
  busy(true);
  try {
    for (const [i, one] of todo.entries()) {
      if (one !== item && !$("list").hidden) await show(one);
      if (own.signal.aborted) break;
      if (one.state !== "bad") await restoreOne(one, todo.length > 1 ? `Image ${i + 1} of ${todo.length}: ` : "", own);
    }
    if (todo.length > 1 && !own.signal.aborted) say(`${todo.filter((one) => one.result).length} of ${todo.length} images restored.`);
  } finally {
    if (running === own) {
      running = null;
      busy(false);
    }
  }
}

async function restoreOne(one, which, own) {
  const watch = word(), key = settings.key(), sent = form(one.file, [...settings.fields(), ["watch", watch]]);
  forget();
  Object.assign(one, { result: null, state: "working" });
  const tell = (words) => {
    if (one.state !== "working") return; // progress that comes late
    if (item === one) say(which + words);
    one.words = words.replace(/\.$/, "").toLowerCase();
    list();
  };
  tell(`Sending ${mega(one.file.size)}.`);
  const timer = setInterval(() => follow(watch, own, tell), 400);
  const began = performance.now();
  try {
    checkSize((await open(one)).size, limits, settings.task() === "upscale" ? Number($("scale").value) : 1);
    const answer = await asked(`/v1/${settings.task()}`, sent, own.signal);
    const result = await answer.blob();
    own.signal.throwIfAborted();
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    const ending = /filename="[^"]*(\.[^".]+)"/.exec(answer.headers.get("Content-Disposition") || "");
    const noted = messages(answer.headers.get("Nlrn-Said"));
    const name = (one.file.name || "image").replace(/\.[^.]*$/, "");
    one.name = `${name}${settings.task() === "upscale" ? "-enlarged" : "-restored"}${ending ? ending[1] : ""}`;
    one.said = `Done in ${seconds} s, ${mega(result.size)}.${noted}`;
    Object.assign(one, { result, key, state: "done", words: `${seconds} s, ${mega(result.size)}` });
    offer(one);
    try {
      await reveal(one, own.signal);
      own.signal.throwIfAborted();
      say(which + one.said);
    } catch (error) {
      if (own.signal.aborted) throw error;
      say(`${one.said} It cannot be displayed here (${error.message}); it can be downloaded.`);
    }
  } catch (error) {
    if (!items.includes(one)) return; // other images were chosen
    if (own.signal.aborted) {
      Object.assign(one, { state: "waiting", words: "stopped" });
      say("Stopped.");
    } else {
      fail(error, one);
    }
  } finally {
    clearInterval(timer);
    list();
  }
}

async function follow(watch, own, tell) {
  const state = await fetch(`/v1/progress/${watch}`).then((answer) => answer.json()).catch(() => ({}));
  if (running !== own || own.signal.aborted) return;
  if (state.state === "waiting") tell("Waiting in the queue.");
  if (state.state !== "running") return;
  if (state.total) $("progress").value = state.done / state.total;
  const what = settings.task() === "upscale" ? "enlarging" : "removing the noise";
  tell(state.total > 1 ? `Working: ${what}, tile ${Math.min(state.done + 1, state.total)} of ${state.total}.` : `Working: ${what}.`);
}

function offer(one) {
  // To be saved: the service's own bytes, whether they can be shown or not.
  if (item !== one) return;
  $("save").href = URL.createObjectURL(one.result);
  $("save").download = one.name;
  $("save").hidden = false;
}

async function reveal(one, signal) {
  const found = await shown(one.result, signal);
  if (item !== one || signal?.aborted) return URL.revokeObjectURL(found.url);
  reveals(found);
  if (!$("save").href) offer(one);
  changed();
}

function reveals(found) {
  place("after", (afterUrl = found.url));
  for (const id of ["upper", "line", "tag-before", "tag-after", "compare-row"]) $(id).hidden = false;
  view.open(found.width, found.height);
  $("compare").value = 50;
  view.split(50);
}

function busy(on) {
  // The focus goes along: a button that goes away would leave it nowhere.
  const hadGo = document.activeElement === $("go"), hadStop = document.activeElement === $("stop");
  $("stop").hidden = $("progress").hidden = !on;
  if (on && hadGo) $("stop").focus();
  $("progress").removeAttribute("value");
  $("form").setAttribute("aria-busy", String(on));
  list();
  changed();
  if (!on && (hadStop || document.activeElement === document.body)) $("go").focus();
}

function stop() {
  if (running) running.abort();
}

function ready() {
  const offered = models.some((model) => model.task === (settings.task() === "denoise" ? "denoise" : "sr"));
  $("no-model").hidden = offered || !models.length;
  $("go").disabled = !items.some((one) => one.state !== "bad" && (one.size || one !== item)) || Boolean(running) || !offered;
}

// -- settings that change ----------------------------------------------------------------------------------------

function changed(moved = false) {
  // A result of settings that are no longer those is marked, and a crop shows the new ones; moved: without one, too.
  const done = Boolean(item && (item.result || afterUrl)); // the opening sample has no result of the service's
  const stale = done && item.key !== settings.key(), early = moved && !done && Boolean(item?.size);
  $("stale").hidden = !stale || Boolean(running);
  $("save").textContent = stale ? "Download (previous settings)" : "Download";
  $("tag-after").textContent = stale ? "after, previous settings" : "after";
  if ((stale || early) && !running && settings.task() === "denoise") preview.later(item, view);
  else preview.drop();
}

// -- similar pixels --------------------------------------------------------------------------------------------

async function look(x, y) {
  const one = item, fields = [["x", x], ["y", y], ["sigma", $("noise").value === "given" ? $("sigma").value : "auto"]];
  if (settings.task() === "denoise" && $("model").value) fields.push(["model", $("model").value]);
  $("x").value = x;
  $("y").value = y;
  say(`Finding the pixels similar to pixel ${x}, ${y}.`);
  try {
    const maps = await (await asked("/v1/explain", form(one.file, fields))).json();
    if (item !== one) return;
    showMaps($("maps"), maps, x, y, $("before"));
    view.mark(x, y, maps, one.size);
    say("");
  } catch (error) {
    if (item === one) say(error.message, true);
  }
}

// -- what a person does ----------------------------------------------------------------------------------------

function fillModels() {
  const wanted = settings.task() === "denoise" ? "denoise" : "sr", chosen = $("model").value;
  const named = models.filter((model) => model.task === wanted).map((model) => new Option(model.name, model.name));
  $("noise").querySelector("[value=photo]").hidden = !models.some((model) => model.name.startsWith("denoise-photo"));
  $("model").replaceChildren(new Option("Automatic", ""), ...named);
  settings.set("model", chosen);
  for (const part of document.querySelectorAll("[data-task]")) part.hidden = part.dataset.task !== settings.task();
  ready();
}

function tell() {
  $("sigma-row").hidden = $("noise").value !== "given";
  $("level-row").hidden = $("noise").value !== "photo";
  $("sigma-said").textContent = $("sigma").value;
  $("level-said").textContent = $("level").value;
  $("strength-said").textContent = `${Math.round($("strength").value * 100)} %`;
  $("scale-said").textContent = $("scale").value;
}

$("file").addEventListener("change", (event) => {
  const chosen = [...event.target.files];
  event.target.value = ""; // so that the same one can be chosen again
  if (chosen.length) choose(chosen);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) choose(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => event.clipboardData.files[0] && choose(event.clipboardData.files));
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", async () => choose([await sample(button.dataset.sample)]));
}
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("go").disabled) restore();
});
$("form").addEventListener("input", () => {
  tell();
  settings.keep();
  settings.clearErrors();
  if (!running) list();
  changed(true);
});
$("stop").addEventListener("click", stop);
$("zip").addEventListener("click", async (event) => {
  if ($("zip").href) return; // the click that was made below
  event.preventDefault();
  const done = items.filter((one) => one.result);
  $("zip").href = URL.createObjectURL(await zipped(done.map((one) => [one.name, one.result])));
  $("zip").download = "restored.zip";
  $("zip").click();
  URL.revokeObjectURL($("zip").href);
  $("zip").removeAttribute("href");
});
for (const choice of document.querySelectorAll("input[name=task]")) choice.addEventListener("change", fillModels);
$("compare").addEventListener("input", () => view.split(Number($("compare").value)));
view.onSplit = (share) => ($("compare").value = share);
view.onPick = (x, y) => look(Math.floor((x * item.size.width) / view.width), Math.floor((y * item.size.height) / view.height));
$("ask").addEventListener("click", () => {
  view.asking = !view.asking;
  $("ask").setAttribute("aria-pressed", String(view.asking));
  $("view").classList.toggle("asking", view.asking);
  $("at").hidden = !view.asking;
  if (view.asking) return;
  $("maps").replaceChildren();
  $("mark").hidden = true;
});
$("look").addEventListener("click", () => look(Number($("x").value), Number($("y").value)));

// -- at first sight: a sample that is restored already ---------------------------------------------------------

[models, limits] = await Promise.all(
  ["/v1/models", "/v1/limits"].map((path) => fetch(path).then((answer) => (answer.ok ? answer.json() : [])).catch(() => [])),
);
if (!models.length) say("The service does not answer.", true);
fillModels();
const automatic = settings.key(); // what the sample was restored by
settings.recall();
fillModels();
tell();
if (!items.length && models.length) {
  const [file, restored] = await Promise.all(["cat-camera", "cat-camera-restored"].map(sample));
  if (!items.length) {
    items = [{ file, state: "waiting", words: "" }];
    await show(items[0]);
    const found = await shown(restored);
    if (item === items[0] && item.file === file && !item.result && !running) {
      item.key = automatic;
      reveals(found);
      say("A restored sample (Automatic): drag the line to compare. Then choose your own images.");
      changed();
    }
  }
}
