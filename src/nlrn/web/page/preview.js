// A crop of the image by the settings as they are now, over the result of those before or, without one, the image.
import { asked, form } from "/service.js";
import * as settings from "/settings.js";
import { lay } from "/view.js";

const $ = (id) => document.getElementById(id);
const SIDE = 192, PAUSE = 250; // pixels of the image; milliseconds after the last change

export class Preview {
  constructor() {
    this.running = this.url = null;
    this.timer = 0;
  }

  later(item, view) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.make(item, view), PAUSE);
  }

  drop() {
    clearTimeout(this.timer);
    if (this.running) this.running.abort();
    if (this.url) URL.revokeObjectURL(this.url);
    this.running = this.url = null;
    $("patch").hidden = true;
    if ($("line").hidden) $("upper").hidden = $("tag-after").hidden = true; // there is no result
    $("patch").removeAttribute("src");
  }

  async make(item, view) {
    this.drop();
    const own = (this.running = new AbortController());
    const whole = [item.size.width, item.size.height], side = whole.map((n) => Math.min(SIDE, n));
    const middle = view.middle().map((n) => (n * item.size.width) / view.width); // of what is in sight
    const [x, y] = side.map((n, i) => Math.round(Math.min(Math.max(0, middle[i] - n / 2), whole[i] - n)));
    const canvas = Object.assign(document.createElement("canvas"), { width: side[0], height: side[1] });
    canvas.getContext("2d").drawImage($("before"), x, y, ...side, 0, 0, ...side);
    const crop = await new Promise((done) => canvas.toBlob(done, "image/png"));
    const fields = settings.fields().filter(([name]) => name !== "format");
    try {
      const blob = await (await asked("/v1/denoise", form(crop, fields), own.signal)).blob();
      if (this.running !== own) return;
      $("patch").src = this.url = URL.createObjectURL(blob);
      lay($("patch"), x, y, ...side, item.size);
      $("upper").hidden = $("tag-after").hidden = false;
      $("tag-after").textContent = `${$("line").hidden ? "" : "after; "}framed: the new settings`;
    } catch {} // settings that are refused are named when they are used
  }
}
