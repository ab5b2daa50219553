// A canvas that draws a picture of bytes (see atlas_maps.packed) and says where somebody points.
// Level 0 is "cannot look here"; 1 to 255 are weights from 1e-5 to 1, logarithmic.
// Two kinds: "atlas" (thumbnails of heads, a click picks one) and "window" (one head's map, a drag
// chooses a part of it, a double click goes back to the whole). A window of up to NAMED bins names
// its tokens along both edges. Arrow keys go from head to head, or from cell to cell; Enter chooses
// the head.
//
// The atlas is megabytes, and Streamlit sends again only what has changed: so which head is chosen
// is no part of it. A click frames the head here and now; the window, which is sent for every head
// anyhow, says whose map it shows, and the atlas hears of it.

const MARGIN = 12, NAMED = 40, NAMES = 96, CHOSEN = "mnemoscope-chosen";
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export default function ({ data, parentElement, setTriggerValue }) {
  const shown = data && decoded(data);
  const box = parentElement.querySelector(".atlas");
  const canvas = box.querySelector("canvas");
  const readout = box.querySelector(".readout");
  if (!shown) return;
  const { header, cells } = shown;
  const picture = painted(header, cells);
  const state = { scale: 1, from: null, to: null, at: null, chosen: window.mnemoscopeChosen };
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

  const frame = () => {
    state.chosen = window.mnemoscopeChosen;
    canvas.setAttribute("aria-label", described(header, state.chosen));
    draw();
  };
  const choose = (head) => {
    window.mnemoscopeChosen = head;
    frame();
    readout.textContent = `${nameOf(head)} is chosen, its map comes below.`;
    setTriggerValue("picked", head);
  };
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
      if (head) choose(head);
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
  const press = (event) => {
    const step = STEPS[event.key], atlas = header.kind === "atlas";
    if (step) {
      state.at = stepped(header, state, step);
      readout.textContent = told(header, cells, atlas ? placeOf(header, state.at) : state.at)
        + (atlas ? ": Enter chooses it." : "");
      draw();
    } else if (event.key === "Enter" && atlas && state.at) {
      choose(state.at);
    } else {
      return;
    }
    event.preventDefault();
  };
  const blur = () => {
    if (state.at) { state.at = null; draw(); }
  };

  canvas.onpointermove = move;
  canvas.onpointerdown = down;
  canvas.onpointerup = up;
  canvas.ondblclick = whole;
  canvas.onpointerleave = leave;
  canvas.onkeydown = press;
  canvas.onblur = blur;
  // New data call this again without an end of the old: its picture must not come back on resizing.
  box.observer?.disconnect();
  const observer = box.observer = new ResizeObserver(draw);
  observer.observe(box);
  if (header.chosen) {
    window.mnemoscopeChosen = header.chosen;
    window.dispatchEvent(new Event(CHOSEN));
  }
  if (box.frame) window.removeEventListener(CHOSEN, box.frame);
  box.frame = header.kind === "atlas" ? frame : null;
  if (box.frame) window.addEventListener(CHOSEN, box.frame);
  frame();
  canvas.dataset.ready = header.name;
  return () => {
    observer.disconnect();
    window.removeEventListener(CHOSEN, frame);
  };
}

// What a screen reader is told; of the atlas, whose frame it is too.
function described(header, chosen) {
  return header.kind === "atlas" && chosen ? `${header.alt} ${nameOf(chosen)} is framed.` : header.alt;
}

function nameOf({ layer, head }) {
  return `L${layer}.H${head}`;
}

// Where an arrow key goes from here: to a head from the one that is chosen, to a cell from the first.
function stepped(header, state, [across, down]) {
  const within = (value, size) => Math.max(0, Math.min(size - 1, value));
  if (header.kind === "window") {
    const { x, y } = state.at ?? { x: -across, y: -down };
    return { x: within(x + across, header.width), y: within(y + down, header.height) };
  }
  const { layer, head } = state.at ?? state.chosen ?? { layer: 0, head: 0 };
  return {
    layer: within(layer + down, header.sheet.layers),
    head: within(head + across, header.sheet.heads),
  };
}

