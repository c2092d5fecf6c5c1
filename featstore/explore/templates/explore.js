(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent), n = data.n, keys = data.keys;

  // --- packed data ---------------------------------------------------------------------------------------------------
  const bytes = (text) => {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let at = 0; at < raw.length; at++) out[at] = raw.charCodeAt(at);
    return out.buffer;
  };
  const whole = (text, count) => {  // one, two or four bytes for each number
    const buffer = bytes(text), width = buffer.byteLength / Math.max(1, count);
    return width === 1 ? new Uint8Array(buffer) : width === 2 ? new Uint16Array(buffer) : new Uint32Array(buffer);
  };
  const packed = new Uint16Array(bytes(data.xy));
  const X = new Float64Array(n), Y = new Float64Array(n);
  for (let at = 0; at < n; at++) {
    X[at] = data.low[0] + ((data.high[0] - data.low[0]) * packed[2 * at]) / 65535;
    Y[at] = data.low[1] + ((data.high[1] - data.low[1]) * packed[2 * at + 1]) / 65535;
  }
  const columns = data.columns.map((column) => ({
    ...column,
    codes: column.codes === undefined ? null : whole(column.codes, n),
    numbers: column.numbers === undefined ? null : new Float32Array(bytes(column.numbers)),
  }));
  const near = whole(data.near, n * data.k), cosines = new Uint16Array(bytes(data.cosines));
  const numbers = data.numbers === undefined ? null : whole(data.numbers, n);
  const shortNumber = (value) => String(Number(Number(value).toPrecision(6)));
  const valueOf = (column, at) => {
    if (column.numbers) return Number.isNaN(column.numbers[at]) ? "" : shortNumber(column.numbers[at]);
    return column.values[column.codes[at]] ?? "";
  };
  const soundOf = (at) => (data.audio === "served" ? `audio/${numbers[at]}` : data.audio === "embedded" ? data.sounds[at] : undefined);
  const hasSound = (at) => data.audio === "served" || (data.audio === "embedded" && Object.hasOwn(data.sounds, at));
  const withCommas = (value) => value.toLocaleString("en-US");

  const make = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  // --- colours: eight that are distinct for every kind of colour vision (Okabe and Ito), then the same in other shapes
  const TOP = 16, OTHER = TOP, NONE = TOP + 1, RAMP = 32, NO_NUMBER = 255, NOT_FOUND = 254;
  const PALETTES = {
    light: ["#0072b2", "#e08a00", "#009e73", "#cc5f9e", "#d55e00", "#3aa5dc", "#a89400", "#2b2f33"],
    dark: ["#4aa3e0", "#e69f00", "#22c295", "#e08bbd", "#f0703a", "#8ad0ff", "#f0e442", "#eef1f4"],
  };
  const SHAPES = ["circle", "square", "triangle", "diamond"];
  const shapeOf = (style) => (state.column?.numbers || style >= TOP || style < 8 ? "circle" : SHAPES[1 + (style % 3)]);
  // viridis, without the end that is close to the background
  const VIRIDIS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37]];
  const rampAt = (share, dark) => {
    const place = (dark ? 0.22 + 0.78 * share : 0.88 * share) * (VIRIDIS.length - 1), low = Math.min(VIRIDIS.length - 2, Math.floor(place));
    return `rgb(${VIRIDIS[low].map((value, channel) => Math.round(value + (VIRIDIS[low + 1][channel] - value) * (place - low))).join(",")})`;
  };
  let theme = {};
  const readTheme = () => {
    const dark = page.isDark();
    theme = { dark, palette: PALETTES[dark ? "dark" : "light"], ink: dark ? "#ffffff" : "#000000", back: dark ? "#14171a" : "#ffffff", dim: dark ? "#59636e" : "#c3cad1", none: dark ? "#76818d" : "#98a2ad" };
  };
  const colourOf = (style) => {
    if (style === NO_NUMBER) return theme.none;
    if (style === NOT_FOUND) return theme.dim;
    if (state.column?.numbers) return rampAt(style / (RAMP - 1), theme.dark);
    return style === OTHER || style === NONE ? theme.none : theme.palette[style % 8];
  };

  // --- visible points ----------------------------------------------------------------------------------------------------
  const canvas = $("map"), context = canvas.getContext("2d");
  const style = new Uint8Array(n);   // by the colour column
  const shown = new Uint8Array(n);   // by the legend and by sound
  let matched = null;                // by the search, if any
  const state = { column: null, hidden: new Set(), from: -Infinity, to: Infinity, pinned: -1, over: -1, low: 0, high: 1 };
  const order = new Uint32Array(n);  // random, so that no class covers another because of its order in the store
  for (let at = 0; at < n; at++) order[at] = at;
  for (let at = n - 1, seed = 1; at > 0; at--) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const other = seed % (at + 1);
    [order[at], order[other]] = [order[other], order[at]];
  }

  const restyle = () => {
    const column = state.column;
    if (!column) style.fill(0);
    else if (column.numbers) {
      const sorted = column.numbers.filter((value) => !Number.isNaN(value)).sort();
      state.low = sorted.length ? sorted[Math.floor(0.01 * (sorted.length - 1))] : 0;
      state.high = sorted.length ? sorted[Math.ceil(0.99 * (sorted.length - 1))] : 1;
      const span = state.high - state.low || 1;
      for (let at = 0; at < n; at++) {
        const share = (column.numbers[at] - state.low) / span;
        style[at] = Number.isNaN(share) ? NO_NUMBER : Math.max(0, Math.min(RAMP - 1, Math.floor(share * RAMP)));
      }
    } else {
      const some = column.values.length;
      for (let at = 0; at < n; at++) {
        const code = column.codes[at];
        style[at] = code >= some ? NONE : code < TOP ? code : OTHER;
      }
    }
  };
  const refilter = () => {
    const column = state.column, only = $("only-heard").checked;
    for (let at = 0; at < n; at++) {
      let keep = !only || hasSound(at);
      if (keep && column?.numbers) {
        const value = column.numbers[at];
        keep = Number.isNaN(value) ? state.from === -Infinity && state.to === Infinity : value >= state.from && value <= state.to;
      } else if (keep && column) keep = !state.hidden.has(style[at]);
      shown[at] = keep ? 1 : 0;
    }
  };

  // --- the map ----------------------------------------------------------------------------------------------------------
  const view = { x: 0, y: 0, scale: 1 };
  let width = 0, height = 0, ratio = 1, touched = false, sprites = new Map();
  const middle = { x: (data.low[0] + data.high[0]) / 2, y: (data.low[1] + data.high[1]) / 2 };
  const span = { x: data.high[0] - data.low[0] || 1, y: data.high[1] - data.low[1] || 1 };
  const fitted = () => 0.92 * Math.min(width / span.x, height / span.y);
  const fit = () => {
    Object.assign(view, { ...middle, scale: fitted() });
    touched = false;
    redraw();
  };
  const toScreen = (at) => [width / 2 + (X[at] - view.x) * view.scale, height / 2 - (Y[at] - view.y) * view.scale];
  const zoom = (factor, x = width / 2, y = height / 2) => {
    const before = view.scale;
    view.scale = Math.max(fitted() / 4, Math.min(fitted() * 4000, before * factor));
    view.x += (x - width / 2) * (1 / before - 1 / view.scale);
    view.y -= (y - height / 2) * (1 / before - 1 / view.scale);
    touched = true;
    redraw();
  };
  const move = (dx, dy) => {
    view.x -= dx / view.scale;
    view.y += dy / view.scale;
    touched = true;
    redraw();
  };
  const radius = () => {
    const closer = Math.max(0, Math.log2(view.scale / fitted()));
    return Math.min(7, (n > 20000 ? 1.8 : n > 4000 ? 2.4 : n > 600 ? 3.2 : 4.5) + 0.55 * closer);
  };
  const outline = (to, shape, x, y, r) => {
    to.beginPath();
    if (shape === "square") to.rect(x - 0.86 * r, y - 0.86 * r, 1.72 * r, 1.72 * r);
    else if (shape === "triangle") { to.moveTo(x, y - 1.1 * r); to.lineTo(x + 1.05 * r, y + 0.8 * r); to.lineTo(x - 1.05 * r, y + 0.8 * r); to.closePath(); }
    else if (shape === "diamond") { to.moveTo(x, y - 1.2 * r); to.lineTo(x + 1.2 * r, y); to.lineTo(x, y + 1.2 * r); to.lineTo(x - 1.2 * r, y); to.closePath(); }
    else to.arc(x, y, r, 0, 7);
  };
  const sprite = (number, r) => {
    const name = `${number} ${r}`;
    if (!sprites.has(name)) {
      const half = Math.ceil((1.25 * r + 1) * ratio), made = document.createElement("canvas"), to = made.getContext("2d");
      made.width = made.height = 2 * half;
      to.scale(ratio, ratio);
      outline(to, shapeOf(number), half / ratio, half / ratio, r);
      to.globalAlpha = number === NOT_FOUND ? 0.45 : n > 4000 ? 0.75 : 0.85;
      to.fillStyle = colourOf(number);
      to.fill();
      sprites.set(name, [made, half]);
    }
    return sprites.get(name);
  };
  let waiting = false;
  const redraw = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };
  const draw = () => {
    if (!width) return;
    const r = Math.round(radius() * 4) / 4;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = theme.back;
    context.fillRect(0, 0, canvas.width, canvas.height);
    const scale = view.scale * ratio, left = (width / 2) * ratio - view.x * scale, top = (height / 2) * ratio + view.y * scale;
    for (const found of matched ? [0, 1] : [1]) {
      for (let place = 0; place < n; place++) {
        const at = order[place];
        if (!shown[at] || (matched && matched[at] !== found)) continue;
        const x = left + X[at] * scale, y = top - Y[at] * scale;
        if (x < -20 || y < -20 || x > canvas.width + 20 || y > canvas.height + 20) continue;
        const [image, half] = sprite(found ? style[at] : NOT_FOUND, r);
        context.drawImage(image, Math.round(x) - half, Math.round(y) - half);
      }
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (state.pinned >= 0) {
      const [x, y] = toScreen(state.pinned);
      context.strokeStyle = theme.ink;
      context.globalAlpha = 0.45;
      context.lineWidth = 1;
      for (let place = 0; place < data.k; place++) {
        context.beginPath();
        context.moveTo(x, y);
        context.lineTo(...toScreen(near[state.pinned * data.k + place]));
        context.stroke();
      }
      context.globalAlpha = 1;
      for (let place = 0; place < data.k; place++) ring(near[state.pinned * data.k + place], r + 1.5, 1.25);
      ring(state.pinned, r + 4, 2.5);
    }
    if (state.over >= 0) ring(state.over, r + 2.5, 1.5);
  };
  const ring = (at, r, thick) => {
    const [x, y] = toScreen(at);
    outline(context, shapeOf(style[at]), x, y, Math.max(1, r - 1.5));
    context.fillStyle = colourOf(style[at]);
    context.fill();
    context.beginPath();
    context.arc(x, y, r, 0, 7);
    context.lineWidth = thick;
    context.strokeStyle = theme.ink;
    context.stroke();
  };
  new ResizeObserver(() => {
    const box = canvas.getBoundingClientRect();
    if (!box.width) return;
    [width, height, ratio] = [box.width, box.height, Math.min(3, devicePixelRatio || 1)];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    sprites = new Map();
    if (touched) redraw(); else fit();
    draw();
  }).observe(canvas);

  // --- the point at a position: a grid over the map, so that a hover tests few points---------------------------------------
  const side = Math.max(1, Math.round(Math.sqrt(n / 2)));
  const cellOf = (value, axis) => Math.max(0, Math.min(side - 1, Math.floor(((value - data.low[axis]) / (axis ? span.y : span.x)) * side)));
  const cellStart = new Uint32Array(side * side + 1), inCell = new Uint32Array(n);
  for (let at = 0; at < n; at++) cellStart[cellOf(Y[at], 1) * side + cellOf(X[at], 0) + 1]++;
  for (let cell = 0; cell < side * side; cell++) cellStart[cell + 1] += cellStart[cell];
  const filled = cellStart.slice();
  for (let at = 0; at < n; at++) inCell[filled[cellOf(Y[at], 1) * side + cellOf(X[at], 0)]++] = at;
  const pointAt = (x, y, reach) => {
    const wx = view.x + (x - width / 2) / view.scale, wy = view.y - (y - height / 2) / view.scale, r = reach / view.scale;
    let best = -1, least = r * r;
    for (let row = cellOf(wy - r, 1); row <= cellOf(wy + r, 1); row++) {
      for (let column = cellOf(wx - r, 0); column <= cellOf(wx + r, 0); column++) {
        for (let place = cellStart[row * side + column]; place < cellStart[row * side + column + 1]; place++) {
          const at = inCell[place], distance = (X[at] - wx) ** 2 + (Y[at] - wy) ** 2;
          if (distance <= least && shown[at] && (!matched || matched[at])) [best, least] = [at, distance];
        }
      }
    }
    return best;
  };

  // --- pointers and keys --------------------------------------------------------------------------------------------------
  const pointers = new Map();
  let travelled = 0;
  const placeOf = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  const tipOf = (at) => [keys[at], ...(state.column ? [`${state.column.name}: ${valueOf(state.column, at) || "no value"}`] : [])].join("\n");
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, placeOf(event));
    if (pointers.size === 1) travelled = 0;
    page.showTip("");
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = placeOf(event), before = pointers.get(event.pointerId);
    if (!before) {
      const over = pointAt(x, y, radius() + 6);
      if (over !== state.over) { state.over = over; redraw(); }
      page.showTip(over >= 0 ? tipOf(over) : "", event);
      return;
    }
    travelled += Math.abs(x - before[0]) + Math.abs(y - before[1]);
    if (pointers.size === 2) {
      const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const apart = (place) => Math.max(1, Math.hypot(place[0] - other[0], place[1] - other[1]));
      zoom(apart([x, y]) / apart(before), other[0], other[1]);
    } else if (travelled > 4) {
      canvas.classList.add("moving");
      move(x - before[0], y - before[1]);
    }
    pointers.set(event.pointerId, [x, y]);
  });
  const lift = (event) => {
    const was = pointers.size;
    pointers.delete(event.pointerId);
    if (pointers.size) return;
    canvas.classList.remove("moving");
    if (event.type === "pointerup" && was === 1 && travelled <= 4) pin(pointAt(...placeOf(event), event.pointerType === "touch" ? 22 : radius() + 6), { fromMap: true });
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => { state.over = -1; page.showTip(""); redraw(); });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...placeOf(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (event.key in steps) move(...steps[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") fit();
    else if (event.key === "Escape") pin(-1);
    else return;
    event.preventDefault();
  });
  $("closer").addEventListener("click", () => zoom(1.6));
  $("farther").addEventListener("click", () => zoom(1 / 1.6));
  $("whole").addEventListener("click", fit);

  // --- a clip, its sound, its neighbours ------------------------------------------------------------------------------------
  const mark = (at) => markOf(style[at]);
  const markOf = (number) => {
    const made = make("i", { className: `mark ${shapeOf(number)}` });
    made.setAttribute("aria-hidden", "true");
    made.style.setProperty("--c", colourOf(number));
    return made;
  };
  const entry = (at, text) => {
    const label = state.column ? valueOf(state.column, at) : "";
    const button = make("button", { type: "button", title: keys[at] }, mark(at), make("span", { className: "key", textContent: keys[at] }));
    if (label) button.append(make("span", { className: "label", textContent: label, title: label }));
    if (data.audio === "embedded" && hasSound(at)) button.append(make("span", { textContent: "♪", title: "has sound" }));
    if (text) button.append(make("span", { className: "n", textContent: text }));
    button.addEventListener("click", () => pin(at));
    return make("li", {}, button);
  };
  const pin = (at, { fromMap = false } = {}) => {
    state.pinned = at;
    if (at >= 0 && !fromMap) reveal(at);
    tellClip();
    if (at >= 0 && $("play").checked) $("clip").querySelector("audio")?.play().catch(() => {});
    redraw();
  };
  const reveal = (at) => {
    const [x, y] = toScreen(at);
    if (x > 20 && y > 20 && x < width - 20 && y < height - 20) return;
    Object.assign(view, { x: X[at], y: Y[at] });
    touched = true;
  };
  const tellClip = () => {
    const panel = $("clip"), at = state.pinned;
    panel.replaceChildren();
    if (at < 0) {
      panel.append(make("p", { className: "dim", textContent: "Click a point, or find a clip by its key or a label." }));
      return;
    }
    panel.append(make("h2", { textContent: keys[at] }));
    if (hasSound(at)) {
      const player = make("audio", { controls: true, preload: "none", src: soundOf(at) });
      player.setAttribute("aria-label", `Sound of ${keys[at]}`);
      player.addEventListener("error", () => player.replaceWith(make("p", { className: "dim", textContent: "The sound of this clip cannot be had: its shard is not in --data, has changed, or this browser does not play it." })));
      panel.append(player);
    } else if (data.audio === "embedded") panel.append(make("p", { className: "dim", textContent: "Its sound is not among those of this page." }));
    const list = make("dl");
    for (const column of columns) {
      const value = valueOf(column, at);
      if (value !== "") list.append(make("dt", { textContent: column.name }), make("dd", { textContent: value }));
    }
    panel.append(list, make("h3", { textContent: "Nearest by cosine" }));
    const rows = make("ol", { className: "clips" });
    for (let place = 0; place < data.k; place++) {
      const cosine = (cosines[at * data.k + place] / 65535) * 2 - 1;
      rows.append(entry(near[at * data.k + place], cosine.toFixed(3)));
    }
    panel.append(rows);
  };

  // --- search ---------------------------------------------------------------------------------------------------------------
  const SHOWN = 60;
  let lowered = null;
  const search = () => {
    const text = $("find").value.trim().toLowerCase(), panel = $("found"), results = $("results");
    panel.hidden = !text;
    results.replaceChildren();
    if (!text) { matched = null; redraw(); return; }
    lowered ??= { keys: keys.map((key) => key.toLowerCase()), values: columns.map((column) => column.codes && column.values.map((value) => value.toLowerCase())) };
    matched = new Uint8Array(n);
    const equals = text.indexOf("="), named = equals > 0 ? columns.findIndex((column) => column.name.toLowerCase() === text.slice(0, equals).trim()) : -1;
    const wanted = named >= 0 ? text.slice(equals + 1).trim() : text;
    columns.forEach((column, which) => {
      if (named >= 0 ? which !== named : column.name.startsWith("(")) return;  // a match of a shard would find all of its clips
      if (!column.codes) {
        if (named === which) for (let at = 0; at < n; at++) if (valueOf(column, at) === wanted) matched[at] = 1;
        return;
      }
      const hits = Uint8Array.from([...lowered.values[which].map((value) => (value.includes(wanted) ? 1 : 0)), 0]);
      if (hits.includes(1)) for (let at = 0; at < n; at++) if (hits[column.codes[at]]) matched[at] = 1;
    });
    if (named < 0) for (let at = 0; at < n; at++) if (lowered.keys[at].includes(wanted)) matched[at] = 1;
    const found = [];
    let count = 0;
    for (let at = 0; at < n; at++) {
      if (!matched[at] || !shown[at]) continue;
      count++;
      if (found.length < SHOWN) found.push(at);
    }
    $("count").textContent = `${count ? withCommas(count) : "No"} clip${count === 1 ? "" : "s"} found${count > SHOWN ? `, the first ${SHOWN}:` : ""}`;
    results.append(...found.map((at) => entry(at, "")));
    redraw();
  };
  $("find").addEventListener("input", search);
  $("find").addEventListener("keydown", (event) => {
    const first = $("results").querySelector("button");
    if (event.key === "Enter" && first) first.click();
    else if (event.key === "ArrowDown" && first) { event.preventDefault(); first.focus(); }
  });
  $("results").addEventListener("keydown", (event) => {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (!step) return;
    event.preventDefault();
    (event.target.closest("li")?.[step]?.querySelector("button") ?? (step === "previousElementSibling" ? $("find") : event.target)).focus();
  });

  // --- legend, and the same as a table ----------------------------------------------------------------------------------------
  const counted = () => {
    const counts = new Map();
    for (let at = 0; at < n; at++) counts.set(style[at], (counts.get(style[at]) ?? 0) + 1);
    return counts;
  };
  const nameOf = (number) => {
    const values = state.column.values;
    return number === NONE ? "no value" : number === OTHER ? `${withCommas(values.length - TOP)} other${values.length - TOP === 1 ? "" : "s"}` : values[number] || "(empty)";
  };
  const filterChanged = () => { refilter(); if ($("find").value) search(); redraw(); };
  const tellLegend = () => {
    const legend = $("legend"), column = state.column;
    legend.replaceChildren();
    if (!column) return;
    legend.append(make("p", { className: "by", textContent: `Coloured by ${column.name}` }));  // for print, which has no controls
    if (column.numbers) {
      const ramp = make("div", { className: "ramp" }), box = (name, which) => {
        const input = make("input", { type: "number", step: "any" });
        input.addEventListener("input", () => { state[which] = input.value === "" ? (which === "from" ? -Infinity : Infinity) : Number(input.value); filterChanged(); });
        return make("label", {}, `${name} `, input);
      };
      const stops = Array.from({ length: 12 }, (_, at) => rampAt(at / 11, theme.dark));
      ramp.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
      legend.append(ramp, make("div", { className: "ends" }, make("span", { textContent: shortNumber(state.low) }), make("span", { textContent: column.name }), make("span", { textContent: shortNumber(state.high) })));
      legend.append(make("div", { className: "range" }, box("from", "from"), box("to", "to")));
      return;
    }
    const marks = make("ul", { className: "marks" }), counts = counted();
    const buttons = [...counts.keys()].sort((a, b) => a - b).map((number) => {
      const button = make("button", { type: "button", title: `${nameOf(number)}: click to hide or show, double click for this alone` }, markOf(number), make("span", { textContent: nameOf(number) }), make("span", { className: "n", textContent: withCommas(counts.get(number)) }));
      button.addEventListener("click", () => { state.hidden.has(number) ? state.hidden.delete(number) : state.hidden.add(number); pressed(); });
      button.addEventListener("dblclick", () => { state.hidden = new Set([...counts.keys()].filter((each) => each !== number)); pressed(); });
      return [number, button];
    });
    const pressed = () => {
      for (const [number, button] of buttons) button.setAttribute("aria-pressed", String(!state.hidden.has(number)));
      filterChanged();
    };
    for (const [number, button] of buttons) {
      button.setAttribute("aria-pressed", String(!state.hidden.has(number)));
      marks.append(make("li", {}, button));
    }
    if (buttons.length > 1) {
      const all = make("button", { type: "button", textContent: "all" }), none = make("button", { type: "button", textContent: "none" });
      all.addEventListener("click", () => { state.hidden.clear(); pressed(); });
      none.addEventListener("click", () => { state.hidden = new Set(counts.keys()); pressed(); });
      marks.append(make("li", { className: "choose" }, all), make("li", { className: "choose" }, none));
    }
    legend.append(marks);
  };
  const tellTable = () => {
    const table = $("table"), column = state.column, head = table.tHead, body = table.tBodies[0];
    head.replaceChildren();
    body.replaceChildren();
    $("table-caption").textContent = column?.codes
      ? `Classes of ${column.name}, and the share of the ${data.k} nearest clips of each clip with the same class.`
      : "Colour the map by a field of classes to see them as a table.";
    if (!column?.codes) return;
    const clips = new Map(), alike = new Map();
    for (let at = 0; at < n; at++) {
      const code = column.codes[at];
      let same = 0;
      for (let place = 0; place < data.k; place++) same += column.codes[near[at * data.k + place]] === code;
      clips.set(code, (clips.get(code) ?? 0) + 1);
      alike.set(code, (alike.get(code) ?? 0) + same / data.k);
    }
    const title = (text, kind) => { const cell = make("th", { textContent: text, className: kind }); cell.scope = "col"; return cell; };
    head.append(make("tr", {}, title(column.name, "t"), title("Clips", "n"), title("Neighbours of its class", "n")));
    const rows = [...clips].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 200).map(([code, count]) => {
      const name = make("th", { textContent: column.values[code] ?? "no value" });
      name.scope = "row";
      return make("tr", {}, name, make("td", { className: "n", textContent: withCommas(count) }), make("td", { className: "n", textContent: `${Math.round((100 * alike.get(code)) / count)} %` }));
    });
    body.append(...rows);
    if (clips.size > 200) body.append(make("tr", {}, make("td", { className: "dim", textContent: `and ${withCommas(clips.size - 200)} more` })));
  };
  const describe = () => {
    const by = state.column ? `, coloured by ${state.column.name}` : "";
    canvas.setAttribute("aria-label", `Map of ${withCommas(n)} clips of ${data.of}${by}. A table of the classes is below the map; the search box finds clips.`);
  };

  const recolour = (which) => {
    state.column = which >= 0 ? columns[which] : null;
    state.hidden = new Set();
    [state.from, state.to] = [-Infinity, Infinity];
    sprites = new Map();
    restyle();
    refilter();
    tellLegend();
    tellTable();
    tellClip();
    describe();
    if ($("find").value) search();
    redraw();
  };
  const choices = columns.map((column, which) => [column, which]).filter(([column]) => column.kind !== "text" && (column.numbers || column.values.length > 0));
  $("colour").append(...choices.map(([column, which]) => make("option", { value: which, textContent: column.name })), make("option", { value: -1, textContent: "nothing" }));
  $("colour").value = String(data.colour);
  $("colour").addEventListener("change", () => recolour(Number($("colour").value)));
  $("heard").hidden = data.audio !== "embedded";
  $("aloud").hidden = data.audio === "none";
  $("only-heard").addEventListener("change", filterChanged);
  page.onTheme(() => { readTheme(); sprites = new Map(); tellLegend(); tellClip(); if ($("find").value) search(); redraw(); });
  readTheme();
  recolour(data.colour);
})();
