// A text as tokens that can be pointed at, in one of two kinds (see token_strip.py):
// "edges": the strongest edges of a head as arcs over the text; a picked token shows what it attends
// to (blue) and what attends to it (orange), each weight beside that of even attention. "values":
// each token coloured by a number.
// Every string goes into the page as a text node, never as markup.

const NO_KEY = 65535, DRAWN = 4000, TOLD = 5, LEAST = 0.001, HEIGHT = 150;

export default function ({ data, parentElement }) {
  if (!data) return;
  const box = parentElement.querySelector(".strip");
  const { header, cells } = decoded(data);
  const shown = header.kind === "edges" ? edgesOf(header, cells) : null;
  const place = (event) => {
    const token = event.target.closest?.("[data-i]");
    return token ? Number(token.dataset.i) : null;
  };
  const text = box.querySelector(".text"), readout = box.querySelector(".readout");
  const canvas = box.querySelector("canvas");
  const state = { picked: header.picked, marked: [] };
  text.setAttribute("aria-label", header.alt);
  canvas.hidden = !shown;
  text.replaceChildren(...header.tokens.map((token, i) => spanOf(header, token, i)));
  const spans = [...text.children];

  const tell = (i) => {
    readout.textContent = i === null ? header.hint
      : shown ? edgesTold(header, shown, i) : valueTold(header, i);
  };
  const pick = (i, scroll) => {
    state.picked = i;
    for (const span of state.marked) span.className = "", span.style.background = "";
    state.marked = [];
    const mark = (at, kind, share) => {
      const span = spans[at];
      span.className = `${span.className} ${kind}`.trim();
      if (share) span.style.background = tinted(header[kind], share);
      state.marked.push(span);
    };
    if (shown) {
      for (const edge of shown.into[i]) mark(edge.query, "by", edge.share);
      for (const edge of shown.from[i]) mark(edge.key, "to", edge.share);
      drawArcs(canvas, box, header, shown, i);
    }
    mark(i, "picked");
    if (scroll) spans[i].scrollIntoView({ block: "nearest" });
    tell(i);
  };
  text.onclick = (event) => { const i = place(event); if (i !== null) pick(i); };
  text.onpointerover = (event) => { const i = place(event); if (i !== null) tell(i); };
  text.onpointerleave = () => tell(state.picked);
  text.onkeydown = (event) => {
    const to = { ArrowLeft: state.picked - 1, ArrowRight: state.picked + 1, Home: 0,
      End: spans.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    pick(Math.max(0, Math.min(spans.length - 1, to)), true);
  };
  canvas.onclick = (event) => {
    const x = event.clientX - canvas.getBoundingClientRect().left;
    pick(Math.max(0, Math.min(spans.length - 1, Math.floor(x / canvas.clientWidth * spans.length))), true);
  };
  box.observer?.disconnect();  // that of older data would draw its arcs again
  const observer = box.observer = new ResizeObserver(() => shown && drawArcs(canvas, box, header, shown, state.picked));
  observer.observe(box);
  pick(state.picked);
  text.scrollTop = spans[state.picked].offsetTop - text.offsetTop - text.clientHeight / 2;
  box.dataset.ready = header.name;
  return () => observer.disconnect();
}

function decoded(data) {
  const bytes = data instanceof Uint8Array ? data : new Uint8Array(data);
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  return { header, cells: bytes.subarray(4 + length) };
}

function spanOf(header, token, i) {
  const span = document.createElement("span");
  span.textContent = token;
  span.dataset.i = i;
  if (header.values) {
    const share = Math.min(1, Math.abs(header.values[i]) / header.most);
    span.style.boxShadow = `inset 0 -1.5em 0 ${tinted(header.values[i] < 0 ? header.by : header.to, share)}`;
  }
  return span;
}

function tinted([r, g, b], share) {
  return `rgba(${r}, ${g}, ${b}, ${(0.55 * Math.max(0, Math.min(1, share))).toFixed(3)})`;
}

function edgesOf({ k, tokens }, cells) {
  const from = tokens.map(() => []), into = tokens.map(() => []), all = [];
  for (let query = 0; query < tokens.length; query++) {
    const row = query * 3 * k;
    for (let i = 0; i < k; i++) {
      const key = cells[row + k + 2 * i] | (cells[row + k + 2 * i + 1] << 8);
      if (key === NO_KEY) continue;
      const level = cells[row + i];
      const weight = 10 ** ((level - 1) / 254 * 5 - 5);
      const edge = { query, key, weight, share: Math.sqrt(weight) };
      from[query].push(edge);
      into[key].push(edge);
      if (weight >= LEAST) all.push(edge);
    }
  }
  const heavy = (a, b) => b.weight - a.weight;
  for (const edges of into) edges.sort(heavy);
  all.sort(heavy);
  return { from, into, strongest: all.slice(0, DRAWN).reverse() };
}

function drawArcs(canvas, box, header, shown, picked) {
  const width = box.clientWidth;
  if (width <= 0) return;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.ceil(width * ratio);
  canvas.height = Math.ceil(HEIGHT * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${HEIGHT}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const at = (i) => (i + 0.5) / header.tokens.length * width;
  const arc = ({ query, key, share }, [r, g, b], most) => {
    const [left, right] = [at(key), at(query)];
    const top = HEIGHT - 8 - Math.min(HEIGHT - 14, 6 + (right - left) / 2);
    pen.strokeStyle = `rgba(${r}, ${g}, ${b}, ${Math.max(0.03, share * most).toFixed(3)})`;
    pen.beginPath();
    pen.moveTo(left, HEIGHT - 8);
    pen.bezierCurveTo(left, top, right, top, right, HEIGHT - 8);
    pen.stroke();
  };
  for (const edge of shown.strongest) arc(edge, header.pale, 0.5);
  pen.lineWidth = 1.5;
  for (const edge of shown.into[picked].slice(0, DRAWN).reverse()) arc(edge, header.by, 1);
  for (const edge of [...shown.from[picked]].reverse()) arc(edge, header.to, 1);
  pen.fillStyle = `rgb(${header.pale.join(",")})`;
  pen.fillRect(0, HEIGHT - 7, width, 1);
  pen.fillStyle = `rgb(${header.to.join(",")})`;
  pen.fillRect(at(picked) - 1.5, HEIGHT - 10, 3, 9);
}

function named(header, i) {
  return `${i} “${header.tokens[i]}”`;
}

function edgesTold(header, { from, into }, i) {
  const list = (edges, end) => edges.filter((edge) => edge.weight >= LEAST).slice(0, TOLD)
    .map((edge) => `${named(header, edge[end])} ${edge.weight.toPrecision(2)} `
      + `(${times(edge.weight * header.seen[edge.query])} even)`).join(", ")
    || `nothing above ${LEAST}`;
  return `${named(header, i)} attends to ${list(from[i], "key")}  ·  attended by ${list(into[i], "query")}`;
}

function times(ratio) {
  return `${ratio < 10 ? ratio.toPrecision(2) : Math.round(ratio)}×`;
}

function valueTold(header, i) {
  return `${named(header, i)}: ${header.values[i].toPrecision(3)}`;
}