function decoded(data) {
  const bytes = data instanceof Uint8Array ? data : new Uint8Array(data);
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  return { header, cells: bytes.subarray(4 + length) };
}

function painted(header, cells) {
  const colours = Uint32Array.from(palette(header.palette, header.nothing));
  const image = new ImageData(header.width, header.height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colours[cells[i]];
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
    if (state.chosen) drawFrame(pen, header, state.chosen, state.scale, []);
    if (state.at) drawFrame(pen, header, state.at, state.scale, [3, 3]);
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

// What is dragged over, or the cell that arrow keys have come to.
function drawDrag(pen, header, { from, to, at, scale }) {
  if (!from || !to) from = to = at;
  if (!from) return;
  pen.strokeStyle = header.ink;
  pen.lineWidth = 1.5;
  const [x, y] = [Math.min(from.x, to.x), Math.min(from.y, to.y)];
  const [w, h] = [Math.abs(from.x - to.x) + 1, Math.abs(from.y - to.y) + 1];
  pen.strokeRect(x * scale, y * scale, w * scale, h * scale);
}

// The numbers of layers and heads.
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
}

// A frame round a head: whole round the chosen one, in dashes round the one that keys have come to.
function drawFrame(pen, header, chosen, scale, dashes) {
  const { x, y } = placeOf(header, chosen);
  pen.strokeStyle = header.frame;
  pen.lineWidth = 2.5;
  pen.setLineDash(dashes);
  pen.strokeRect(
    x * scale - 1, y * scale - 1,
    (header.sheet.step_x - header.gap) * scale + 2, (header.sheet.step_y - header.gap) * scale + 2,
  );
  pen.setLineDash([]);
}

// The upper left cell of a head's thumbnail.
function placeOf({ sheet }, { layer, head }) {
  return {
    x: Math.floor(layer / sheet.rows) * blockWidth(sheet) + head * sheet.step_x,
    y: (layer % sheet.rows) * sheet.step_y,
  };
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
    return head && nameOf(head);
  }
  const { x, y } = place;
  if (x < 0 || y < 0 || x >= header.width || y >= header.height) return null;
  const level = cells[y * header.width + x];
  const shown = 10 ** ((level - 1) / 254 * 5 - 5), ratio = shown / evenIn(header, x, y);
  const weight = level === 0 ? "cannot look there"
    : `${header.pool} ${level === 1 ? "≤" : "≈"} ${shown.toPrecision(2)}`
      + ` (${ratio < 10 ? ratio.toPrecision(2) : Math.round(ratio)}× even)`;
  return `${weight}  ·  query ${range(header.queryEdges, y)} “${header.queryText[y]}”`
    + `  ·  key ${range(header.keyEdges, x)} “${header.keyText[x]}”`;
}

// What a cell holds of even attention, the same for every key that a query sees, pooled alike.
function evenIn(header, x, y) {
  let peak = 0, mass = 0;
  for (let query = header.queryEdges[y]; query < header.queryEdges[y + 1]; query++) {
    const seen = Math.min(query + 1, header.span ?? Infinity);
    const first = Math.max(header.keyEdges[x], query + 1 - seen);
    const keys = Math.max(0, Math.min(header.keyEdges[x + 1], query + 1) - first);
    if (keys) peak = Math.max(peak, 1 / seen);
    mass += keys / seen;
  }
  return header.pool === "peak" ? peak : mass / (header.queryEdges[y + 1] - header.queryEdges[y]);
}

function range(edges, i) {
  return edges[i + 1] - edges[i] === 1 ? `${edges[i]}` : `${edges[i]}–${edges[i + 1] - 1}`;
}
