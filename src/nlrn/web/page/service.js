// What is asked of the service, and what it answers, in words for a person.
import { moves } from "/frames.js";

export const SHOWN = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/avif"];

export class Refusal extends Error {
  // field: of the form, that caused it
  constructor(words, { field } = {}) {
    super(words);
    this.field = field;
  }
}

export function mega(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}

function plain(words) {
  const said = words.replace(/^(the )?(image|body): ?/, "");
  if (/truncated|cut off/.test(said)) return "The file is cut off: its end is missing.";
  return said[0].toUpperCase() + said.slice(1) + (/[.!?]$/.test(said) ? "" : ".");
}

export function messages(said) {
  // What the service reports about a result, with the page's names for its fields.
  if (!said) return "";
  const words = said.replace("denoise_first=true", "Noise first: Remove").replace("denoise_first=false", "Noise first: Keep");
  return ` ${words[0].toUpperCase()}${words.slice(1)}.`;
}

export async function asked(path, form, signal) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", body: form, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The service does not answer.");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const words = plain(said.error || `The service answered ${answer.status}`);
  const later = answer.status === 503 ? ` Try again in ${answer.headers.get("Retry-After") || 5} seconds.` : "";
  throw new Refusal(words + later, said);
}

async function decoded(blob) {
  const url = URL.createObjectURL(blob), image = new Image();
  image.src = url;
  await image.decode().catch((error) => {
    URL.revokeObjectURL(url);
    throw error;
  });
  return { url, width: image.naturalWidth, height: image.naturalHeight };
}

export async function shown(blob, signal) {
  // The URL of something that the browser shows: the blob itself, or an 8-bit PNG that the service makes of it.
  const found = SHOWN.includes(blob.type) && (await decoded(blob).catch(() => null));
  return found || decoded(await (await asked("/v1/preview", form(blob), signal)).blob());
}

export function form(image, fields = []) {
  // fields: [name, value]
  const made = new FormData();
  made.append("image", image, image.name || "image");
  for (const [name, value] of fields) made.append(name, value);
  return made;
}

export async function sample(name) {
  const answer = await fetch(`/samples/${name}.png`);
  return new File([await answer.blob()], `${name}.png`, { type: "image/png" });
}

async function endsWith(blob, bytes) {
  // Whether the last 64 KiB hold these bytes: some programs append something to an image.
  const tail = new Uint8Array(await blob.slice(-65536).arrayBuffer());
  for (let i = tail.length - bytes.length; i >= 0; i--) if (bytes.every((byte, k) => tail[i + k] === byte)) return true;
  return false;
}

export async function check(file, limits) {
  // Before anything is sent. Raises Refusal for a file that is too large, cut off or an animation.
  if (limits.max_bytes && file.size > limits.max_bytes - 4096) {
    throw new Refusal(`The file has ${mega(file.size)}; this service takes ${mega(limits.max_bytes)}.`);
  }
  const head = new Uint8Array(await file.slice(0, 8).arrayBuffer());
  const png = head[0] === 0x89 && head[1] === 0x50, jpeg = head[0] === 0xff && head[1] === 0xd8;
  const whole = png ? await endsWith(file, [0x49, 0x45, 0x4e, 0x44]) : jpeg ? await endsWith(file, [0xff, 0xd9]) : true;
  if (!whole) throw new Refusal("The file is cut off: its end is missing.");
  if (await moves(file)) throw new Refusal("The file has several frames; stacks are for the command line: nlrn denoise FILE.");
}

export function checkSize({ width, height }, limits, scale = 1) {
  const pixels = width * height, mpx = (n) => `${(n / 1e6).toFixed(n < 1e7 ? 1 : 0)} megapixels`;
  if (limits.max_pixels && pixels > limits.max_pixels) {
    throw new Refusal(`The image has ${mpx(pixels)}; this service takes ${mpx(limits.max_pixels)}.`, { field: "image" });
  }
  const result = pixels * scale * scale;
  if (limits.max_result_pixels && result > limits.max_result_pixels) {
    const words = `The result would have ${mpx(result)}; this service makes ${mpx(limits.max_result_pixels)}.`;
    throw new Refusal(words, { field: "scale" });
  }
}
