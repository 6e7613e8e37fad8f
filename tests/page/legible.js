// What on a page is too faint to be read (contrast below 4.5) or too small to be hit (a side below LEAST pixels).
(() => {
  const light = ([r, g, b]) => [[r, 0.2126], [g, 0.7152], [b, 0.0722]].reduce((sum, [v, share]) =>
    sum + share * (v <= 10 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4), 0);
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const drawn = (...colours) => { for (const each of colours) { canvas.fillStyle = each; canvas.fillRect(0, 0, 1, 1); } return canvas.getImageData(0, 0, 1, 1).data; };
  const grounds = (e) => (e ? [...grounds(e.parentElement), getComputedStyle(e).backgroundColor] : ["white"]);
  const found = { faint: [], small: [] };
  for (const e of document.querySelectorAll("body *")) {
    const { width, height } = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!e.checkVisibility({ visibilityProperty: true }) || width < 3 || height < 3) continue;
    const what = `${e.tagName} ${e.getAttribute("class") ?? ""} ${e.textContent.trim().slice(0, 30)}`;
    if ([...e.childNodes].some((each) => each.nodeType === 3 && each.textContent.trim())) {
      const isDrawn = e.namespaceURI.includes("svg"), under = grounds(isDrawn ? e.closest(".plot") : e);
      const [a, b] = [light(drawn(...under, isDrawn ? style.fill : style.color)), light(drawn(...under))].sort((a, b) => b - a);
      if ((a + 0.05) / (b + 0.05) < 4.5) found.faint.push(`${what} ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
    }
    if (e.matches("a, button, select, input, summary") && (width < LEAST || height < LEAST)) found.small.push(`${what} ${width} ${height}`);
  }
  return found;
})()
