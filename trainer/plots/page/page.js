"use strict";
// Fills the page in from its block of JSON: charts (BokehJS), images, tables that sort and filter, cells that open.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  // Bokeh takes $$ and \( for formulas, and would look for a library that sets them.
  const plain = (text) => String(text).replace(/\$\$/g, "$\u200b$").replace(/\\(?=[[(])/g, "\\\u200b");
  const numbers = (values) => values.map((value) => (value === null ? NaN : value));

  const glyphs = {
    line(figure, layer, pen, column) {
      const source = column({ x: numbers(layer.x), y: numbers(layer.y), tip: (layer.tips || layer.x.map(() => "")).map(plain) });
      const [x, y] = [{ field: "x" }, { field: "y" }];
      const dash = layer.dash ? "dashed" : "solid";
      const named = layer.name ? { legend_label: plain(layer.name) } : {};
      const drawn = figure.line(x, y, { source, line_color: pen, line_width: 2, line_dash: dash, line_alpha: layer.alpha ?? 1, ...named });
      const dots = layer.dots ? [figure.scatter(x, y, { source, size: 6, fill_color: pen, line_color: pen, ...named })] : [];
      return layer.quiet ? [] : [drawn, ...dots].slice(0, 1);
    },
    points(figure, layer, pen, column) {
      const source = column({ x: numbers(layer.x), y: numbers(layer.y), tip: layer.tips.map(plain) });
      const alpha = layer.x.length > 300 ? 0.45 : 0.85;
      const named = layer.name ? { legend_label: plain(layer.name) } : {};
      return [figure.scatter({ field: "x" }, { field: "y" }, { source, size: 7, fill_color: pen, line_color: null, fill_alpha: alpha, ...named })];
    },
    bars(figure, layer, pen, column) {
      const source = column({ x: numbers(layer.x), y: numbers(layer.y), tip: layer.tips.map(plain) });
      const look = { source, fill_color: pen, line_color: null, fill_alpha: 0.8 };
      return [layer.lies
        ? figure.hbar({ y: { field: "x" }, right: { field: "y" }, left: 0, height: layer.width, ...look })
        : figure.vbar({ x: { field: "x" }, top: { field: "y" }, bottom: 0, width: layer.width, ...look })];
    },
    whiskers(figure, layer, pen, column) {
      const source = column({ x: numbers(layer.x), low: numbers(layer.low), high: numbers(layer.high) });
      figure.segment({ field: "x" }, { field: "low" }, { field: "x" }, { field: "high" }, { source, line_color: pen, line_width: 2 });
      return [];
    },
    upright(figure, layer, pen) {
      figure.add_layout(new Bokeh.Span({ location: layer.x, dimension: "height", line_color: pen, line_dash: "dashed", line_width: 1.5 }));
      const named = layer.name ? { legend_label: plain(layer.name) } : {};
      figure.line([], [], { line_color: pen, line_dash: "dashed", ...named });
      return [];
    },
    labels(figure, layer, _pen, column) {
      const source = column({ x: layer.x, y: layer.y, text: layer.texts.map(plain) });
      const look = { source, text_color: color("ink"), text_font_size: "11px", x_offset: 5, text_baseline: "middle", background_fill_color: color("paper"), background_fill_alpha: 0.8 };
      figure.text({ x: { field: "x" }, y: { field: "y" }, text: { field: "text" }, ...look });
      return [];
    },
    parallel(figure, layer, pen, column) {
      const places = layer.lines.map((line) => line.map((_, i) => i));
      const source = column({ xs: places, ys: layer.lines.map(numbers), alpha: layer.shades, tip: layer.tips.map(plain) });
      const look = { source, line_color: pen, line_width: 2, line_alpha: { field: "alpha" } };
      const drawn = figure.multi_line({ field: "xs" }, { field: "ys" }, look);
      drawn.hover_glyph = new Bokeh.MultiLine({ xs: { field: "xs" }, ys: { field: "ys" }, line_color: color("pen1"), line_width: 4 });
      return [drawn];
    },
  };

  function look(figure, chart) {
    const [ink, faint, grid] = [color("ink"), color("faint"), color("grid")];
    figure.background_fill_color = figure.border_fill_color = figure.outline_line_color = null;
    for (const axis of [...figure.xaxes, ...figure.yaxes]) {
      Object.assign(axis, {
        axis_label_text_color: faint, major_label_text_color: faint, axis_line_color: faint, axis_label_text_font_style: "normal",
        major_tick_line_color: faint, minor_tick_line_color: null, axis_label_text_font_size: "12px", major_label_text_font_size: "11px",
      });
    }
    for (const lines of [...figure.xgrids, ...figure.ygrids]) lines.grid_line_color = grid;
    const legend = figure.center.find((part) => part instanceof Bokeh.Legend);
    if (legend) {
      figure.center = figure.center.filter((part) => part !== legend);
      const isLong = chart.layers.map((layer) => layer.name).join().length > 45;
      figure.add_layout(legend, isLong ? "right" : "above"); // inside it would lie on the curves
      Object.assign(legend, {
        label_text_color: ink, background_fill_color: color("paper"), background_fill_alpha: 0.75, border_line_color: null,
        click_policy: "hide", label_text_font_size: "11px", spacing: isLong ? 0 : 12, padding: 2, margin: 0, orientation: isLong ? "vertical" : "horizontal",
      });
    }
  }

  function named(axis, names, slanted) {
    const places = Object.keys(names).map(Number);
    axis.ticker = new Bokeh.FixedTicker({ ticks: places });
    axis.major_label_overrides = new Map(Object.entries(names).map(([place, name]) => [Number(place), plain(name)]));
    if (slanted && Object.values(names).some((name) => name.length > 8) && places.length > 3) axis.major_label_orientation = 0.6;
  }

  async function draw(place) {
    const chart = data.charts[place.dataset.chart];
    const kind = (axis) => ((chart.log || "").includes(axis) ? "log" : "linear");
    const figure = Bokeh.Plotting.figure({
      title: plain(chart.title), height: chart.height || 290, sizing_mode: "stretch_width", tools: "pan,box_zoom,wheel_zoom,reset,save",
      x_axis_type: kind("x"), y_axis_type: kind("y"), x_axis_label: plain(chart.x), y_axis_label: plain(chart.y),
    });
    const column = (columns) => new Bokeh.ColumnDataSource({ data: columns });
    const hovered = chart.layers.flatMap((layer) => glyphs[layer.kind](figure, layer, color(`pen${layer.pen % 6}`), column).map((drawn) => [layer, drawn]));
    for (const [layer, drawn] of hovered) {
      const [isLine, isShare] = [layer.kind === "line" && !layer.tips, (chart.percent || "").includes("y")];
      const tooltips = isLine ? [[plain(layer.name), isShare ? "@y{0.00%}" : "@y{%.5g}"], [plain(chart.x), "@x{0,0}"]] : [["", "@tip"]];
      const formatters = isLine && !isShare ? { "@y": "printf" } : {};
      figure.add_tools(new Bokeh.HoverTool({ renderers: [drawn], tooltips, formatters, mode: isLine ? "vline" : "mouse" }));
    }
    for (const [letter, axes] of [["x", figure.xaxes], ["y", figure.yaxes]]) {
      if ((chart.percent || "").includes(letter)) axes[0].formatter = new Bokeh.NumeralTickFormatter({ format: "0.[0]%" });
      else if (letter === "x" && chart.whole) axes[0].formatter = new Bokeh.NumeralTickFormatter({ format: "0,0" });
    }
    if (chart.ticks) named(figure.xaxes[0], chart.ticks, true);
    if (chart.names) named(figure.yaxes[0], chart.names, false);
    if (chart.whole) figure.xaxes[0].ticker = new Bokeh.BasicTicker({ min_interval: 1 });
    if (chart.range) figure.y_range = new Bokeh.Range1d({ start: chart.range[0], end: chart.range[1] });
    figure.toolbar.autohide = true;
    figure.toolbar.logo = null;
    figure.toolbar.active_scroll = null; // the wheel scrolls the page until its tool is chosen
    const zoom = figure.toolbar.tools.find((tool) => tool instanceof Bokeh.BoxZoomTool);
    figure.toolbar.active_drag = matchMedia("(pointer: coarse)").matches ? null : zoom; // a finger scrolls too
    look(figure, chart);
    if (chart.bare) Object.assign(figure.yaxes[0], { visible: false });
    if (chart.bare) figure.ygrids[0].visible = false;
    place.replaceChildren();
    await Bokeh.Plotting.show(figure, place);
  }

  async function drawAll() {
    for (const place of all("[data-chart]")) await draw(place);
    document.documentElement.dataset.drawn = String(Number(document.documentElement.dataset.drawn || 0) + 1);
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const heads = all("th", table.tHead);
    heads.forEach((head, i) => head.firstChild.addEventListener("click", () => {
      const upwards = head.getAttribute("aria-sort") === "descending" || !head.hasAttribute("aria-sort") && !body.rows[0]?.cells[i].dataset.by;
      const value = (row) => row.cells[i].dataset.by === undefined ? row.cells[i].textContent : Number(row.cells[i].dataset.by);
      const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
      const rows = [...body.rows].map((row) => [value(row), row]);
      const empty = ([key]) => key === "" || Number.isNaN(key);
      const full = rows.filter((row) => !empty(row)).sort((a, b) => (upwards ? 1 : -1) * order(a[0], b[0]));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", upwards ? "ascending" : "descending");
      body.append(...[...full, ...rows.filter(empty)].map(([, row]) => row)); // those without a value come last
    }));
    const field = table.closest(".table").querySelector(".filter");
    field?.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    });
  }

  function picture(index) {
    const [figure, image, caption] = ["figure", "img", "figcaption"].map((tag) => document.createElement(tag));
    image.src = data.images[index];
    image.alt = caption.textContent = data.captions[index] || "";
    figure.append(image, caption);
    return figure;
  }

  function open(button) {
    const panel = document.getElementById("behind");
    const shown = (data.cells[button.dataset.cell] || []).map(picture);
    const [title, grid] = [document.createElement("h3"), document.createElement("div")];
    title.textContent = `${button.title}${shown.length ? `, ${shown.length} shown` : ": no image of it is in this file"}`;
    grid.className = "gallery";
    grid.append(...shown);
    panel.replaceChildren(title, grid);
    for (const other of all(".cell")) other.setAttribute("aria-pressed", String(other === button));
  }

  for (const image of all("[data-image]")) image.src = data.images[image.dataset.image];
  for (const table of all(".rows")) sortable(table);
  for (const button of all(".cell")) button.addEventListener("click", () => open(button));
  dark.addEventListener("change", drawAll);
  drawAll();
})();
