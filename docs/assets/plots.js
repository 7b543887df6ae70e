// Draws the plotly figures of executed notebooks (docs/notebooks.py) when they come into view, in the colours of the page.
const plots = [...document.querySelectorAll(".plot[data-figure]")];
const touch = matchMedia("(pointer: coarse)").matches; // a drag scrolls the page there

function layout(div, figure) {
  const { color } = getComputedStyle(div);
  const faint = color.replace(/^rgba?\(([^,]+,[^,]+,[^,)]+).*$/, "rgba($1, 0.15)");
  const axis = { gridcolor: faint, zerolinecolor: faint, linecolor: faint, automargin: true, exponentformat: "power" };
  const font = { color, family: getComputedStyle(document.body).fontFamily, size: 13 };
  const clear = "rgba(0, 0, 0, 0)";
  const legend = { orientation: "h", x: 0, y: -0.3, yanchor: "top" };
  const template = {
    layout: {
      font,
      legend,
      margin: { l: 8, r: 8, t: 40, b: 8 },
      paper_bgcolor: clear,
      plot_bgcolor: clear,
      shapedefaults: { line: { color } },
      title: { font: { size: 15 } },
      xaxis: axis,
      yaxis: axis,
    },
  };
  return { ...figure.layout, template, dragmode: touch ? false : "zoom", height: div.clientWidth < 500 ? 360 : 420 };
}

const draw = (div) => {
  const figure = JSON.parse(div.dataset.figure);
  Plotly.react(div, figure.data, layout(div, figure), { responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover" });
};

const seen = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) {
        seen.unobserve(target);
        draw(target);
      }
    }
  },
  { rootMargin: "600px" },
);
plots.forEach((div) => seen.observe(div));

// Another colour scheme: draw again what is drawn.
new MutationObserver(() => plots.filter((div) => div.layout).forEach(draw)).observe(document.body, {
  attributeFilter: ["data-md-color-scheme"],
});
