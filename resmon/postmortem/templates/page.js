"use strict";
// Draws every figure of the page, again where it turns dark or is printed.
(() => {
  const root = document.documentElement;
  const drawn = () => [...document.querySelectorAll("[data-figure]")];
  const draw = () => {
    for (const place of drawn()) drawFigure(place, JSON.parse(document.getElementById(place.dataset.figure).textContent));
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
