// A canvas that draws a picture of bytes (see atlas_maps.packed) and says where somebody points.
// Level 0 is "cannot look here"; 1 to 255 are weights from 1e-5 to 1, logarithmic.
// Two kinds: "atlas" (thumbnails of heads, a click picks one) and "window" (one head's map, a drag
// chooses a part of it, a double click goes back to the whole). A window of up to NAMED bins names
// its tokens along both edges.

const MARGIN = 12, NAMED = 40, NAMES = 96;

export default function ({ data, parentElement, setTriggerValue }) {
  const shown = data && decoded(data);
  const box = parentElement.querySelector(".atlas");
  const canvas = box.querySelector("canvas");
  const readout = box.querySelector(".readout");
  if (!shown) return;
  const { header, cells } = shown;
  const picture = painted(header, cells);
  const state = { scale: 1, from: null, to: null };
  canvas.setAttribute("aria-label", header.alt);
  readout.textContent = header.hint;

  const margin = header.kind !== "window" ? 24 : namesTokens(header) ? NAMES : MARGIN;
  const draw = () => drawn(canvas, box, header, picture, margin, state);
  const at = (event) => {
    const frame = canvas.getBoundingClientRect();
    return {
      x: Math.floor((event.clientX - frame.left - margin) / state.scale),
      y: Math.floor((event.clientY - frame.top - margin) / state.scale),
    };
  };
  const kept = (value, size) => Math.max(0, Math.min(size - 1, value));

  const move = (event) => {
    const place = at(event);
    readout.textContent = told(header, cells, place) || header.hint;
    if (state.from) {
      state.to = { x: kept(place.x, header.width), y: kept(place.y, header.height) };
      draw();
    }
  };
  const down = (event) => {
    if (event.button !== 0) return;
    const place = at(event);
    if (header.kind === "atlas") {
      const head = headAt(header, place);
      if (head) setTriggerValue("picked", head);
    } else {
      state.from = { x: kept(place.x, header.width), y: kept(place.y, header.height) };
      state.to = null;
      canvas.setPointerCapture(event.pointerId);
    }
  };
  const up = () => {
    const { from, to } = state;
    state.from = state.to = null;
    if (from && to && (Math.abs(from.x - to.x) > 1 || Math.abs(from.y - to.y) > 1)) {
      const x = [from.x, to.x].sort((a, b) => a - b);
      const y = [from.y, to.y].sort((a, b) => a - b);
      setTriggerValue("part", {
        q0: header.queryEdges[y[0]], q1: header.queryEdges[y[1] + 1],
        k0: header.keyEdges[x[0]], k1: header.keyEdges[x[1] + 1],
      });
    }
    draw();
  };
  const whole = () => header.kind === "window" && setTriggerValue("part", { whole: true });
  const leave = () => { readout.textContent = header.hint; };

  canvas.onpointermove = move;
  canvas.onpointerdown = down;
  canvas.onpointerup = up;
  canvas.ondblclick = whole;
  canvas.onpointerleave = leave;
  // New data call this again without an end of the old: its picture must not come back on resizing.
  box.observer?.disconnect();
  const observer = box.observer = new ResizeObserver(draw);
  observer.observe(box);
  draw();
  canvas.dataset.ready = header.name;
  return () => observer.disconnect();
}

function decoded(data) {
  const bytes = data instanceof Uint8Array ? data : new Uint8Array(data);
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  return { header, cells: bytes.subarray(4 + length) };
}

function painted(header, cells) {
  const colours = palette(header.palette, header.nothing);
  const image = new ImageData(header.width, header.height);
  new Uint32Array(image.data.buffer).set(Uint32Array.from(cells, (level) => colours[level]));
  const off = document.createElement("canvas");
  off.width = header.width;
  off.height = header.height;
  off.getContext("2d").putImageData(image, 0, 0);
  return off;
}

function palette(stops, nothing) {
  const pixel = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;
  const colours = [pixel(nothing)];
  for (let level = 1; level < 256; level++) {
    const place = (level - 1) / 254 * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    colours.push(pixel(stops[low].map((c, i) => c + (stops[low + 1][i] - c) * (place - low))));
  }
  return colours;
}

