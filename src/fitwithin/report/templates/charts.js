// Draws the charts of a report from the JSON in its page (charts.py made it) with Observable Plot (vendor/).
//
// A chart that was drawn closes the table of its values. SVG takes the page's own colours from CSS, so that a change
// between light and dark, and paper, need no new drawing; a change of width does.
"use strict";

(() => {
  // Okabe and Ito's colours that keep 3:1 contrast, or nearly, on white and on near-black; dashes and shapes say the same.
  const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
  const GREY = "#8A8A8A";
  const SHAPES = ["circle", "square", "triangle", "diamond"];
  const NAMED_LINES = 10; // the others are grey
  const NAMED_POINTS = 8; // where there is room
  const MOST_SPANS = 12; // the others are in the table
  const FONT_PX = 11;
  const MARGIN = { marginTop: 26, marginRight: 16, marginBottom: 40, marginLeft: 46 };

  const figure = (value) => `${Number(value.toPrecision(4))}`;
  const withUnit = (value, axis) => `${figure(value)}${axis.unit ? ` ${axis.unit}` : ""}`;

  const brush = document.createElement("canvas").getContext("2d");
  function textWidth(text) {
    brush.font = `${FONT_PX}px ${getComputedStyle(document.body).fontFamily}`;
    return brush.measureText(text).width;
  }

  // The name, its middle left out where it is wider than so many pixels: both ends of a timm name tell models apart.
  function short(name, px) {
    let kept = name.length;
    let text = name;
    while (kept > 6 && textWidth(text) > px) {
      kept -= 1;
      text = `${name.slice(0, Math.ceil(kept / 2))}…${name.slice(name.length - Math.floor(kept / 2))}`;
    }
    return text;
  }

  // Ticks of a logarithmic axis that read well: 1, 2 and 5 of each decade, or more or fewer of them.
  function logTicks(values) {
    const low = Math.min(...values);
    const high = Math.max(...values);
    const decades = [];
    for (let n = Math.floor(Math.log10(low)); n <= Math.ceil(Math.log10(high)); n += 1) decades.push(n);
    const steps = [[1], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]];
    const all = steps.map((parts) => decades.flatMap((n) => parts.map((part) => Number(`${part}e${n}`))));
    const within = all.map((ticks) => ticks.filter((tick) => tick >= low && tick <= high));
    return within.find((ticks) => ticks.length > 2) || within[2];
  }

  function axis(described, values) {
    const notes = [described.unit, described.log ? "log" : ""].filter(Boolean).join(", ");
    return {
      label: described.title + (notes ? ` (${notes})` : ""),
      labelArrow: "none",
      grid: true,
      ...(described.log ? { type: "log", ticks: logTicks(values), tickFormat: figure } : {}),
    };
  }

  function drawPlot(width, height, x, y, marks, margin = MARGIN) {
    return Plot.plot({
      width,
      height,
      ...margin,
      x: { insetLeft: 14, insetRight: 14, ticks: Math.max(4, Math.round(width / 90)), labelAnchor: "center", ...x },
      y: { insetTop: 12, insetBottom: 12, ticks: 6, ...y },
      color: { type: "identity" },
      symbol: { type: "identity" },
      style: { background: "none", overflow: "visible", fontFamily: "inherit", fontSize: `${FONT_PX}px` },
      marks,
    });
  }

  // What the pointer is over: ``label`` of the nearest of these points.
  function tip(points, width) {
    const look = { fill: "var(--card)", stroke: "var(--soft)", fontSize: FONT_PX, lineWidth: Math.min(26, width / 18) };
    return Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: "label", maxRadius: 60, ...look }));
  }

  // A legend's key is drawn with the marks that it explains, in a square from 0 to 2.
  function key(text, ...marks) {
    const square = { axis: null, domain: [0, 2] };
    const identity = { color: { type: "identity" }, symbol: { type: "identity" }, style: { background: "none" } };
    const svg = Plot.plot({ width: 28, height: 16, margin: 0, x: square, y: square, ...identity, marks });
    svg.setAttribute("aria-hidden", "true");
    const item = document.createElement("span");
    item.append(svg, text);
    return item;
  }

  const middle = [[1, 1]];
  const across = [[0, 1], [2, 1]];

  const intervalText = (low, high) => `95 % interval ${low.toFixed(1)}–${high.toFixed(1)}`;

  function points(chart, width) {
    const groups = [...new Set(chart.series.map((each) => each.group))].sort();
    const colourOf = (group) => PALETTE[groups.indexOf(group) % PALETTE.length];
    const shapeOf = (group) => SHAPES[groups.indexOf(group) % SHAPES.length];
    const data = chart.series.map((each) => {
      const [x, y, low, high] = each.points[0];
      const front = each.front === null ? [] : [each.front ? "on the Pareto front" : "not on the Pareto front"];
      const said = [`${withUnit(y, chart.y)}, ${intervalText(low, high)}`, `${chart.x.title} ${withUnit(x, chart.x)}`];
      const label = [each.name + (each.winner ? " (winner)" : ""), ...said, each.group, ...front].join("\n");
      const colour = colourOf(each.group);
      const fill = each.front === false ? "var(--card)" : colour;
      return { ...each, x, y, low, high, label, colour, fill, shape: shapeOf(each.group) };
    });
    const look = { symbol: "shape", stroke: "colour", fill: "fill", r: 4.5, strokeWidth: 1.6 };
    const ring = { r: 9, stroke: "currentColor", strokeWidth: 1.4 };
    const line = { stroke: PALETTE[1], strokeWidth: 1.4, strokeDasharray: "6,4" };
    const marks = [
      Plot.ruleX(data, { x: "x", y1: "low", y2: "high", stroke: "colour" }),
      Plot.dot([...data].reverse(), { x: "x", y: "y", ...look }), // the winner on top
      Plot.dot(data.filter((each) => each.winner), { x: "x", y: "y", ...ring }),
      ...(chart.cap === null ? [] : [Plot.ruleX([chart.cap], line)]),
      tip(data, width),
    ];
    const height = Math.round(Math.max(250, Math.min(350, 0.62 * width)));
    const svg = drawPlot(width, height, axis(chart.x), axis(chart.y), marks);
    nameSome(svg, data, width, height, chart.cap);
    const legend = groups.map((group) =>
      key(group, Plot.dot(middle, { symbol: shapeOf(group), stroke: colourOf(group), fill: colourOf(group), r: 4.5 })),
    );
    if (data.some((each) => each.winner)) legend.push(key("winner", Plot.dot(middle, { ...ring, r: 6 })));
    const hollow = Plot.dot(middle, { stroke: "currentColor", r: 4.5 });
    if (data.some((each) => each.front === false)) legend.push(key("not on the Pareto front", hollow));
    if (chart.cap !== null) legend.push(key(`cap ${chart.cap.toFixed(2)} GiB`, Plot.line(across, line)));
    return { svg, legend, targets: data };
  }

  // Names points, those on the front first: each where nothing is drawn, or at least no mark and no other name.
  function nameSome(svg, data, width, height, cap) {
    const x = svg.scale("x").apply;
    const y = svg.scale("y").apply;
    const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
    const around = (each, px) => [x(each.x) - px, y(each.y) - px, x(each.x) + px, y(each.y) + px];
    const bars = data.map((each) => [x(each.x), y(each.high), x(each.x) + 1, y(each.low)]);
    if (cap !== null) bars.push([x(cap), 0, x(cap) + 1, height]);
    const rank = (each) => [each.winner, each.front === true, each.y];
    const ranked = [...data].sort((a, b) => {
      const place = rank(a).findIndex((mine, n) => mine !== rank(b)[n]);
      return place < 0 ? 0 : rank(b)[place] - rank(a)[place];
    });
    const taken = [];
    for (const point of ranked.slice(0, NAMED_POINTS)) {
      const text = short(point.name, Math.min(200, 0.5 * width));
      const wide = textWidth(text);
      // Well off the other marks, so that no name seems to belong to a neighbour.
      const marks = data.map((each) => around(each, each === point ? 5 : 11));
      const sides = [4, -5, 15, -16, 26].flatMap((dy) => [[11, dy], [-11 - wide, dy]]);
      const free = [...sides, [-wide / 2, -13], [-wide / 2, 22]].flatMap(([dx, dy]) => {
        const [left, base] = [x(point.x) + dx, y(point.y) + dy];
        const box = [left, base - 9, left + wide, base + 2];
        const inside = left >= MARGIN.marginLeft && left + wide <= width - 2 && box[1] >= MARGIN.marginTop - 6;
        if (!inside || box[3] > height - MARGIN.marginBottom) return [];
        if ([...marks, ...taken].some((other) => overlap(box, other))) return [];
        return [{ left, base, box, crossed: bars.filter((bar) => overlap(box, bar)).length }];
      });
      if (!free.length) continue;
      const best = free.reduce((one, other) => (other.crossed < one.crossed ? other : one));
      taken.push(best.box);
      const label = document.createElementNS("http://www.w3.org/2000/svg", "text");
      label.setAttribute("x", best.left);
      label.setAttribute("y", best.base);
      label.setAttribute("text-anchor", "start");
      label.setAttribute("class", "name");
      label.textContent = text;
      svg.insertBefore(label, svg.lastChild); // which is the tip
    }
  }

  function lines(chart, width) {
    const series = chart.series.map((each, place) => {
      const named = place < NAMED_LINES;
      const colour = named ? PALETTE[place % PALETTE.length] : GREY;
      const dashes = named && place >= PALETTE.length ? "5,4" : null;
      const look = { stroke: colour, strokeDasharray: dashes, strokeWidth: each.winner ? 2.4 : 1.4 };
      const dots = { symbol: named ? SHAPES[place % SHAPES.length] : "circle", fill: colour, r: each.winner ? 4.5 : 3.5 };
      const data = each.points.map(([x, y, low, high], n) => {
        const ends = low === undefined ? "" : `, ${intervalText(low, high)}`;
        const said = [`${chart.y.title} ${withUnit(y, chart.y)}${ends}`, `${chart.x.title} ${withUnit(x, chart.x)}`];
        const handed = n === each.delivered ? ["delivered"] : [];
        return { x, y, low, high, label: [each.name + (each.winner ? " (winner)" : ""), ...said, ...handed].join("\n") };
      });
      return { ...each, named, data, look: { ...look, strokeOpacity: named ? 1 : 0.45 }, dots };
    });
    const ring = { r: 9, stroke: "currentColor", strokeWidth: 1.4 };
    const marks = [...series].reverse().flatMap((each) => [
      Plot.line(each.data, { x: "x", y: "y", ...each.look }),
      ...(chart.marks ? [Plot.dot(each.data, { x: "x", y: "y", ...each.dots })] : []),
      ...(chart.marks && each.winner
        ? [Plot.ruleX(each.data, { x: "x", y1: "low", y2: "high", stroke: each.look.stroke })]
        : []),
    ]);
    const handed = series.flatMap((each) => each.data.filter((point, n) => n === each.delivered));
    const everything = series.flatMap((each) => each.data);
    marks.push(Plot.dot(handed, { x: "x", y: "y", ...ring }), tip(everything, width));
    const height = Math.round(Math.max(250, Math.min(350, 0.62 * width)));
    const [xs, ys] = [everything.map((point) => point.x), everything.map((point) => point.y)];
    const svg = drawPlot(width, height, axis(chart.x, xs), axis(chart.y, ys), marks);
    const legend = series.filter((each) => each.named).map((each) => {
      const dots = chart.marks ? [Plot.dot(middle, each.dots)] : [];
      const name = short(each.name, width - 110) + (each.winner ? " (winner)" : "");
      return key(name, Plot.line(across, each.look), ...dots);
    });
    if (handed.length) legend.push(key("delivered", Plot.dot(middle, { ...ring, r: 6 })));
    const rest = series.length - NAMED_LINES;
    if (rest > 0) {
      const { look, dots } = series[NAMED_LINES];
      const other = chart.marks ? Plot.dot(middle, dots) : Plot.line(across, look);
      legend.push(key(`${rest} more`, other));
    }
    return { svg, legend, targets: everything };
  }

  function spans(chart, width) {
    const rows = chart.series.slice(0, MOST_SPANS).map((each, place) => {
      const between = each.low < each.high ? `, interval ${figure(each.low)}–${figure(each.high)}` : "";
      const predicted = `predicted ${withUnit(each.predicted, chart.x)}${between}`;
      const actual = `actual ${withUnit(each.actual, chart.x)} (${each.error})`;
      return { ...each, x: each.actual, y: place, label: `${each.name}\n${predicted}\n${actual}` };
    });
    const band = { stroke: PALETTE[5], strokeWidth: 7, strokeOpacity: 0.5 };
    const bar = { stroke: "currentColor", strokeWidth: 2 };
    const dot = { fill: PALETTE[1], r: 4.5 };
    // Names stand above their line, not beside the axis: long ones would leave a phone no room for the plot.
    const above = { y: "y", dy: -15 };
    const room = width - MARGIN.marginRight - 70;
    const named = (won) => [
      rows.filter((each) => each.winner === won),
      { ...above, frameAnchor: "left", text: (each) => short(each.name, room), fontWeight: won ? 650 : 400 },
    ];
    const marks = [
      Plot.ruleY(rows, { y: "y", x1: "low", x2: "high", ...band }),
      Plot.ruleX(rows, { x: "predicted", y1: (each) => each.y - 0.22, y2: (each) => each.y + 0.22, ...bar }),
      Plot.dot(rows, { x: "actual", y: "y", ...dot }),
      Plot.text(...named(true)),
      Plot.text(...named(false)),
      Plot.text(rows, { ...above, frameAnchor: "right", text: "error" }),
      tip(rows, width),
    ];
    const y = { axis: null, domain: [rows.length - 0.6, -0.7], insetTop: 0, insetBottom: 0 };
    const margin = { ...MARGIN, marginTop: 0, marginLeft: 6 };
    const svg = drawPlot(width, 50 + 38 * rows.length, axis(chart.x), y, marks, margin);
    const legend = [
      key("predicted interval", Plot.ruleY([1], { x1: 0, x2: 2, ...band })),
      key("predicted", Plot.ruleX([1], { y1: 0.2, y2: 1.8, ...bar })),
      key("actual", Plot.dot(middle, dot)),
    ];
    const rest = chart.series.length - rows.length;
    if (rest > 0) legend.push(`${rest} more are in the table`);
    return { svg, legend, targets: rows };
  }

  // With the chart in focus, the arrow keys go from point to point as the pointer does, and a screen reader reads it.
  function takeKeys(svg, targets, live) {
    const x = svg.scale("x").apply;
    const y = svg.scale("y").apply;
    const ordered = [...targets].sort((a, b) => a.x - b.x || a.y - b.y);
    let at = -1;
    svg.addEventListener("keydown", (event) => {
      if (event.key === "Escape") svg.dispatchEvent(new PointerEvent("pointerleave", { pointerType: "mouse" }));
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      at = Math.max(0, Math.min(ordered.length - 1, at + step));
      const point = new DOMPoint(x(ordered[at].x), y(ordered[at].y)).matrixTransform(svg.getScreenCTM());
      const where = { clientX: point.x, clientY: point.y, pointerType: "mouse" };
      svg.dispatchEvent(new PointerEvent("pointermove", where));
      live.textContent = ordered[at].label;
    });
  }

  const KINDS = { points, lines, spans };

  function draw(place, chart, title) {
    const width = Math.floor(place.clientWidth);
    if (!width || place.dataset.width === `${width}`) return;
    place.dataset.width = `${width}`;
    const { svg, legend, targets } = KINDS[chart.kind](chart, width);
    // Plot names its marks so; ARIA allows that for parts with a role alone.
    svg.querySelectorAll("g[aria-label]").forEach((mark) => mark.removeAttribute("aria-label"));
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${title}. The table below has the values; the arrow keys go through them.`);
    svg.setAttribute("tabindex", "0");
    const keys = document.createElement("div");
    keys.className = "legend";
    keys.append(...legend);
    const live = document.createElement("p");
    live.className = "unseen";
    live.setAttribute("aria-live", "polite");
    takeKeys(svg, targets, live);
    place.replaceChildren(svg, keys, live);
  }

  const charts = JSON.parse(document.getElementById("charts-data").textContent);
  const redraws = new Map();
  const watcher = new ResizeObserver((entries) => {
    requestAnimationFrame(() => entries.forEach((entry) => redraws.get(entry.target)()));
  });
  for (const [anchor, chart] of Object.entries(charts)) {
    const element = document.getElementById(anchor);
    const place = element.querySelector(".plot");
    const title = element.querySelector("figcaption").textContent;
    draw(place, chart, title);
    element.querySelector(".values").open = false;
    redraws.set(place, () => draw(place, chart, title));
    watcher.observe(place);
  }
})();
