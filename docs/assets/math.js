// Equations: what arithmatex has marked in a page, and the Markdown cells of a notebook.
const delimiters = [
  { left: "$$", right: "$$", display: true },
  { left: "\\[", right: "\\]", display: true },
  { left: "\\(", right: "\\)", display: false },
  { left: "$", right: "$", display: false },
];

// Material's document$: once for each page, also where it is loaded into the one before.
document$.subscribe(() => {
  for (const element of document.querySelectorAll(".arithmatex, .jp-RenderedMarkdown")) {
    renderMathInElement(element, { delimiters, throwOnError: false });
  }
});
