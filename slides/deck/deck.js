// Typeset the mathematics, then start the deck. `data-ready` on <body> says that
// both are done.

window.MathJax = {
  // full.js carries every extension, so nothing is fetched later; without these
  // two, a mistake in a formula shows (and a test finds it).
  tex: {
    inlineMath: [["$", "$"], ["\\(", "\\)"]],
    packages: { "[-]": ["noerrors", "noundefined"] },
  },
  chtml: {
    fontURL: "vendor/mathjax/output/chtml/fonts/woff-v2",
    matchFontHeight: false, // hidden slides have no height to match
  },
  options: { enableMenu: false },
  startup: {
    pageReady: () => MathJax.startup.defaultPageReady().then(startDeck),
  },
};

async function startDeck() {
  await Reveal.initialize({
    width: 1280,
    height: 720,
    margin: 0,
    center: false,
    display: "flex",
    transition: "none",
    backgroundTransition: "none",
    navigationMode: "linear", // a clicker has one button: never skip a subslide
    controlsTutorial: false,
    hash: true,
    slideNumber: "c/t",
    pdfSeparateFragments: false,
    pdfMaxPagesPerSlide: 1,
    keyboardCondition: (event) => !activates(event),
    plugins: [RevealNotes],
  });
  Reveal.on("slidechanged", () => document.activeElement.blur());
  Reveal.getSlides().forEach(groupCards);
  document.querySelectorAll("input").forEach(leaveToClicker);
  await document.fonts.ready;
  document.body.dataset.ready = "";
}

// Space and Enter belong to the card or button that has the focus.
function activates(event) {
  const keys = ["Space", "Enter"];
  return keys.includes(event.code) && event.target.closest("summary, button, a");
}

// Cards of one slide behave as one question: opening an answer closes the last.
function groupCards(slide, number) {
  const cards = slide.querySelectorAll("details:not(aside details)");  // not the notes
  cards.forEach((card) => { card.name = `slide-${number}`; });
}

// Reveal leaves every key to a focused input. Arrows should move a slider, but
// the page keys of a presenter's clicker should still turn the page.
function leaveToClicker(input) {
  input.dataset.preventSwipe = "";
  input.addEventListener("keydown", (event) => {
    const turn = { PageDown: Reveal.next, PageUp: Reveal.prev }[event.key];
    if (!turn && event.key !== "Escape") return;
    event.preventDefault();
    input.blur();
    turn?.();
  });
}
