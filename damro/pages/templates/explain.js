"use strict";
(() => {
  const stops = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"]
    .map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const byId = (id) => document.getElementById(id);
  const canvas = byId("map"), picture = byId("under");
  const words = [...document.querySelectorAll(".word")], seenLegend = byId("legend").textContent;
  let chosen = byId("show-seen"), before = null;

  // Between two stops of the colour map, in proportion. share is in 0 .. 1.
  function colourOf(share) {
    const place = share * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2), rest = place - low;
    return stops[low].map((value, channel) => Math.round(value + rest * (stops[low + 1][channel] - value)));
  }

  function drawMap(source) {
    const cells = atob(source.dataset.map);
    canvas.width = Number(source.dataset.columns);
    canvas.height = Number(source.dataset.rows);
    const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
    for (let cell = 0; cell < cells.length; cell += 1) {
      const share = cells.charCodeAt(cell) / 255;  // what weighs little lets the picture through
      pixels.data.set([...colourOf(share), Math.round(255 * (0.25 + 0.6 * share))], cell * 4);
    }
    context.putImageData(pixels, 0, 0);
    byId("peak").textContent = source.dataset.peak;
    byId("legend").textContent = source.dataset.word === undefined
      ? seenLegend : `attention of “${source.dataset.word}”, mean over layers and heads`;
  }

  function preview(source) {
    drawMap(source);
    const id = source.dataset.word === undefined ? "" : source.getAttribute("href").slice(1);
    for (const article of document.querySelectorAll(".words article")) {
      article.classList.toggle("current", article.id === id);
    }
  }

  function choose(source) {
    chosen = source;
    byId("show-seen").checked = source === byId("show-seen");
    for (const word of words) {
      if (word === source) word.setAttribute("aria-current", "true");
      else word.removeAttribute("aria-current");
    }
    preview(source);
  }

  words.forEach((word, number) => {
    word.addEventListener("click", (event) => { event.preventDefault(); word.focus(); choose(word); });
    word.addEventListener("focus", () => choose(word));
    word.addEventListener("mouseenter", () => preview(word));
    word.addEventListener("mouseleave", () => preview(chosen));
    word.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = step && words[number + step];
      if (next) { event.preventDefault(); next.focus(); }
    });
  });
  byId("show-seen").addEventListener("change", (event) => {
    if (event.target.checked) { before = chosen; choose(event.target); } else choose(before);
  });
  byId("smooth").addEventListener("change", (event) => canvas.classList.toggle("smooth", event.target.checked));
  byId("show-map").addEventListener("change", (event) => {
    canvas.hidden = !event.target.checked;
    picture.classList.toggle("grey", event.target.checked);
  });
  byId("show-outliers").addEventListener("change", (event) => {
    byId("outliers").style.display = event.target.checked ? "" : "none";
  });

  document.documentElement.classList.add("js");
  picture.src = byId("photo").src;
  picture.classList.add("grey");
  const first = words.find((word) => word.classList.contains("differs")) || words[0] || chosen;
  before = first;
  choose(first);
})();
