// A line chart of the last two minutes. Draws what it is given, when it is given something.

const SPAN_S = 120;

const nice = (top) => {
  const power = 10 ** Math.floor(Math.log10(top || 1));
  return [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= top) ?? top;
};

export class Curves {
  /** names: series -> custom property of its colour. `label(value)` writes an axis label. */
  constructor(canvas, series, label) {
    Object.assign(this, { canvas, series, label, points: [] });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** point: {t: seconds, name: number or null, ...} */
  add(point) {
    this.points.push(point);
    while (this.points.length && this.points[0].t < point.t - SPAN_S) this.points.shift();
    this.draw();
  }

  draw() {
    const { canvas, points } = this, width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    const ratio = devicePixelRatio || 1, context = canvas.getContext("2d"), style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name);
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = `11px ${style.getPropertyValue("--mono")}`;
    context.textBaseline = "middle";
    const names = Object.keys(this.series);
    let most = 0;
    for (const p of points) for (const n of names) if (p[n] > most) most = p[n];
    const top = nice(most || 1);
    const left = 52, right = width - 2, upper = 8, lower = height - 16;
    const end = points.at(-1)?.t ?? 0;
    const x = (t) => right - (end - t) / SPAN_S * (right - left);
    const y = (v) => lower - v / top * (lower - upper);
    context.strokeStyle = colour("--grid");
    context.fillStyle = colour("--soft");
    context.lineWidth = 1;
    for (const share of [0, 0.5, 1]) {
      const at = Math.round(y(top * share)) + 0.5;
      context.beginPath();
      context.moveTo(left, at);
      context.lineTo(right, at);
      context.stroke();
      context.textAlign = "right";
      context.fillText(this.label(top * share), left - 6, at);
    }
    context.textAlign = "left";
    context.fillText("-120 s", left, height - 6);
    context.textAlign = "right";
    context.fillText("now", right, height - 6);
    for (const name of names) {
      context.strokeStyle = colour(this.series[name]);
      context.lineWidth = 1.5;
      context.lineJoin = "round";
      context.beginPath();
      let open = false, before = -1e9;
      for (const p of points) {
        const value = p[name];
        // nothing was measured: a gap, not a line through it
        if (value === null || value === undefined) { open = false; continue; }
        if (open && p.t - before < 5) context.lineTo(x(p.t), y(value));
        else { context.moveTo(x(p.t), y(value)); context.lineTo(x(p.t) + 0.5, y(value)); }
        open = true;
        before = p.t;
      }
      context.stroke();
    }
  }
}
