"use strict";
// How each figure is drawn. `group` is an item of the data; accuracies come in [0, 1] and are shown in %.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#8C6D31"];
const MARKERS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star"];
const MOST_BARS = 30;
const ACCURACY = `${document.getElementById("figures").dataset.measure} (%)`; // of texts, a score
const CONFIG = { displayModeBar: false, responsive: true };

// Plotly reads names as markup of its own: what came from data must not be any.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const percent = (value) => (value === null || value === undefined ? null : 100 * value);
const cut = (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
const folded = (text, width) => {
  const lines = [];
  for (let rest = String(text); rest.length; ) {
    const space = rest.length > width ? rest.lastIndexOf(" ", width) : rest.length;
    const end = space > 0 ? space : width;
    lines.push(rest.slice(0, end));
    rest = rest.slice(end).trimStart();
  }
  return lines.map(plain).join("<br>");
};

function layout(x, y, more = {}) {
  const axis = { gridcolor: "#e8ebef", zeroline: false, linecolor: "#9aa4b1", automargin: true };
  return {
    margin: { l: 56, r: 14, t: 8, b: 46 }, height: 340, paper_bgcolor: "#fff", plot_bgcolor: "#fff",
    font: { family: "system-ui, sans-serif", size: 12, color: "#1c2430" }, hovermode: "closest",
    hoverlabel: { bgcolor: "#fff", bordercolor: "#9aa4b1", align: "left", font: { size: 12, color: "#1c2430" }, namelength: -1 },
    legend: { orientation: "h", y: -0.16, yanchor: "top", x: 0, font: { size: 11 } },
    ...more,
    xaxis: { title: { text: x, standoff: 8 }, ...axis, ...(more.xaxis || {}) },
    yaxis: { title: { text: y, standoff: 8 }, ...axis, ...(more.yaxis || {}) },
  };
}

function about(group, run) {
  const lines = [`<b>${folded(group.label, 70)}</b>`];
  const runs = run ? [run] : group.runs;
  lines.push(...runs.slice(0, 3).map((one) => `seed ${plain(one.seed)}: ${folded(one.folder, 80)}`));
  if (runs.length > 3) lines.push(`and ${runs.length - 3} more`);
  if (runs[0].command) lines.push(`<span style="color:#5b6675">${folded(runs[0].command, 80)}</span>`);
  return lines.join("<br>");
}

const HOVER = "%{customdata}<br>%{text}<extra></extra>";

// The groups of a benchmark that no other one beats: accuracies on different data do not compare.
function fronts(known, key) {
  return [...new Set(known.map((group) => group.benchmark))].map((benchmark, number, all) => {
    const rivals = known.filter((group) => group.benchmark === benchmark);
    const best = [];
    for (const group of rivals.sort((a, b) => a.means[key][0] - b.means[key][0] || b.means.acc[0] - a.means.acc[0]))
      if (!best.length || group.means.acc[0] > best[best.length - 1].means.acc[0]) best.push(group);
    const name = all.length > 1 ? `Pareto front, ${plain(cut(benchmark, 24))}` : "Pareto front";
    return { name, x: best.map((g) => g.means[key][0]), y: best.map((g) => percent(g.means.acc[0])), mode: "lines",
      line: { shape: "hv", color: COLOURS[(number * 6) % COLOURS.length], width: 1.5, dash: number ? "dot" : "solid" }, hoverinfo: "skip" };
  });
}

// Every group that the filter leaves, each seed faintly behind it, and the front that no group beats.
function scatter(groups, chosen, key, at, title) {
  const known = groups.filter((group) => group.means[key][0] !== null && group.means.acc[0] !== null);
  if (!known.length) return null;
  const xs = known.map((group) => group.means[key][0]);
  const wide = Math.min(...xs) > 0 && Math.max(...xs) / Math.min(...xs) > 20;
  const colour = (group) => chosen.has(group.id) ? COLOURS[chosen.get(group.id) % COLOURS.length] : "#8f99a6";
  const size = (group) => (chosen.has(group.id) ? 11 : 8);
  const seeds = known.flatMap((group) => (group.runs.length > 1 ? group.runs.map((run) => [group, run]) : []));
  const traces = [
    ...fronts(known, key),
    { name: "seeds", x: seeds.map(([, run]) => run.values[at]), y: seeds.map(([, run]) => percent(run.values[0])), mode: "markers",
      marker: { size: 5, color: seeds.map(([group]) => colour(group)), opacity: 0.4 },
      customdata: seeds.map(([group, run]) => about(group, run)),
      text: seeds.map(([, run]) => `${percent(run.values[0]).toFixed(2)} %, ${run.values[at].toLocaleString("en")}`), hovertemplate: HOVER },
    { name: "groups", x: xs, y: known.map((g) => percent(g.means.acc[0])), mode: "markers",
      error_y: { type: "data", array: known.map((g) => percent(g.means.acc[1])), visible: seeds.length > 0, thickness: 1, width: 3, color: "#8f99a6" },
      marker: { size: known.map(size), color: known.map(colour), line: { color: "#fff", width: 1 } },
      customdata: known.map((group) => about(group)),
      text: known.map((g) => `${percent(g.means.acc[0]).toFixed(2)} %, ${Math.round(g.means[key][0]).toLocaleString("en")}, n = ${g.runs.length}`), hovertemplate: HOVER },
  ];
  return [traces, layout(title, ACCURACY, { xaxis: wide ? { type: "log" } : { rangemode: "normal" }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 1, xanchor: "right" } })];
}

