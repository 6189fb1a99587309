"use strict";
(() => {
  const data = JSON.parse(document.getElementById("study-data").textContent);
  const byId = (id) => document.getElementById(id);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  const armOf = (name) => data.arms.find((arm) => arm.name === name);
  const colourOf = (name) => armOf(name)[dark.matches && !printing ? "dark" : "light"];
  const textOf = (name) => armOf(name)[dark.matches && !printing ? "dark" : "text"];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // plotly reads its texts as markup: whatever comes from a study must not be
  const escape = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const known = (values) => values.filter((value) => value !== null);
  const digits = (value, places) => (value === null || !isFinite(value) ? "–" : value.toFixed(places));

  function large(value) {
    if (value === null || !isFinite(value)) return "–";
    for (const [size, unit] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"]]) {
      if (Math.abs(value) >= size) return `${(value / size).toPrecision(3)} ${unit}`;
    }
    return Math.round(value).toLocaleString("en-US");
  }
  function span(seconds) {
    if (seconds === null || !isFinite(seconds)) return "–";
    for (const [limit, size, unit] of [[90, 1, "s"], [5400, 60, "min"], [172800, 3600, "h"]]) {
      if (seconds < limit) return `${(seconds / size).toFixed(seconds >= 10 * size ? 0 : 1)} ${unit}`;
    }
    return `${(seconds / 86400).toFixed(1)} days`;
  }
  function element(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    if (text !== null) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }
  const checked = (name) => [...document.querySelectorAll(`input[name="${name}"]:checked`)].map((input) => input.value);

  function layout(x, y) {
    const axis = { gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, tickfont: { size: 12 }, ticks: "", automargin: true };
    return {
      font: { family: "system-ui, sans-serif", color: css("--muted"), size: 13 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 46, r: 22, t: 30, b: 44 }, modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--muted"), activecolor: css("--ink") }, showlegend: false, hovermode: "closest", hoverdistance: 40,
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink"), size: 13 }, align: "left" },
      xaxis: { ...axis, ...x }, yaxis: { ...axis, ...y },
    };
  }
  const config = { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]] };

  // ---- learning curves
  const axisNames = { steps: "steps", images: "images seen", pixels: "pixels seen", seconds: "training time" };
  function curveSettings() {
    const fraction = checked("fraction")[0];
    const axis = byId("curve-axis").value;
    return {
      fraction: fraction === undefined ? data.fractions[0].value : Number(fraction),
      metric: byId("curve-metric").value, axis: axis.replace("+", ""), whole: axis.endsWith("+"),
      arms: checked("arm"), schedules: checked("schedule"), seeds: byId("curve-seeds") ? byId("curve-seeds").checked : false,
    };
  }
  function chosenStretches(s) {
    const all = s.metric === "loss" ? data.losses : data.stretches;
    const mine = all.filter((t) => t.fraction === s.fraction && s.arms.includes(t.arm) && t.y[s.metric]);
    // a trunk is shown as far as some chosen schedule still needs it
    const needed = (trunk) => mine.some((t) => t.schedule !== null && s.schedules.includes(t.schedule) && t.arm === trunk.arm && t.start > trunk.start);
    const hasTails = (trunk) => mine.some((t) => t.schedule !== null && t.arm === trunk.arm && t.start > trunk.start);
    return mine.filter((t) => (t.schedule === null ? needed(t) || !hasTails(t) : s.schedules.includes(t.schedule)));
  }
  function xOf(stretch, s) {
    const paid = data.pretraining[stretch.arm];
    const before = s.whole && paid ? paid[s.axis] : 0;
    return stretch.x[s.axis].map((value) => (value === null || before === null ? null : value + before));
  }
  const unpaid = (s) => (s.whole ? s.arms.filter((arm) => data.pretraining[arm] && data.pretraining[arm][s.axis] === null) : []);
  function timeUnit(traces) {
    const most = Math.max(...traces.flatMap((trace) => known(trace.x)), 0);
    return most > 7200 ? [3600, "hours"] : most > 180 ? [60, "minutes"] : [1, "seconds"];
  }
  const means = (seeds) => seeds[0].map((_, i) => { const v = known(seeds.map((seed) => seed[i])); return v.length === seeds.length ? mean(v) : null; });
  const metricName = (id) => (id === "loss" ? "training loss" : data.metrics.find((m) => m.id === id).name);
  const places = (s) => (s.metric === "loss" ? 3 : 1);

  function curveTraces(s) {
    const stretches = chosenStretches(s);
    const traces = [];
    const ends = stretches.filter((t) => t.schedule !== null);
    const higher = (t, value) => ends.every((o) => o.arm === t.arm || o.schedule !== t.schedule || means(o.y[s.metric]).at(-1) <= value);
    for (const t of s.seeds ? stretches : []) {
      for (const seed of t.seeds.length > 1 ? t.y[s.metric] : []) {
        traces.push({ x: xOf(t, s), y: seed, mode: "lines", line: { color: colourOf(t.arm), width: 1 }, opacity: 0.35, hoverinfo: "skip" });
      }
    }
    for (const t of stretches) {
      const y = means(t.y[s.metric]);
      const last = y.length - 1;
      const isEnd = (i) => t.schedule !== null && i === last;
      const label = `${escape(t.arm)}, ${t.schedule === null ? "trunk" : escape(t.schedule)}`;
      traces.push({
        x: xOf(t, s), y, mode: "lines+markers+text", line: { color: colourOf(t.arm), width: t.schedule === null ? 2.4 : 1.8 },
        marker: { color: colourOf(t.arm), symbol: armOf(t.arm).symbol, size: y.map((_, i) => (isEnd(i) ? 8 : 4)) },
        text: y.map((_, i) => (isEnd(i) ? escape(t.schedule) : "")), textposition: higher(t, y[last]) ? "top center" : "bottom center",
        textfont: { color: textOf(t.arm), size: 12 }, cliponaxis: false,
        hovertext: y.map((value, i) => {
          const seeds = t.seeds.length > 1 ? `<br>seeds ${t.y[s.metric].map((seed) => digits(seed[i], places(s))).join(", ")}` : "";
          const x = s.axis === "steps" ? "" : `<br>${s.axis === "seconds" ? span(xOf(t, s)[i]) : `${large(xOf(t, s)[i])} ${s.axis}`}`;
          return `<b>${label}</b><br>${metricName(s.metric)} <b>${digits(value, places(s))}</b><br>step ${large(t.x.steps[i])}${x}${seeds}`;
        }),
        hoverinfo: "text",
      });
    }
    return traces;
  }
  function drawCurves() {
    if (!byId("curve-chart")) return;
    const s = curveSettings();
    const traces = curveTraces(s);
    let title = axisNames[s.axis] + (s.whole ? ", pre-training included" : "");
    if (s.axis === "seconds") {
      const [size, unit] = timeUnit(traces);
      for (const trace of traces) trace.x = trace.x.map((value) => (value === null ? null : value / size));
      title += `, ${unit}`;
    }
    if (unpaid(s).length) title += ` (not known: ${unpaid(s).map(escape).join(", ")})`;
    const x = { title: { text: title, standoff: 8, font: { size: 13 } }, rangemode: "tozero", tickformat: s.axis === "seconds" ? "" : "~s" };
    const y = { title: { text: metricName(s.metric) + (s.metric === "loss" ? "" : ", points"), standoff: 6, font: { size: 13 } }, rangemode: "tozero" };
    Plotly.react("curve-chart", traces, layout(x, y), config);
    if (byId("curve-table").open) fillCurveTable(s);
  }
  function fillCurveTable(s) {
    const table = element("table", null);
    const head = table.createTHead().insertRow();
    for (const name of ["arm", "part", "step", axisNames[s.axis], metricName(s.metric)]) head.append(element("th", name, { scope: "col" }));
    const body = table.createTBody();
    for (const t of chosenStretches(s)) {
      const x = xOf(t, s);
      means(t.y[s.metric]).forEach((value, i) => {
        const row = body.insertRow();
        row.append(element("th", t.arm, { scope: "row" }), element("td", t.schedule === null ? "trunk" : t.schedule));
        row.append(element("td", large(t.x.steps[i])), element("td", s.axis === "seconds" ? span(x[i]) : large(x[i])), element("td", digits(value, places(s))));
      });
    }
    const box = byId("curve-table").querySelector(".scroll");
    box.classList.add("tall");
    box.replaceChildren(table);
  }

  // ---- fractions
  function drawFractions() {
    if (!byId("fraction-chart")) return;
    const traces = data.arms.filter((arm) => data.few.some((p) => p.arm === arm.name)).map((arm) => {
      const points = data.few.filter((p) => p.arm === arm.name).sort((a, b) => a.images - b.images);
      const y = points.map((p) => mean(p.seeds));
      // The name stands at the first point, on the side where the other arms are not.
      const above = data.few.every((p) => p.images !== points[0].images || mean(p.seeds) <= y[0]);
      return {
        x: points.map((p) => p.images), y, mode: "lines+markers+text", line: { color: colourOf(arm.name), width: 2.2 },
        marker: { color: colourOf(arm.name), symbol: arm.symbol, size: 9 }, cliponaxis: false,
        text: points.map((_, i) => (i ? "" : escape(arm.name))), textposition: above ? "top center" : "bottom center", textfont: { color: textOf(arm.name), size: 12 },
        error_y: { type: "data", symmetric: false, array: points.map((p, i) => Math.max(...p.seeds) - y[i]), arrayminus: points.map((p, i) => y[i] - Math.min(...p.seeds)), thickness: 1.2, width: 5, visible: points.some((p) => p.seeds.length > 1) },
        hovertext: points.map((p, i) => `<b>${escape(arm.name)}</b>, ${large(p.images)} images, ${escape(p.schedule)}<br>${data.metric} <b>${digits(y[i], 1)}</b>`), hoverinfo: "text",
      };
    });
    const counts = [...new Set(data.few.map((p) => p.images))].sort((a, b) => a - b);
    const x = { title: { text: "training images (log scale)", standoff: 8, font: { size: 13 } }, type: "log", tickvals: counts, ticktext: counts.map(large) };
    const y = { title: { text: `${data.metric}, points`, standoff: 6, font: { size: 13 } }, rangemode: "tozero" };
    Plotly.react("fraction-chart", traces, layout(x, y), config);
  }

  // ---- mistakes
  function drawMistakes() {
    if (!byId("mistake-chart")) return;
    const kind = checked("mistake-kind")[0] || Object.keys(data.mistakes)[0];
    const value = checked("mistake-value")[0];
    const rows = data.mistakes[kind];
    const traces = data.arms.map((arm) => ({
      type: "bar", name: escape(arm.name), x: rows.map((row) => row.type), y: rows.map((row) => row[value][arm.name]),
      marker: { color: colourOf(arm.name), pattern: { shape: data.arms.indexOf(arm) % 2 ? "/" : "", size: 5, solidity: 0.25 } },
      hovertext: rows.map((row) => `<b>${escape(arm.name)}</b>, ${row.type}: ${row.meaning}<br>AP50 lost <b>${digits(row.gains[arm.name], 1)}</b> points<br>${large(row.counts[arm.name])} of them`),
      hoverinfo: "text",
    }));
    const y = { title: { text: value === "gains" ? `${kind} AP50 lost, points` : "how many", standoff: 6, font: { size: 13 } }, rangemode: "tozero" };
    Plotly.react("mistake-chart", traces, { ...layout({}, y), barmode: "group", bargap: 0.25, showlegend: true, legend: { orientation: "h", y: 1.15, x: 0 } }, config);
  }

  // ---- cost
  function costFraction() {
    const value = checked("cost-fraction")[0];
    return value === undefined ? data.fractions[0].value : Number(value);
  }
  function fillCostSchedules() {
    for (const select of document.querySelectorAll(".cost-schedule")) {
      const fraction = costFraction();
      const mine = data.costs.filter((c) => c.arm === select.dataset.arm && c.fraction === fraction);
      const settled = data.settled[select.dataset.arm][data.fractions.findIndex((f) => f.value === fraction)];
      select.replaceChildren(...mine.map((c) => element("option", c.schedule, { value: c.schedule })));
      select.append(element("option", "not shown", { value: "" }));
      select.value = settled && mine.some((c) => c.schedule === settled) ? settled : mine.length ? mine.at(-1).schedule : "";
    }
  }
  function drawCosts() {
    const box = byId("cost-bars");
    if (!box) return;
    const way = checked("way")[0];
    const chosen = [...document.querySelectorAll(".cost-schedule")]
      .map((select) => data.costs.find((c) => c.arm === select.dataset.arm && c.schedule === select.value && c.fraction === costFraction()))
      .filter(Boolean)
      .map((c) => ({ ...c, training: c[way], before: way === "alone" ? c.pretraining : c.pretraining_spent }));
    const counted = chosen.some((c) => c.training.flops) ? ["images", "instances", "pixels", "flops", "seconds"] : ["images", "instances", "pixels", "seconds"];
    const titles = { seconds: "time, evaluation included", flops: "operations of training" };
    const blocks = counted.map((effort) => {
      const block = element("div", null);
      block.append(element("h3", titles[effort] || `${effort} seen`));
      const show = effort === "seconds" ? span : large;
      const most = Math.max(...chosen.map((c) => c.training[effort] + c.before[effort]), 1e-9);
      for (const c of chosen) {
        const row = element("div", null, { class: "row" });
        row.style.setProperty("--own", `var(--arm${data.arms.indexOf(armOf(c.arm))})`);
        row.append(element("span", `${c.arm} ${c.schedule}`), element("span", show(c.training[effort] + c.before[effort]) + (c.before[effort] === null ? " + unknown" : ""), { class: "amount" }));
        const track = element("div", null, { class: "track" });
        for (const [name, amount] of [["before", c.before[effort]], ["", c.training[effort]]]) {
          const part = element("i", null, { class: name });
          part.style.width = `${(100 * amount) / most}%`;
          if (amount > 0) track.append(part);
        }
        row.append(track);
        if (c.before[effort] === null) row.append(element("span", "pre-training not known", { class: "key" }));
        if (c.before[effort] > 0) row.append(element("span", `${show(c.before[effort])} of it pre-training (hatched)`, { class: "key" }));
        block.append(row);
      }
      return block;
    });
    box.replaceChildren(...blocks);
  }

  // ---- wiring
  let ready = false;  // plotly is there
  function drawCharts() { if (ready) { drawCurves(); drawFractions(); drawMistakes(); } }
  function drawAll() { drawCharts(); drawCosts(); }
  // plotly.js is compressed in the page, of which it would be nine tenths.
  async function unpack(packed) {
    const bytes = Uint8Array.from(atob(packed.textContent), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    document.head.append(element("script", await new Response(stream).text()));
    ready = true;
    drawCharts();
  }
  if (byId("mistake-controls")) byId("mistake-controls").addEventListener("input", drawCharts);
  if (byId("curve-controls")) {
    byId("curve-controls").addEventListener("input", drawCharts);
    byId("curve-table").addEventListener("toggle", () => fillCurveTable(curveSettings()));
  }
  if (byId("cost-controls")) {
    byId("cost-controls").addEventListener("input", (event) => {
      if (event.target.name === "cost-fraction") fillCostSchedules();
      drawCosts();
    });
    fillCostSchedules();
  }
  for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
  dark.addEventListener("change", drawAll);
  const opened = [];
  window.addEventListener("beforeprint", () => {
    printing = true;
    for (const details of document.querySelectorAll("details:not([open]):not(#curve-table)")) { details.open = true; opened.push(details); }
    drawAll();
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    for (const details of opened.splice(0)) details.open = false;
    drawAll();
  });
  drawAll();
  if (byId("plotly")) unpack(byId("plotly")).catch(() => {
    for (const chart of document.querySelectorAll(".chart")) chart.replaceWith(element("p", "This browser cannot unpack the chart; figures/ has drawn ones.", { class: "empty" }));
  });
})();
