"use strict";
// Draws every figure of the page; colours that stand in it as var(--name) are those of the page's style, light, dark or printed.
(() => {
  const root = document.documentElement;
  const drawn = () => [...document.querySelectorAll("[data-figure]")];
  const resolve = (value, style) => {
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => resolve(item, style));
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, style)]));
    return value;
  };
  const draw = () => {
    const style = getComputedStyle(root);
    for (const place of drawn()) {
      const plot = resolve(JSON.parse(document.getElementById(place.dataset.figure).textContent), style);
      Plotly.react(place, plot.data, plot.layout, { responsive: true, displayModeBar: false });
    }
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", () => {
    root.classList.add("print");
    for (const details of document.querySelectorAll("details")) details.open = true;
    draw();
  });
  addEventListener("afterprint", () => { root.classList.remove("print"); draw(); });
  document.getElementById("save").addEventListener("click", () => {
    const copy = root.cloneNode(true);
    for (const place of copy.querySelectorAll("[data-figure]")) { place.replaceChildren(); place.className = ""; }
    for (const added of copy.querySelectorAll("style:not([data-own])")) added.remove();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["<!doctype html>\n", copy.outerHTML], { type: "text/html" }));
    link.download = document.querySelector("[data-file]").dataset.file;
    link.click();
  });
  draw();
})();
