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
  return (place, plot, options = {}) => {
    const { data, layout } = resolve(plot, getComputedStyle(document.documentElement));
    return Plotly.react(place, data, layout, { responsive: true, displayModeBar: false, ...options });
  };
})();
