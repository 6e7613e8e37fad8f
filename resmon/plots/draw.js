"use strict";
// Draws a figure in a place of the page; colours that stand in it as var(--name) are those of the page's style as it is now.
const drawFigure = (() => {
  const resolve = (value, style) => {
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => resolve(item, style));
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, style)]));
    return value;
  };
  // Where colours are logarithms, what hovering tells are the numbers themselves, which are not sent once more.
  const told = (trace) => {
    if (trace.meta !== "decades") return trace;
    const [rows, columns] = trace.z.shape.split(",").map(Number);
    const levels = new Float32Array(Uint8Array.from(atob(trace.z.bdata), (c) => c.charCodeAt(0)).buffer);
    const customdata = Array.from({ length: rows }, (_, i) => Array.from(levels.subarray(i * columns, (i + 1) * columns), (level) => 10 ** level));
    return { ...trace, customdata };
  };
  return (place, plot, options = {}) => {
    const { data, layout } = resolve({ ...plot, data: plot.data.map(told) }, getComputedStyle(document.documentElement));
    return Plotly.react(place, data, layout, { responsive: true, displayModeBar: false, ...options });
  };
})();
