"use strict";
// Shows samples from the page's data. Texts become text nodes, never markup.
(() => {
  document.documentElement.classList.add("js");
  const holder = document.getElementById("data");
  if (!holder) return;
  const { sets, blocks } = JSON.parse(holder.textContent);
  const read = new Map(); // blocks of pictures are read when one of theirs is to be seen
  const pictureOf = (name) => {
    const number = blocks[name];
    if (!read.has(number)) read.set(number, JSON.parse(document.querySelectorAll("script.images")[number].textContent));
    return read.get(number)[name];
  };
  // Pictures stand behind this script, megabytes of them, so that texts need not wait until they are there.
  const complete = new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve));
  const at = (id) => document.getElementById(id);
  const STEP = 40; // samples drawn at once; more when their end comes into sight
  const KINDS = { gained: "▲ gained", lost: "▼ lost", words: "other words", same: "unchanged" };
  const ALONE = { wrong: "✗ wrong", right: "✓ right", unjudged: "not judged" };

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const draw = (method) => {
    const svg = document.querySelector("tbody .mark").cloneNode(true);
    svg.firstChild.setAttribute("d", method.shape);
    svg.firstChild.setAttribute("fill", method.hollow ? "none" : method.colour);
    svg.firstChild.setAttribute("stroke", method.colour);
    return svg;
  };

  // What became of an answer under a method: of [text, worth, right, spans, read, methods], the first the baseline's.
  const kindOf = (answers, number) => {
    const mine = answers.find((one) => one[5].includes(number));
    if (number === 0) return mine[2] === null ? "unjudged" : mine[2] ? "right" : "wrong";
    const base = answers[0];
    if (mine[1] !== null && mine[1] !== base[1]) return mine[1] > base[1] ? "gained" : "lost";
    return mine[0] === base[0] ? "same" : "words";
  };
  for (const set of sets) {
    const numbers = set.methods.length > 1 ? [...set.methods.keys()].slice(1) : [0];
    for (const sample of set.samples) {
      sample.kinds = Object.fromEntries(numbers.map((number) => [number, kindOf(sample[4], number)]));
      sample.words = [sample[0], sample[1], sample[2], sample[3], ...sample[4].map((one) => one[0])].join("\n").toLowerCase();
    }
  }

  const pieces = (text, spans) => {
    const line = make("p");
    const letters = [...text]; // places count code points, not units of UTF-16
    let place = 0;
    for (const [start, end] of spans) {
      line.append(letters.slice(place, start).join(""), make("mark", "", letters.slice(start, end).join("")));
      place = end;
    }
    line.append(letters.slice(place).join("") || (place ? "" : "(nothing)"));
    return line;
  };
  const showAnswer = (set, sample, [text, , right, spans, read, methods]) => {
    const box = make("div", `answer ${right === null ? "" : right ? "right" : "wrong"}`);
    const who = make("div", "who");
    for (const number of methods) {
      const name = make("span");
      name.append(draw(set.methods[number]), set.methods[number].name);
      const kind = number ? sample.kinds[number] : "same";
      if (kind in KINDS && kind !== "same") name.append(make("span", kind, KINDS[kind]));
      who.append(name);
    }
    const sign = make("span", "sign", right === null ? "" : right ? "✓" : "✗");
    if (right !== null) sign.title = right ? "right" : "wrong";
    const line = pieces(text, spans);
    if (read && read !== text.trim().toLowerCase().replace(/\.$/, "")) line.append(make("span", "id", ` (read as ${read})`));
    box.append(who, sign, line);
    return box;
  };
  const showSample = (set, sample) => {
    const [id, image, prompt, truth, answers] = sample;
    const box = make("article", "sample");
    if (Object.hasOwn(blocks, image)) {
      const picture = make("img");
      picture.loading = "lazy";
      picture.alt = image;
      complete.then(() => { picture.src = pictureOf(image); });
      box.append(picture);
    } else box.append(make("div", "blank", "no picture"));
    const texts = make("div");
    if (set.prompt === null) texts.append(make("p", "asked", prompt));
    if (truth) texts.append(make("p", "", `Truth: ${truth}`));
    for (const answer of answers) texts.append(showAnswer(set, sample, answer));
    texts.append(make("p", "id", image && image !== id ? `${id} · ${image}` : id));
    box.append(texts);
    return box;
  };

  let found = [];
  let drawn = 0;
  const more = () => {
    const set = sets[at("set").value];
    at("list").append(...found.slice(drawn, drawn + STEP).map((sample) => showSample(set, sample)));
    drawn = Math.min(found.length, drawn + STEP);
    if (drawn < found.length) watcher.observe(at("list").lastElementChild);
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      more();
    }
  });
  const kindsOf = (sample) => {
    const chosen = at("method").value;
    if (chosen !== "") return [sample.kinds[chosen]];
    const kinds = Object.values(sample.kinds);
    const changed = kinds.filter((kind) => kind !== "same");
    return changed.length ? changed : kinds;
  };
  const refresh = () => {
    const set = sets[at("set").value];
    const wanted = new Set([...at("kinds").querySelectorAll("input:checked")].map((box) => box.value));
    const text = at("search").value.trim().toLowerCase();
    found = set.samples.filter((sample) => kindsOf(sample).some((kind) => wanted.has(kind)) && sample.words.includes(text));
    drawn = 0;
    watcher.disconnect();
    at("list").replaceChildren();
    const parts = [`${found.length} of ${set.samples.length} samples.`];
    if (set.prompt) parts.push(`Asked: ${set.prompt}`);
    if (set.left_out) parts.push(`${set.left_out} unchanged ones are not in this page.`);
    at("told").textContent = parts.join(" ");
    more();
  };
  const count = () => {
    const set = sets[at("set").value];
    for (const box of at("kinds").querySelectorAll("input")) {
      const number = set.samples.filter((sample) => kindsOf(sample).includes(box.value)).length;
      box.nextElementSibling.textContent = number;
    }
    refresh();
  };
  const choose = () => {
    const set = sets[at("set").value];
    const several = set.methods.length > 1;
    const methods = [...set.methods.entries()].slice(several ? 1 : 0);
    at("method").replaceChildren(...(methods.length > 1 ? [new Option("any", "")] : []));
    at("method").append(...methods.map(([number, method]) => new Option(method.name, number)));
    const kinds = Object.entries(several ? KINDS : ALONE);
    const there = new Set(set.samples.flatMap((sample) => Object.values(sample.kinds)));
    at("kinds").replaceChildren(
      ...kinds.filter(([kind]) => several || there.has(kind)).map(([kind, title]) => {
        const label = make("label", kind);
        const box = make("input");
        box.type = "checkbox";
        box.value = kind;
        box.checked = kind !== "same" && kind !== "right";
        box.addEventListener("change", refresh);
        label.append(box, `${title} `, make("span", "id"));
        return label;
      }),
    );
    count();
  };
  at("set").append(...sets.map((set, number) => new Option(set.title, number)));
  at("set").addEventListener("change", choose);
  at("method").addEventListener("change", count);
  at("search").addEventListener("input", refresh);
  choose();
})();
