// The block pool on a canvas. A cell's byte: kind in the low two bits, above them how full the cell is, 0 to 63.

const KINDS = ["free", "cached", "used", "shared"];
const FADE_MS = 700;
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class BlockMap {
  /** `describe(cell, kind, share)` is told which cell is looked at. */
  constructor(canvas, describe) {
    this.canvas = canvas;
    this.describe = describe;
    this.cells = new Uint8Array(0);
    this.changed = new Float64Array(0);  // when each cell last changed, ms
    this.cursor = -1;
    this.frame = 0;
    new ResizeObserver(() => this.layout()).observe(canvas);
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => this.look(-1));
    canvas.addEventListener("blur", () => this.look(-1));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      this.look(this.cursor < 0 ? 0 : Math.min(Math.max(this.cursor + step, 0), this.cells.length - 1));
    });
  }

  take(cells) {
    const now = performance.now(), same = cells.length === this.cells.length;
    if (!same) this.changed = new Float64Array(cells.length).fill(-1e9);
    else for (let i = 0; i < cells.length; i++) if (cells[i] !== this.cells[i]) this.changed[i] = now;
    this.cells = cells;
    if (same) this.draw();
    else this.layout();
    this.look(this.cursor < cells.length ? this.cursor : -1);
  }

  layout() {
    const width = this.canvas.clientWidth, n = this.cells.length;
    if (!width || !n) return;
    this.pitch = Math.min(14, Math.max(4, Math.floor(Math.sqrt(width * 240 / n))));
    this.columns = Math.floor(width / this.pitch);
    const height = Math.ceil(n / this.columns) * this.pitch;
    const ratio = devicePixelRatio || 1;
    this.canvas.style.height = `${height}px`;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.draw();
  }

  colours() {
    const style = getComputedStyle(this.canvas);
    return { kinds: KINDS.map((k) => style.getPropertyValue(`--${k}`)), ink: style.getPropertyValue("--ink") };
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.paint());
  }

  paint() {
    const { cells, pitch, columns } = this;
    if (!columns) return;
    const context = this.canvas.getContext("2d"), ratio = devicePixelRatio || 1, now = performance.now();
    const { kinds, ink } = this.colours();
    const size = pitch > 5 ? pitch - 1.5 : pitch - 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.canvas.clientWidth, this.canvas.clientHeight);
    let moving = false;
    for (let i = 0; i < cells.length; i++) {
      const x = (i % columns) * pitch, y = Math.floor(i / columns) * pitch;
      const kind = cells[i] & 3, share = (cells[i] >> 2) / 63;
      context.globalAlpha = 1;
      context.fillStyle = kinds[0];
      context.fillRect(x, y, size, size);
      if (kind) {
        context.globalAlpha = 0.35 + 0.65 * share;
        context.fillStyle = kinds[kind];
        context.fillRect(x, y, size, size);
      }
      const age = now - this.changed[i];
      if (age < FADE_MS && !still.matches) {
        moving = true;
        context.globalAlpha = 0.55 * (1 - age / FADE_MS);
        context.fillStyle = ink;
        context.fillRect(x, y, size, size);
      }
    }
    context.globalAlpha = 1;
    if (this.cursor >= 0) {
      context.strokeStyle = ink;
      context.lineWidth = 1.5;
      context.strokeRect((this.cursor % columns) * pitch - 0.5, Math.floor(this.cursor / columns) * pitch - 0.5, size + 1, size + 1);
    }
    if (moving) this.draw();
  }

  point(event) {
    const column = Math.floor(event.offsetX / this.pitch);
    const cell = Math.floor(event.offsetY / this.pitch) * this.columns + column;
    this.look(column < this.columns && cell < this.cells.length ? cell : -1);
  }

  look(cell) {
    const moved = cell !== this.cursor;
    this.cursor = cell;
    if (cell >= 0) this.describe(cell, KINDS[this.cells[cell] & 3], (this.cells[cell] >> 2) / 63);
    else if (moved) this.describe(-1);
    if (moved) this.draw();
  }
}
