"use strict";
// The chart of a metric: lines by run, the best marked, the nearest point under the pointer named.
// Its data is what #results asks for; it is fetched anew only where that has changed.

(() => {
  const figure = document.getElementById("chart");
  if (!figure) return;
  const plot = figure.querySelector("[data-plot]");
  const said = figure.querySelector("[data-said]");
  const LINES = 24; // more than so many runs are drawn as points: lines would hide each other

  let source = null, data = null, chart = null, chosen = -1;
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;

  const color = (name) => getComputedStyle(figure).getPropertyValue(name).trim();
  const palette = () => [...Array(10).keys()].map((i) => color(`--c${i}`));
  const model = () => new URLSearchParams(source.split("?")[1]).get("model");
  const ref = (version) => `${model()}@v${version}`;
  const short = (value) =>
    value && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)
      ? value.toExponential(3)
      : String(+value.toFixed(Math.abs(value) <= 1 ? 4 : 2));

  async function load() {
    const wanted = document.getElementById("results")?.dataset.chart;
    if (!wanted || wanted === source) return;
    source = wanted;
    const answer = await fetch(wanted, { headers: { accept: "application/json" } });
    if (wanted !== source) return; // a later one is on its way
    data = answer.ok ? await answer.json() : null;
    draw();
  }

  // Every point has a place of its own on the x axis, so that runs may share an epoch.
  function lines() {
    const size = data.at.length;
    const amount = new Array(data.runs.length).fill(0);
    for (const run of data.run) amount[run]++;
    const named = [...data.runs.keys()].filter((run) => run !== data.no_run);
    // Of runs that were thinned a line would join what doesn't follow each other.
    const drawn = (data.whole ?? named).slice(-LINES).filter((run) => amount[run] > 0);
    const place = new Map(drawn.map((run, at) => [run, at + 2]));
    const series = [data.at, ...[...Array(drawn.length + 1)].map(() => new Array(size).fill(null))];
    for (let i = 0; i < size; i++) series[place.get(data.run[i]) ?? 1][i] = data.value[i];
    return { series, drawn, others: named.length - drawn.length };
  }

  function draw() {
    chart?.destroy();
    chart = null;
    chosen = -1;
    tip.hidden = true;
    figure.hidden = !data || data.total === 0;
    if (figure.hidden) return;
    const { series, drawn, others } = lines();
    const colors = palette();
    const style = (run) => colors[drawn.indexOf(run) % colors.length];
    const axis = {
      stroke: color("--soft"),
      font: "12px " + getComputedStyle(document.body).fontFamily,
      grid: { stroke: color("--line"), width: 1 },
      ticks: { stroke: color("--line"), width: 1, size: 4 },
    };
    const dots = { show: true, size: 5, width: 0, fill: color("--dot") };
    chart = new uPlot(
      {
        width: plot.clientWidth,
        height: Math.max(200, Math.min(300, Math.round(plot.clientWidth * 0.42))),
        padding: [14, 14, 0, 0],
        legend: { show: false },
        cursor: { points: { show: false }, drag: { x: false, y: false }, y: false },
        scales: {
          x: {
            time: data.x === "time",
            range: (_, low, high) => {
              const room = (high - low || 1) * 0.015;
              return [low - room, high + room];
            },
          },
        },
        axes: [
          { ...axis, size: 32, ...(data.x === "time" ? {} : { values: (_, ticks) => ticks.map((t) => (t === Math.round(t) ? t.toLocaleString("en") : "")) }) },
          { ...axis, size: 58, values: (_, ticks) => ticks.map(short) },
        ],
        series: [
          {},
          { stroke: color("--dot"), paths: () => null, points: dots },
          ...drawn.map((run) => ({
            stroke: style(run),
            width: 1.6,
            spanGaps: true,
            points: { show: series[drawn.indexOf(run) + 2].filter((v) => v !== null).length < 60, size: 5, fill: style(run) },
          })),
        ],
        hooks: {
          draw: [mark],
          setCursor: [(u) => { if (u.cursor.left >= 0) point(nearest(u.cursor.left, u.cursor.top)); }],
        },
      },
      series,
      plot,
    );
    chart.over.append(tip);
    chart.over.addEventListener("mouseleave", () => point(-1));
    chart.over.addEventListener("click", () => open());
    title(drawn, others, style);
  }

  function title(drawn, others, style) {
    figure.querySelector("[data-title]").textContent = `${data.metric} by ${data.x}`;
    const notes = [];
    const points = data.total.toLocaleString("en");
    if (data.shown + data.without_x < data.total)
      notes.push(`${data.shown.toLocaleString("en")} of ${points} points: thinned evenly; the newest runs and the best are whole`);
    else notes.push(`${data.shown.toLocaleString("en")} ${data.shown === 1 ? "point" : "points"}`);
    if (data.without_x) notes.push(`${data.without_x.toLocaleString("en")} without ${data.x} left out`);
    if (data.datasets.length > 1) notes.push(`${data.datasets.length} datasets, which don't compare: choose one`);
    figure.querySelector("[data-note]").textContent = notes.join(" · ");
    const legend = figure.querySelector("[data-legend]");
    legend.replaceChildren();
    for (const run of [...drawn].reverse().slice(0, 10)) {
      const link = document.createElement("a");
      const query = new URLSearchParams(source.split("?")[1]);
      query.set("run", data.runs[run]);
      link.href = "/checkpoints?" + query;
      const swatch = document.createElement("i");
      swatch.style.background = style(run);
      link.append(swatch, data.runs[run]);
      legend.append(link);
    }
    const rest = others + Math.max(0, drawn.length - 10);
    if (rest || data.no_run !== null) {
      const text = document.createElement("span");
      text.className = "muted";
      const words = [];
      if (rest) words.push(`and ${rest.toLocaleString("en")} more ${rest === 1 ? "run" : "runs"}${others ? ", older ones as dots" : ""}`);
      if (data.no_run !== null) words.push("dots: saved in no run");
      text.textContent = words.join("; ");
      legend.append(text);
    }
  }

  function mark(u) {
    const context = u.ctx;
    const ratio = devicePixelRatio;
    const labels = [];
    context.save();
    for (const best of data.best) {
      const x = u.valToPos(best.at, "x", true), y = u.valToPos(best.value, "y", true);
      context.beginPath();
      context.arc(x, y, 6 * ratio, 0, 2 * Math.PI);
      context.fillStyle = color("--good");
      context.fill();
      context.lineWidth = 2 * ratio;
      context.strokeStyle = color("--panel");
      context.stroke();
    }
    for (const best of data.best) {
      const x = u.valToPos(best.at, "x", true), y = u.valToPos(best.value, "y", true);
      context.font = `600 ${12 * ratio}px ${getComputedStyle(document.body).fontFamily}`;
      context.fillStyle = color("--good");
      context.strokeStyle = color("--panel");
      const text = `best v${best.version}`;
      // Beyond the extreme, where no line is; at the edge of the plot, beside it.
      const half = context.measureText(text).width / 2;
      const left = Math.max(u.bbox.left + half, Math.min(x, u.bbox.left + u.bbox.width - half));
      const away = (data.mode === "min" ? 16 : -15) * ratio;
      let line = y + away;
      if (line < u.bbox.top || line > u.bbox.top + u.bbox.height) line = y - away;
      context.textAlign = "center";
      context.textBaseline = "middle";
      while (labels.some(([lx, ly]) => Math.abs(lx - left) < 2.2 * half && Math.abs(ly - line) < 14 * ratio)) line += away;
      labels.push([left, line]);
      context.lineJoin = "round";
      context.lineWidth = 5 * ratio;
      context.strokeText(text, left, line);
      context.fillText(text, left, line);
    }
    context.restore();
  }

  // --- one point ---

  const size = () => data.at.length + data.best.length;
  const of = (i) => {
    if (i < data.at.length)
      return { at: data.at[i], value: data.value[i], version: data.version[i], run: data.runs[data.run[i]], dataset: data.datasets[data.dataset[i]] };
    return { ...data.best[i - data.at.length], best: true };
  };

  function nearest(left, top) {
    let found = -1, least = 40 * 40;
    for (let i = 0; i < size(); i++) {
      const one = of(i);
      const dx = chart.valToPos(one.at, "x") - left, dy = chart.valToPos(one.value, "y") - top;
      const far = dx * dx + dy * dy - (one.best ? 60 : 0);
      if (far < least) [found, least] = [i, far];
    }
    return found;
  }

  function point(i) {
    chosen = i;
    tip.hidden = i < 0;
    chart.over.style.cursor = i < 0 ? "" : "pointer";
    if (i < 0) return;
    const one = of(i);
    const is = data.best.some((best) => best.version === one.version);
    const name = document.createElement("b");
    name.textContent = ref(one.version);
    const at = data.x === "time" ? new Date(one.at * 1000).toISOString().slice(0, 16).replace("T", " ") : one.at.toLocaleString("en");
    const rest = document.createElement("span");
    rest.textContent = [`${data.metric} ${short(one.value)}`, `${data.x} ${at}`, one.run, data.datasets.length > 1 ? one.dataset : null, is ? "best" : null].filter(Boolean).join(" · ");
    tip.replaceChildren(name, rest);
    said.textContent = `${name.textContent}, ${rest.textContent}`;
    const left = chart.valToPos(one.at, "x"), top = chart.valToPos(one.value, "y");
    const wide = chart.over.clientWidth;
    tip.style.left = `${Math.max(0, Math.min(left + 12, wide - tip.offsetWidth))}px`;
    tip.style.top = `${top > 64 ? top - tip.offsetHeight - 10 : top + 14}px`;
  }

  function open() {
    if (chosen >= 0) location.href = "/checkpoint?" + new URLSearchParams({ ref: ref(of(chosen).version) });
  }

  plot.addEventListener("keydown", (event) => {
    if (!chart) return;
    const last = data.at.length - 1;
    const to = { ArrowRight: chosen + 1, ArrowLeft: chosen < 0 ? last : chosen - 1, Home: 0, End: last, Escape: -1 }[event.key];
    if (to !== undefined) point(Math.min(last, Math.max(event.key === "Escape" ? -1 : 0, to)));
    else if (event.key === "Enter") open();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  plot.addEventListener("blur", () => chart && point(-1));

  new ResizeObserver(() => {
    if (chart && Math.abs(chart.width - plot.clientWidth) > 1)
      chart.setSize({ width: plot.clientWidth, height: chart.height });
  }).observe(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => data && draw());
  document.addEventListener("htmx:afterSettle", load);
  load();
})();
