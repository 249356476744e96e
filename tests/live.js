// What a slide of the live deck does wrong, by the rules of stage.js and by its type.
// jupyterlab-rise keeps reveal.js to itself; stage.js asks it for the scale alone.

const SLIDE = "section.present section.present";
const LEAST = { // px on the stage
  prose: [".jp-RenderedHTMLCommon :is(p, li, td, summary)", 24],
  code: [".cm-line, pre", 18],
};

window.Reveal = {
  getScale: () => document.querySelector(".slides").getBoundingClientRect().width / 1280,
};

// Where the deck stands: the slide, and how many of its fragments are still hidden.
function place() {
  const slide = document.querySelector(SLIDE);
  return [slide.id, slide.querySelectorAll(".fragment:not(.visible)").length];
}

function inspectLive() {
  const slide = document.querySelector(SLIDE);
  const shown = (selector) =>
    [...slide.querySelectorAll(selector)].filter((e) => e.checkVisibility());
  const problems = inspectSlide(slide);
  for (const [kind, [selector, least]] of Object.entries(LEAST)) {
    const letters = shown(selector).filter((e) => e.textContent.trim());
    const size = Math.min(...letters.map((e) => parseFloat(getComputedStyle(e).fontSize)));
    if (size < least) problems.push(`${kind} of ${size} px`);
  }
  if (shown("img").some((image) => image.naturalWidth < 100)) {
    problems.push("a picture that did not load");
  }
  if (shown(".cm-line").some((line) => line.textContent.includes("plots."))) {
    problems.push("a figure with its code");
  }
  return problems;
}
