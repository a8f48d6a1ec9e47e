"use strict";
// The table sorts, filters and chooses; the figures are drawn again of what it shows.
const BODY = document.querySelector("#groups tbody");
const ROWS = [...BODY.rows];
const HEADS = [...document.querySelectorAll("#groups th.sorts")];
const MENUS = [...document.querySelectorAll("select[data-key]")];
const FIRST = 6, MOST = 12, MATRICES = 6;
const chosen = new Set();
let plotly = null, data = [], waiting = 0;

const texts = new Map(ROWS.map((row) => [row, [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase()]));
const column = new Map(HEADS.map((head) => [head.textContent, head.cellIndex]));

function visible() {
  return [...BODY.rows].filter((row) => !row.classList.contains("hidden"));
}

function filter() {
  const wanted = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of ROWS) {
    const told = wanted.every((word) => texts.get(row).includes(word));
    const picked = MENUS.every((menu) => menu.value === "*" || row.cells[column.get(menu.dataset.key)].textContent === menu.value);
    row.classList.toggle("hidden", !(told && picked));
  }
  show();
}

function sort(head) {
  const up = head.getAttribute("aria-sort") === (head.classList.contains("text") ? null : "descending");
  HEADS.forEach((one) => one.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => {
    const cell = row.cells[head.cellIndex];
    if (cell.dataset.v === undefined) return null;
    return head.classList.contains("text") ? cell.dataset.v : Number(cell.dataset.v);
  };
  const order = (a, b) => {
    const [one, other] = [value(a), value(b)];
    if (one === null || other === null) return (one === null) - (other === null); // not applicable comes last, both ways
    const less = typeof one === "string" ? one.localeCompare(other, "en", { numeric: true }) : one - other;
    return up ? less : -less;
  };
  BODY.append(...[...BODY.rows].sort(order));
  show();
}

function show() {
  const rows = visible();
  document.getElementById("count").textContent = `${rows.length} of ${ROWS.length} shown, ${chosen.size} chosen`;
  const picked = rows.filter((row) => chosen.has(row));
  const drawn = (picked.length ? picked : rows.slice(0, FIRST)).slice(0, MOST);
  ROWS.forEach((row) => row.classList.toggle("chosen", chosen.has(row)));
  document.body.dataset.drawn = "";
  clearTimeout(waiting); // typing is not drawn letter by letter
  if (plotly) waiting = setTimeout(() => draw(rows.map((row) => data[row.dataset.id]), drawn.map((row) => data[row.dataset.id])), 60);
}

async function draw(groups, details) {
  const colours = new Map(details.map((group, index) => [group.id, index]));
  const figures = {
    stored: scatter(groups, colours, "stored_parameters", 1, "stored parameters"),
    trainable: scatter(groups, colours, "trainable_parameters", 2, "trainable parameters"),
    accuracy: curves(details, "accuracy", ACCURACY),
    forgetting: curves(details, "forgetting", "forgetting (points)"),
    losses: losses(details),
    probes: probed(details),
    ranks: ranks(details),
    growth: perTask(details, "growth", "growth (%)", 100),
    epochs: perTask(details, "epochs", "epochs"),
    classes: classes(details),
    seconds: bars(groups, colours, "wall_seconds", "seconds", 1),
    memory: bars(groups, colours, "peak_memory_bytes", "GiB", 2 ** -30),
    rank_curve: truncated(details, "accuracy", ACCURACY, 100),
    rank_loss: truncated(details, "loss", "loss (nats a token)", 1),
  };
  for (const [name, figure] of Object.entries(figures)) {
    document.getElementById(`card-${name}`).classList.toggle("hidden", !figure);
    if (figure) await put(document.getElementById(`plot-${name}`), figure);
    const bound = figure && (name === "seconds" || name === "memory") && groups.length > MOST_BARS;
    document.querySelector(`#card-${name} .note`).textContent = bound ? `the first ${MOST_BARS} of ${groups.length} rows` : "";
  }
  await drawMatrices(details.slice(0, MATRICES));
  document.body.dataset.drawn = "1";
}

function put(plot, [traces, layout]) {
  plot.style.height = `${layout.height}px`; // else the place collapses when the window changes its size
  return plotly.react(plot, traces, layout, CONFIG);
}

async function drawMatrices(details) {
  const place = document.getElementById("matrices");
  place.querySelectorAll(".plot").forEach((plot) => plotly.purge(plot));
  place.replaceChildren();
  for (const group of details) {
    const figure = group.tasks.length ? heat(group) : null;
    if (!figure) continue;
    const card = document.getElementById("card-stored").cloneNode(false);
    card.id = `card-matrix-${group.id}`;
    card.classList.remove("hidden");
    const caption = document.querySelector("#card-stored figcaption").cloneNode(true);
    caption.querySelector("span").textContent = group.label; // as text: names from data are never markup
    const plot = document.createElement("div");
    plot.className = "plot";
    card.append(caption, plot);
    place.append(card);
    await put(plot, figure);
  }
  document.getElementById("matrices-title").classList.toggle("hidden", !place.children.length);
}

async function unpacked(name) {
  const bytes = Uint8Array.from(atob(document.getElementById(name).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function begin() {
  data = JSON.parse(await unpacked("data"));
  const code = document.createElement("script");
  code.textContent = await unpacked("library");
  document.head.append(code);
  plotly = window.Plotly;
  show();
}

HEADS.forEach((head) => {
  head.addEventListener("click", () => sort(head));
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort(head));
});
document.getElementById("filter").addEventListener("input", filter);
MENUS.forEach((menu) => menu.addEventListener("change", filter));
document.getElementById("clear").addEventListener("click", () => { chosen.clear(); show(); });
BODY.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (!row || String(getSelection())) return; // marking text to copy it is no choice
  if (!chosen.delete(row)) chosen.add(row);
  show();
});
document.addEventListener("click", (event) => {
  const form = event.target.dataset && event.target.dataset.form;
  if (!form || !plotly) return;
  const card = event.target.closest("figure");
  const plot = card.querySelector(".plot");
  plotly.downloadImage(plot, { format: form, filename: card.id.replace("card-", ""), width: plot.clientWidth, height: plot.clientHeight, scale: form === "png" ? 3 : 1 });
});
show();
begin().catch((error) => {
  document.getElementById("figures").textContent = `This browser cannot draw the figures (${error.message}); the table works.`;
});