function line(group, number, x, y, texts, more = {}) {
  const colour = COLOURS[number % COLOURS.length];
  return {
    name: plain(cut(group.label, 60)), x, y, text: texts || y.map((value) => (value === null ? "" : String(+value.toFixed(2)))), mode: "lines+markers",
    line: { color: colour, width: 2 }, marker: { color: colour, symbol: MARKERS[number % MARKERS.length], size: 7 },
    customdata: x.map(() => about(group)), hovertemplate: HOVER, connectgaps: false, ...more,
  };
}

const tall = (traces) => 290 + 19 * traces.length; // room for the legend
const some = (traces) => traces.some((trace) => trace.y.some((value) => value !== null && value !== undefined));
const ticks = (longest) => (longest > 25 ? {} : { dtick: 1, tick0: 1 });

function curves(chosen, key, y) {
  const drawn = chosen.filter((group) => group.tasks.length);
  const traces = drawn.map((group, number) => {
    const { mean, std } = group[key];
    const x = mean.map((_, index) => index + 1);
    const texts = mean.map((value, index) => value === null ? "" : `after task ${index + 1}: ${percent(value).toFixed(2)}` + (std[index] === null ? "" : ` ± ${percent(std[index]).toFixed(2)}`));
    return line(group, number, x, mean.map(percent), texts, { error_y: { type: "data", array: std.map(percent), visible: std.some((v) => v !== null), thickness: 1, width: 2 } });
  });
  return some(traces) ? [traces, layout("tasks learned", y, { height: tall(traces), xaxis: ticks(Math.max(...drawn.map((g) => g.tasks.length))) })] : null;
}

function perTask(chosen, key, y, scale = 1) {
  const drawn = chosen.filter((group) => group.tasks.length && group.parameters.task.length);
  const traces = drawn.map((group, number) => {
    const values = group.parameters[key].map((value) => (value === null ? null : scale * value));
    const best = key === "epochs" ? group.parameters.best_epoch : [];
    const texts = values.map((value, index) => value === null ? "" : `task ${group.parameters.task[index]}: ${+value.toFixed(2)}` + (best[index] ? `, best epoch ${+best[index].toFixed(2)}` : ""));
    return line(group, number, group.parameters.task, values, texts);
  });
  return some(traces) ? [traces, layout("task", y, { height: tall(traces), xaxis: ticks(Math.max(...drawn.map((g) => g.tasks.length))), yaxis: { rangemode: "tozero" } })] : null;
}

function ranks(chosen) {
  const drawn = chosen.filter((group) => group.tasks.length && group.ranks.layers.length);
  const traces = drawn.map((group, number) => {
    const values = group.ranks.values.map((row) => row[row.length - 1]);
    const texts = group.ranks.layers.map((name, index) => `${plain(name)}: rank ${group.ranks.values[index].map((v) => v ?? "–").join(", ")} over the tasks`);
    return line(group, number, group.ranks.layers.map(plain), values, texts);
  });
  const names = drawn.length ? drawn[0].ranks.layers.map((name) => plain(name.length > 26 ? "…" + name.slice(-25) : name)) : [];
  const axis = { tickangle: -45, tickfont: { size: 9 }, type: "category", tickvals: drawn.length ? drawn[0].ranks.layers.map(plain) : [], ticktext: names };
  return some(traces) ? [traces, layout("", "rank", { height: tall(traces) + 100, xaxis: axis, yaxis: { rangemode: "tozero" }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 } } })] : null;
}

function classes(chosen) {
  const drawn = chosen.filter((group) => group.tasks.length && group.classes.length);
  const traces = drawn.map((group, number) => {
    const texts = group.classes.map((one) => `${plain(one.name)} (${plain(group.tasks[one.task - 1])}): ${one.end === null ? "–" : percent(one.end).toFixed(1)} %, right after its task ${one.learned === null ? "–" : percent(one.learned).toFixed(1)} %`);
    return line(group, number, group.classes.map((one, index) => index), group.classes.map((one) => percent(one.end)), texts, { mode: "markers" });
  });
  if (!some(traces)) return null;
  const names = drawn[0].classes.map((one) => plain(cut(one.name, 18)));
  const axis = { tickvals: names.map((_, index) => index), ticktext: names, tickangle: -45, tickfont: { size: names.length > 40 ? 8 : 10 } };
  return [traces, layout("", ACCURACY, { height: tall(traces) + 40, xaxis: names.length > 120 ? { title: { text: "class" } } : axis, yaxis: { range: [-4, 104] }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 } } })];
}

