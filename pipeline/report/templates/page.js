// Draws the charts of the page when they come into view, in the colours of the light or the dark page.
"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();

  // Replaces `var(--name)` by the colour that the page has now.
  function coloured(part) {
    if (typeof part === "string") {
      const found = /^var\((--[a-z0-9-]+)\)$/.exec(part);
      return found ? colour(found[1]) : part;
    }
    if (Array.isArray(part)) return part.map(coloured);
    if (part && typeof part === "object") {
      return Object.fromEntries(Object.entries(part).map(([key, value]) => [key, coloured(value)]));
    }
    return part;
  }

  // Rows of columns, as pipeline/report/page.py packs them; a day gets its moment, which is the same in every zone.
  function unpacked(columns) {
    const rows = [];
    for (const [name, column] of Object.entries(columns)) {
      const values = Array.isArray(column) ? column : column.of.map((number) => column.texts[number]);
      values.forEach((value, place) => {
        (rows[place] ??= {})[name] = value;
        if (name === "day") rows[place].date = Date.parse(`${value}T00:00:00Z`);
      });
    }
    return rows;
  }

  // Number of legend columns that the longest name leaves room for.
  function legendColumns(rows, width) {
    const names = rows.flatMap((row) => [row.name, row.task, row.model]).filter((name) => typeof name === "string");
    const longest = Math.min(165, 7 * Math.max(0, ...new Set(names.map((name) => name.length))));
    return Math.max(1, Math.floor((width - 60) / (longest + 45)));
  }

  function theme(width, rows) {
    const [ink, muted, line] = ["--ink", "--muted", "--line"].map(colour);
    return {
      background: "transparent",
      font: getComputedStyle(document.body).fontFamily,
      autosize: { type: "fit-x", contains: "padding" },
      view: { stroke: line },
      axis: {
        labelColor: muted, titleColor: muted, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 11,
        titleFontSize: 12, titleFontWeight: "normal", gridOpacity: 0.6, labelLimit: width < 500 ? 110 : 180,
      },
      legend: {
        orient: "bottom", labelColor: ink, titleColor: muted, labelFontSize: 12, titleFontWeight: "normal",
        columns: legendColumns(rows, width), labelLimit: 165, symbolStrokeWidth: 2,
      },
      title: { color: ink },
      range: { category: Array.from({ length: 8 }, (_, place) => colour(`--series-${place}`)) },
    };
  }

  const MOST_SVG_ROWS = 800; // beyond it thousands of elements make the page slow
  const drawn = new Map();

  async function draw(place) {
    const { spec, rows } = charts[Number(place.dataset.chart)];
    drawn.get(place)?.finalize?.();
    drawn.set(place, {});
    const own = coloured(spec);
    const values = unpacked(rows);
    own.datasets = { ...own.datasets, rows: values };
    const result = await vegaEmbed(place, own, {
      actions: false, ast: true, renderer: values.length > MOST_SVG_ROWS ? "canvas" : "svg", config: theme(place.clientWidth, values),
      tooltip: { theme: "custom" },
    });
    drawn.set(place, result);
  }

  const places = [...document.querySelectorAll(".plot")];
  const watcher = new IntersectionObserver((seen) => {
    for (const one of seen) {
      if (one.isIntersecting) {
        watcher.unobserve(one.target);
        draw(one.target);
      }
    }
  }, { rootMargin: "800px" });
  places.forEach((place) => watcher.observe(place));
  dark.addEventListener("change", () => [...drawn.keys()].forEach(draw));
  addEventListener("beforeprint", () => places.filter((place) => !drawn.has(place)).forEach(draw));
})();
