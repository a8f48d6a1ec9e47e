"use strict";
// Saves a drawn picture as it stands on the page, as SVG or, three times as fine, as PNG.
function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function asText(svg) {
  return '<?xml version="1.0" encoding="UTF-8"?>\n' + new XMLSerializer().serializeToString(svg);
}

async function asPng(svg) {
  const image = new Image();
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(asText(svg));
  await image.decode();
  const canvas = document.createElement("canvas");
  const box = svg.viewBox.baseVal;
  canvas.width = 3 * box.width;
  canvas.height = 3 * box.height;
  const brush = canvas.getContext("2d");
  brush.fillStyle = "white";
  brush.fillRect(0, 0, canvas.width, canvas.height);
  brush.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

document.querySelectorAll("button[data-form]").forEach((button) => button.addEventListener("click", async () => {
  const figure = button.closest("figure");
  const svg = figure.querySelector("svg");
  const png = button.dataset.form === "png";
  save(png ? await asPng(svg) : new Blob([asText(svg)], { type: "image/svg+xml" }), figure.id + "." + button.dataset.form);
}));
document.body.dataset.ready = "1";