function bars(groups, chosen, key, title, scale) {
  const drawn = groups.filter((group) => group.means[key][0] !== null).slice(0, MOST_BARS).reverse();
  if (!drawn.length) return null;
  const trace = {
    type: "bar", orientation: "h", y: drawn.map((group) => String(group.id)), x: drawn.map((group) => scale * group.means[key][0]),
    error_x: { type: "data", array: drawn.map((group) => scale * (group.means[key][1] || 0)), visible: drawn.some((group) => group.means[key][1] !== null), thickness: 1, width: 2, color: "#5b6675" },
    marker: { color: drawn.map((group) => (chosen.has(group.id) ? COLOURS[chosen.get(group.id) % COLOURS.length] : "#b9c4d0")) },
    customdata: drawn.map((group) => about(group)), text: drawn.map((group) => `${(scale * group.means[key][0]).toPrecision(4)} ± ${group.means[key][1] === null ? "–" : (scale * group.means[key][1]).toPrecision(3)}`),
    textposition: "none", hovertemplate: HOVER, name: "",
  };
  const axis = { type: "category", tickvals: drawn.map((group) => String(group.id)), ticktext: drawn.map((group) => plain(cut(group.label, 38))), tickfont: { size: 10 }, title: { text: "" } };
  return [[trace], layout(title, "", { height: Math.max(200, 80 + 19 * drawn.length), yaxis: axis, xaxis: { rangemode: "tozero" } })];
}

// Row 0 is before any training: what the pretrained network knew.
function probed(chosen) {
  const drawn = chosen.filter((group) => group.tasks.length && group.probes.domains.length);
  const traces = drawn.map((group, number) => {
    const { domains, values, mean, std } = group.probes;
    const texts = mean.map((value, at) => `after task ${at}: ${value === null ? "–" : percent(value).toFixed(2)} %<br>` + domains.map((name, index) => `${plain(cut(name, 24))} ${values[index][at] === null ? "–" : percent(values[index][at]).toFixed(1)}`).join(", "));
    return line(group, number, mean.map((_, at) => at), mean.map(percent), texts, { error_y: { type: "data", array: std.map(percent), visible: std.some((v) => v !== null), thickness: 1, width: 2 } });
  });
  return some(traces) ? [traces, layout("tasks learned (0: before any)", ACCURACY, { height: tall(traces), xaxis: ticks(Math.max(...drawn.map((g) => g.tasks.length))) })] : null;
}

function truncated(chosen, key, y, scale) {
  const drawn = chosen.filter((group) => group.tasks.length && group.rank_curve.some((one) => one[key] !== null));
  const value = (one) => (one[key] === null ? null : scale * one[key]);
  const traces = drawn.map((group, number) => line(group, number, group.rank_curve.map((one) => one.rank), group.rank_curve.map(value)));
  return some(traces) ? [traces, layout("rank at evaluation", y, { height: tall(traces) })] : null;
}

function losses(chosen) {
  const drawn = chosen.filter((group) => group.tasks.length && group.losses.values.length);
  const traces = drawn.map((group, number) => {
    const { mean, std, values } = group.losses;
    const shown = (value) => (value === null ? "–" : value.toFixed(4));
    const texts = mean.map((value, at) => `after task ${at + 1}: ${shown(value)}${std[at] === null ? "" : ` ± ${shown(std[at])}`}<br>` + group.tasks.map((name, task) => `${plain(cut(name, 24))} ${shown(values[task][at + 1])}`).join(", "));
    return line(group, number, mean.map((_, at) => at + 1), mean, texts, { error_y: { type: "data", array: std, visible: std.some((v) => v !== null), thickness: 1, width: 2 } });
  });
  return some(traces) ? [traces, layout("tasks learned", "loss (nats a token)", { height: tall(traces), xaxis: ticks(Math.max(...drawn.map((g) => g.tasks.length))) })] : null;
}

function heat(group) {
  const rows = [["0", group.initial], ...group.matrix.map((row, index) => [String(index + 1), row])].filter(([, row]) => row.some((value) => value !== null));
  if (!rows.length) return null;
  const z = rows.map(([, row]) => row.map(percent));
  const few = group.tasks.length <= 12;
  const trace = {
    type: "heatmap", z, x: group.tasks.map((_, index) => index), y: rows.map(([name]) => name), colorscale: "Viridis", zmin: 0, zmax: 100, xgap: 1, ygap: 1,
    texttemplate: few ? "%{z:.0f}" : "", colorbar: { title: { text: "%", side: "top" }, thickness: 10, outlinewidth: 0 },
    customdata: z.map((row) => row.map(() => about(group))), text: z.map((row, at) => row.map((value, task) => `after task ${rows[at][0]}, on ${plain(group.tasks[task])}: ${value === null ? "–" : value.toFixed(2) + " %"}`)), hovertemplate: HOVER, hoverongaps: false,
  };
  const axis = { tickvals: group.tasks.map((_, index) => index), ticktext: group.tasks.map((name) => plain(cut(name, 16))), showgrid: false };
  return [[trace], layout("evaluated on", "after task", { height: 150 + Math.min(330, 34 * rows.length), xaxis: axis, yaxis: { autorange: "reversed", type: "category", showgrid: false } })];
}
