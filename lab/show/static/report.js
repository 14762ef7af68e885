// The curves of the page, and its buttons. Everything else on the page works without a script.
"use strict";
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const charts = [];
  const height = 200;

  // Shade the time of each fault, with its number in the table, and mark the violation.
  const shade = (chart) => {
    const { ctx, bbox } = chart, pixel = devicePixelRatio, right = bbox.left + bbox.width;
    ctx.save();
    ctx.font = `bold ${11 * pixel}px system-ui, sans-serif`;
    ctx.fillStyle = colour("--fault");
    let free = -1e9;
    for (const [start, end, number] of data.windows) {
      const from = Math.max(chart.valToPos(start, "x", true), bbox.left);
      const to = Math.min(Math.max(chart.valToPos(end, "x", true), from + 2 * pixel), right);
      if (to <= bbox.left || from >= right) continue;
      ctx.globalAlpha = 0.12;
      ctx.fillRect(from, bbox.top, to - from, bbox.height);
      ctx.globalAlpha = 1;
      if (from < free) continue;
      ctx.fillText(number, from + 2 * pixel, bbox.top + 11 * pixel);
      free = from + 18 * pixel;
    }
    if (data.broken !== null) {
      const at = chart.valToPos(data.broken, "x", true);
      if (at >= bbox.left && at <= right) {
        ctx.fillRect(at - pixel, bbox.top, 2 * pixel, bbox.height);
        ctx.fillText("✗", at + 3 * pixel, bbox.top + 24 * pixel);
      }
    }
    ctx.restore();
  };

  const axis = {
    stroke: () => colour("--dim"), size: 56, ticks: { show: false },
    grid: { stroke: () => colour("--line"), width: 1 },
  };
  const powers = (chart, values) => values.map((v) => (Number.isInteger(+Math.log10(v).toFixed(9)) ? v : null));
  // A value without neighbours is a point: there is no line that would show it.
  const alone = (chart, at) => {
    const values = chart.data[at], missing = (v) => v === null || v === undefined;
    return values.flatMap((v, i) => (!missing(v) && missing(values[i - 1]) && missing(values[i + 1]) ? [i] : []));
  };
  const line = (label, name, dash) => ({
    label, dash, stroke: () => colour(name), width: 1.7, points: { show: true, size: 4, filter: alone }, spanGaps: false,
    value: (chart, v) => (v === null || v === undefined ? "–" : v.toLocaleString("en")),
  });

  function draw(id, title, series, columns, logarithmic) {
    const box = document.getElementById(id);
    if (!box) return;
    const options = {
      title, height, width: box.clientWidth,
      cursor: { sync: { key: "run" }, drag: { x: true, y: false } },
      scales: {
        x: { time: false, range: (chart, low, high) => (high > low ? [low, high] : [0, data.end]) },
        y: logarithmic ? { distr: 3 } : { range: (chart, low, high) => [0, Math.max(1, high * 1.1)] },
      },
      axes: [
        { ...axis, size: 30, values: (chart, splits) => splits.map((v) => `${+v.toFixed(3)} s`) },
        logarithmic ? { ...axis, filter: powers, grid: { ...axis.grid, filter: powers } } : axis,
      ],
      series: [{ label: "s", value: (chart, v) => (v === null ? "–" : v.toFixed(3)) }, ...series],
      hooks: { drawClear: [shade] },
    };
    charts.push([new uPlot(options, columns, box), box]);
  }

  if (data.t) {
    draw("rate", "", [line("acknowledged/s", "--leader")], [data.t, data.rate]);
    const latencies = [line("p50 ms", "--good"), line("p99 ms", "--third", [7, 3]), line("max ms", "--dim", [2, 3])];
    draw("latency", "", latencies, [data.t, data.p50, data.p99, data.max], true);
  }
  if (data.cpu) {
    const names = ["--leader", "--fault", "--good", "--third", "--candidate", "--dim", "--accent", "--bad", "--doubt"];
    const nodes = Object.keys(data.cpu);
    const series = nodes.map((node, at) => line(`node ${node} %`, names[at % 9], at % 3 ? [at % 3 * 4, 3] : undefined));
    draw("cpu", "", series, uPlot.join(nodes.map((node) => data.cpu[node])).map((c) => Array.from(c, (v) => v ?? null)));
    charts.at(-1)[0].series.slice(1).forEach((each) => { each.spanGaps = true; });
    charts.at(-1)[0].redraw(false);
  }

  const redraw = () => charts.forEach(([chart]) => chart.redraw(false));
  addEventListener("resize", () => charts.forEach(([chart, box]) => chart.setSize({ width: box.clientWidth, height })));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const turn = () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    redraw();
  };
  document.getElementById("theme").addEventListener("click", turn);
  addEventListener("keydown", (event) => {
    const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
    if (plain && (event.key === "d" || event.key === "D")) turn();
  });
  document.querySelectorAll("button[data-zoom]").forEach((button) => {
    button.hidden = charts.length === 0;
    button.addEventListener("click", () => {
      const [min, max] = button.dataset.zoom.split(",").map(Number);
      charts.forEach(([chart]) => chart.setScale("x", { min, max }));
      document.getElementById("figures").scrollIntoView();
    });
  });
  root.dataset.ready = String(charts.length);
})();
