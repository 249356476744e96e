// What a slide does wrong on the 1280 x 720 stage, measured in the browser.
// `inspectSlide(section)` answers with a list of sentences, empty for a good slide.

const SAFE = { left: 24, top: 8, right: 1256, bottom: 692 }; // below: page number
const SHAPES =
  "img, svg, canvas, table, pre, details, input, button, mjx-container, mjx-math";
const SLACK = 2; // px, for rounding
const SMALLEST_FIGURE = 0.55; // of its natural size: letters stay above 12 px

function inspectSlide(section) {
  const cards = [...section.querySelectorAll("details")];
  cards.forEach((card) => { card.open = false; });
  const problems = inspectView(section);
  for (const card of cards) {
    card.open = true;
    const name = card.querySelector("summary").textContent.trim().slice(0, 40);
    problems.push(...inspectView(section).map((p) => `${p} (with "${name}" open)`));
    card.open = false;
  }
  return [...new Set(problems)];
}

function inspectView(section) {
  return [...outside(section), ...clipped(section), ...shrunk(section)];
}

// The boxes of letters and shapes against the safe part of the stage.
function outside(section) {
  const scale = Reveal.getScale();
  const stage = document.querySelector(".reveal .slides").getBoundingClientRect();
  const over = { left: 0, top: 0, right: 0, bottom: 0 };
  for (const box of boxes(section)) {
    const left = (box.left - stage.left) / scale;
    const top = (box.top - stage.top) / scale;
    over.left = Math.max(over.left, SAFE.left - left);
    over.top = Math.max(over.top, SAFE.top - top);
    over.right = Math.max(over.right, left + box.width / scale - SAFE.right);
    over.bottom = Math.max(over.bottom, top + box.height / scale - SAFE.bottom);
  }
  return Object.entries(over)
    .filter(([, by]) => by > SLACK)
    .map(([side, by]) => `runs over the ${side} edge by ${Math.ceil(by)} px`);
}

function* boxes(section) {
  const letters = document.createTreeWalker(section, NodeFilter.SHOW_TEXT);
  while (letters.nextNode()) {
    const text = letters.currentNode;
    if (!text.data.trim() || !drawn(text.parentElement)) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    yield* range.getClientRects();
  }
  for (const shape of section.querySelectorAll(SHAPES)) {
    if (drawn(shape)) yield shape.getBoundingClientRect();
  }
}

// Closed cards, notes and MathJax's copy for screen readers take no room.
function drawn(element) {
  return element.checkVisibility() && !element.closest("mjx-assistive-mml");
}

// Reveal does not clip a slide; a scroller inside one hides what it cuts.
function clipped(section) {
  return [...section.querySelectorAll("*")]
    .filter((e) => e instanceof HTMLElement && drawn(e))
    .filter((e) => getComputedStyle(e).overflow !== "visible")
    .flatMap((e) => [
      ["width", e.scrollWidth - e.clientWidth],
      ["height", e.scrollHeight - e.clientHeight],
    ])
    .filter(([, by]) => by > SLACK)
    .map(([side, by]) => `a box clips ${by} px of its ${side}`);
}

function shrunk(section) {
  return [...section.querySelectorAll("img")]
    .filter((img) => drawn(img) && !img.src.startsWith("data:image/svg"))
    .map((img) => Math.min(
      img.clientWidth / img.naturalWidth, img.clientHeight / img.naturalHeight))
    .filter((scale) => scale < SMALLEST_FIGURE)
    .map((scale) => `a figure is shrunk to ${Math.round(100 * scale)} %`);
}