function drawn(canvas, box, header, picture, margin, state) {
  const room = box.clientWidth - margin - 1;
  if (room <= 0) return;
  const widest = header.kind === "window" ? 640 / header.width : 1;
  state.scale = Math.min(widest, room / header.width);
  const width = header.width * state.scale, height = header.height * state.scale;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.ceil((width + margin + 1) * ratio);
  canvas.height = Math.ceil((height + margin + 1) * ratio);
  canvas.style.width = `${width + margin + 1}px`;
  canvas.style.height = `${height + margin + 1}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.translate(margin, margin);
  pen.imageSmoothingEnabled = state.scale < 1;
  pen.drawImage(picture, 0, 0, width, height);
  if (header.kind === "window") {
    drawMarks(pen, header, state.scale);
    if (namesTokens(header)) drawTokens(pen, header, state.scale);
    drawDrag(pen, header, state);
  } else {
    drawNames(pen, header, state.scale);
  }
}

// Spans as bars beside the map: keys above it, queries left of it.
function drawMarks(pen, header, scale) {
  for (const mark of header.marks) {
    pen.fillStyle = mark.colour;
    for (const [edges, keys] of [[header.keyEdges, true], [header.queryEdges, false]]) {
      const [from, to] = [mark.start, mark.stop].map((place) => position(edges, place) * scale);
      if (to <= from) continue;
      const size = Math.max(2, to - from);
      if (keys) pen.fillRect(from, -MARGIN + 2, size, MARGIN - 4);
      else pen.fillRect(-MARGIN + 2, from, MARGIN - 4, size);
    }
  }
}

function namesTokens(header) {
  return Math.max(header.width, header.height) <= NAMED;
}

// Keys upright above the map, queries left of it, cut to what the margin holds.
function drawTokens(pen, header, scale) {
  const size = Math.min(12, scale - 1), room = NAMES - MARGIN - 4;
  if (size < 6) return;
  pen.fillStyle = header.ink;
  pen.font = `${size}px sans-serif`;
  pen.textBaseline = "middle";
  const cut = (text) => {
    let shown = text;
    while (shown && pen.measureText(shown).width > room) shown = shown.slice(0, -1);
    return shown;
  };
  pen.textAlign = "right";
  header.queryText.forEach((text, i) => pen.fillText(cut(text), -MARGIN - 2, (i + 0.5) * scale));
  pen.textAlign = "left";
  header.keyText.forEach((text, i) => {
    pen.save();
    pen.translate((i + 0.5) * scale, -MARGIN - 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(cut(text), 0, 0);
    pen.restore();
  });
}

function position(edges, place) {
  if (place <= edges[0]) return 0;
  const next = edges.findIndex((edge) => edge >= place);
  return next < 0 ? edges.length - 1 : next;
}

function drawDrag(pen, header, { from, to, scale }) {
  if (!from || !to) return;
  pen.strokeStyle = header.ink;
  pen.lineWidth = 1.5;
  const [x, y] = [Math.min(from.x, to.x), Math.min(from.y, to.y)];
  const [w, h] = [Math.abs(from.x - to.x) + 1, Math.abs(from.y - to.y) + 1];
  pen.strokeRect(x * scale, y * scale, w * scale, h * scale);
}

// The numbers of layers and heads, and a frame round the chosen head.
function drawNames(pen, header, scale) {
  const sheet = header.sheet;
  pen.fillStyle = header.ink;
  pen.font = "11px sans-serif";
  pen.textBaseline = "middle";
  pen.textAlign = "center";
  const every = Math.max(1, Math.ceil(16 / (sheet.step_x * scale)));
  for (let block = 0; block < sheet.blocks; block++) {
    const left = block * blockWidth(sheet);
    for (let head = 0; head < sheet.heads; head += every) {
      pen.fillText(head, (left + (head + 0.5) * sheet.step_x) * scale, -10);
    }
  }
  pen.textAlign = "right";
  for (let layer = 0; layer < sheet.layers; layer++) {
    const left = Math.floor(layer / sheet.rows) * blockWidth(sheet) * scale;
    pen.fillText(layer, left - 5, (layer % sheet.rows + 0.5) * sheet.step_y * scale);
  }
  const [layer, head] = header.chosen;
  const left = Math.floor(layer / sheet.rows) * blockWidth(sheet) + head * sheet.step_x;
  pen.strokeStyle = header.frame;
  pen.lineWidth = 2.5;
  pen.strokeRect(
    left * scale - 1, (layer % sheet.rows) * sheet.step_y * scale - 1,
    (sheet.step_x - header.gap) * scale + 2, (sheet.step_y - header.gap) * scale + 2,
  );
}

function blockWidth(sheet) {
  return sheet.heads * sheet.step_x + sheet.block_gap;
}

function headAt(header, { x, y }) {
  const sheet = header.sheet;
  const block = Math.floor(x / blockWidth(sheet));
  const head = Math.floor((x - block * blockWidth(sheet)) / sheet.step_x);
  const layer = block * sheet.rows + Math.floor(y / sheet.step_y);
  const there = x >= 0 && y >= 0 && y < header.height && head < sheet.heads
    && block < sheet.blocks && layer < sheet.layers;
  return there ? { layer, head } : null;
}

function told(header, cells, place) {
  if (header.kind === "atlas") {
    const head = headAt(header, place);
    return head && `L${head.layer}.H${head.head}`;
  }
  const { x, y } = place;
  if (x < 0 || y < 0 || x >= header.width || y >= header.height) return null;
  const level = cells[y * header.width + x];
  const weight = level === 0 ? "cannot look there"
    : `${header.pool} ${level === 1 ? "≤" : "≈"} ${(10 ** ((level - 1) / 254 * 5 - 5)).toPrecision(2)}`;
  return `${weight}  ·  query ${range(header.queryEdges, y)} “${header.queryText[y]}”`
    + `  ·  key ${range(header.keyEdges, x)} “${header.keyText[x]}”`;
}

function range(edges, i) {
  return edges[i + 1] - edges[i] === 1 ? `${edges[i]}` : `${edges[i]}–${edges[i + 1] - 1}`;
}
