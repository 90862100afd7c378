// The image: zoomed, moved, and cut in two by a line between before and after.
const $ = (id) => document.getElementById(id);

export function lay(box, left, top, width, height, size) {
  // Over a part of an image of that size, in its pixels.
  const part = (n, of) => `${(100 * n) / of}%`;
  const [x, y] = [size.width, size.height];
  Object.assign(box.style, { left: part(left, x), top: part(top, y), width: part(width, x), height: part(height, y) });
  box.hidden = false;
}

export class View {
  constructor() {
    this.width = this.height = 1; // of the image, in its pixels
    this.zoom = 1; // pixels of the screen for one of the image's
    this.left = this.top = 0;
    this.share = 50; // where the line stands, per cent of the view
    this.asking = false;
    this.fitted = true;
    this.onSplit = this.onPick = () => {};
    this.box = $("view");
    this.pointers = new Map();
    $("fit").addEventListener("click", () => this.fit());
    $("full").addEventListener("click", () => this.scale(1 / devicePixelRatio));
    $("in").addEventListener("click", () => this.scale(this.zoom * 1.5));
    $("out").addEventListener("click", () => this.scale(this.zoom / 1.5));
    this.box.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.box.addEventListener("keydown", (event) => this.key(event));
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
      this.box.addEventListener(kind, (event) => this[kind](event));
    }
    new ResizeObserver(() => (this.fitted ? this.fit() : this.draw())).observe(this.box);
  }

  open(width, height) {
    const share = width / this.width; // a result of another size keeps the place
    const same = this.width > 1 && Math.abs(height / this.height - share) < 0.02 && !this.fitted;
    [this.width, this.height] = [width, height];
    $("mark").hidden = true;
    if (same) {
      this.zoom /= share;
      this.draw();
    } else {
      this.fit();
    }
  }

  fit() {
    const { clientWidth, clientHeight } = this.box;
    if (!clientWidth) return;
    this.zoom = Math.min(clientWidth / this.width, clientHeight / this.height);
    this.left = (clientWidth - this.width * this.zoom) / 2;
    this.top = (clientHeight - this.height * this.zoom) / 2;
    this.fitted = true;
    this.draw();
  }

  scale(zoom, x = this.box.clientWidth / 2, y = this.box.clientHeight / 2) {
    const next = Math.min(32, Math.max(0.02, zoom));
    this.left = x - ((x - this.left) * next) / this.zoom;
    this.top = y - ((y - this.top) * next) / this.zoom;
    this.zoom = next;
    this.fitted = false;
    this.draw();
  }

  move(right, down) {
    this.left += right;
    this.top += down;
    this.fitted = false;
    this.draw();
  }

  split(share) {
    this.share = Math.min(100, Math.max(0, share));
    this.draw();
  }

  draw() {
    const { clientWidth, clientHeight } = this.box;
    const [wide, high] = [this.width * this.zoom, this.height * this.zoom];
    const held = (at, side, room) => (side <= room ? (room - side) / 2 : Math.min(0, Math.max(room - side, at)));
    this.left = held(this.left, wide, clientWidth);
    this.top = held(this.top, high, clientHeight);
    Object.assign($("stage").style, { left: `${this.left}px`, top: `${this.top}px`, width: `${wide}px`, height: `${high}px` });
    const at = (this.share / 100) * clientWidth;
    $("line").style.left = `${at}px`;
    const compared = !$("line").hidden, inside = compared ? Math.min(wide, Math.max(0, at - this.left)) : 0;
    $("upper").style.clipPath = `inset(0 0 0 ${inside}px)`;
    $("before").style.clipPath = compared ? `inset(0 ${wide - inside}px 0 0)` : ""; // both may be transparent
    for (const id of ["before", "after"]) $(id).classList.toggle("smooth", this.zoom * devicePixelRatio < 1);
    $("full").setAttribute("aria-pressed", String(Math.abs(this.zoom * devicePixelRatio - 1) < 1e-6 && !this.fitted));
    $("fit").setAttribute("aria-pressed", String(this.fitted));
  }

  mark(x, y, maps, size) {
    // The window around the pixel, on the image before as on a larger one.
    const [rows, columns] = [maps.states[0].length, maps.states[0][0].length];
    lay($("mark"), x - maps.centre[1], y - maps.centre[0], columns, rows, size);
  }

  middle() {
    // Of the view, in pixels of the image.
    return [(this.box.clientWidth / 2 - this.left) / this.zoom, (this.box.clientHeight / 2 - this.top) / this.zoom];
  }

  // -- hands ---------------------------------------------------------------------------------------------------

  place(event) {
    const box = this.box.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  wheel(event) {
    event.preventDefault();
    this.scale(this.zoom * Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), ...this.place(event));
  }

  key(event) {
    const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    if (step) this.move(...step);
    else if (event.key === "+" || event.key === "=") this.scale(this.zoom * 1.25);
    else if (event.key === "-") this.scale(this.zoom / 1.25);
    else if (event.key === "0") this.fit();
    else if (event.key === "1") this.scale(1 / devicePixelRatio);
    else return;
    event.preventDefault();
  }

  pointerdown(event) {
    const [x, y] = this.place(event);
    this.box.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [x, y]);
    this.moved = false;
    const line = (this.share / 100) * this.box.clientWidth;
    this.dragging = !$("line").hidden && !this.asking && Math.abs(x - line) < 22 ? "line" : "image";
  }

  pointermove(event) {
    const from = this.pointers.get(event.pointerId);
    if (!from) return;
    const to = this.place(event);
    if (this.pointers.size === 2) {
      this.pinch(event.pointerId, to);
    } else if (this.dragging === "line") {
      this.split((100 * to[0]) / this.box.clientWidth);
      this.onSplit(this.share);
    } else if (this.moved || Math.hypot(to[0] - from[0], to[1] - from[1]) > 4) {
      this.move(to[0] - from[0], to[1] - from[1]);
    } else {
      return;
    }
    this.moved = true;
    this.pointers.set(event.pointerId, to);
  }

  pinch(id, to) {
    const [other] = [...this.pointers].filter(([key]) => key !== id).map(([, at]) => at);
    const from = this.pointers.get(id);
    const apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
    this.scale((this.zoom * apart(to, other)) / apart(from, other), (to[0] + other[0]) / 2, (to[1] + other[1]) / 2);
  }

  pointerup(event) {
    if (!this.pointers.delete(event.pointerId) || this.moved || !this.asking) return;
    const [x, y] = this.place(event).map((at, i) => (at - [this.left, this.top][i]) / this.zoom);
    if (x >= 0 && y >= 0 && x < this.width && y < this.height) this.onPick(x, y);
  }

  pointercancel(event) {
    this.pointers.delete(event.pointerId);
  }
}
