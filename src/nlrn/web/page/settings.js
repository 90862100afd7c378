// The settings: read from the form, kept in this browser, errors beside the field that caused them.
const $ = (id) => document.getElementById(id);
const FIELDS = ["noise", "level", "sigma", "strength", "scale", "first", "format", "model"];
const PLACE = "nlrn-settings";

export const task = () => document.querySelector("input[name=task]:checked").value;

export function values() {
  return Object.fromEntries([["task", task()], ...FIELDS.map((id) => [id, $(id).value])]);
}

export function fields() {
  // [name, value] of what is sent of them, which is what decides about a result.
  const { noise, level, sigma, strength, scale, first, format, model } = values();
  const given = noise === "given" ? [["sigma", sigma]] : [["sigma", "auto"], ["noise", noise]];
  const denoise = [...given, ["level", noise === "photo" && level], ["strength", strength]];
  const chosen = task() === "denoise" ? denoise : [["scale", scale], ["denoise_first", first]];
  return [...chosen, ["model", model], ["format", format]].filter(([, value]) => value);
}

export const key = () => JSON.stringify([task(), ...fields()]);

export function keep() {
  try {
    localStorage.setItem(PLACE, JSON.stringify(values()));
  } catch {} // a browser that keeps nothing
}

export function recall() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(PLACE)) || {};
  } catch {}
  const radio = document.querySelector(`input[name=task][value="${CSS.escape(String(kept.task))}"]`);
  if (radio) radio.checked = true;
  for (const id of FIELDS) set(id, kept[id]);
}

export function set(id, value) {
  // A value that the field does not have is left out.
  const field = $(id);
  if (value === undefined) return;
  if (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value)) field.value = value;
}

export function clearErrors() {
  for (const note of document.querySelectorAll(".field-error")) note.remove();
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
  }
}

export function showError(id, words) {
  // Beside the field; whether there is such a field that can be seen.
  const field = FIELDS.includes(id) ? $(id) : null;
  if (!field || !field.offsetParent) return false;
  const note = document.createElement("p");
  note.className = "field-error bad";
  note.id = `${id}-error`;
  note.setAttribute("role", "alert");
  note.textContent = words;
  field.closest(".row").append(note);
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-describedby", note.id);
  return true;
}
