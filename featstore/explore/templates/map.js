// One map: draws the clips on a canvas, and reports what the pointer and the keys do on it to `on`.
const createMap = (space, figure, on) => {
  const { n, k } = clips, { theme } = marks, { xy, near } = space;
  const canvas = figure.querySelector("canvas"), context = canvas.getContext("2d"), button = (name) => figure.querySelector(`[data-do=${name}]`);

  // --- the view -----------------------------------------------------------------------------------------------------------
  const rangeOf = (axis) => {
    let low = Infinity, high = -Infinity;
    for (let at = axis; at < xy.length; at += 2) {
      if (xy[at] < low) low = xy[at];
      if (xy[at] > high) high = xy[at];
    }
    return [low, high];
  };
  const boxOf = ([left, right], [bottom, top]) => ({ x: (left + right) / 2, y: (bottom + top) / 2, width: right - left || 1, height: top - bottom || 1 });
  const frame = boxOf([space.low[0], space.high[0]], [space.low[1], space.high[1]]), all = boxOf(rangeOf(0), rangeOf(1));
  const outliers = [], isOutlier = new Uint8Array(n);  // clips beyond the frame
  for (let at = 0; at < n; at++) {
    if (xy[2 * at] >= space.low[0] && xy[2 * at] <= space.high[0] && xy[2 * at + 1] >= space.low[1] && xy[2 * at + 1] <= space.high[1]) continue;
    outliers.push(at);
    isOutlier[at] = 1;
  }
  const view = { x: 0, y: 0, scale: 1 };
  let width = 0, height = 0, ratio = 1, touched = false, sprites = new Map(), waiting = false;
  const scaleOf = (box) => 0.92 * Math.min(width / box.width, height / box.height);
  const fit = (box = frame) => {
    Object.assign(view, { x: box.x, y: box.y, scale: scaleOf(box) });
    touched = box !== frame;
    redraw();
  };
  const zoom = (factor, x = width / 2, y = height / 2) => {
    const before = view.scale;
    view.scale = Math.max(scaleOf(all) / 4, Math.min(scaleOf(frame) * 4000, before * factor));
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
  const truePlace = (at) => [width / 2 + (xy[2 * at] - view.x) * view.scale, height / 2 - (xy[2 * at + 1] - view.y) * view.scale];
  const inView = ([x, y], margin = 0) => x >= margin && y >= margin && x <= width - margin && y <= height - margin;
  const EDGE = 9;
  const placeOf = (at) => {  // an outlier that is out of view is at the edge
    const [x, y] = truePlace(at);
    return isOutlier[at] ? [Math.max(EDGE, Math.min(width - EDGE, x)), Math.max(EDGE, Math.min(height - EDGE, y))] : [x, y];
  };
  const reveal = (at) => {
    if (inView(placeOf(at), EDGE)) return;
    Object.assign(view, { x: xy[2 * at], y: xy[2 * at + 1] });
    touched = true;
  };

  // --- drawing --------------------------------------------------------------------------------------------------------------
  const order = Uint32Array.from({ length: n }, (_, at) => at);  // shuffled, so that no class covers another
  for (let at = n - 1, seed = 1; at > 0; at--) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const other = seed % (at + 1);
    [order[at], order[other]] = [order[other], order[at]];
  }
  const radius = () => {
    const closer = Math.max(0, Math.log2(view.scale / scaleOf(frame)));
    return Math.min(7, (n > 20000 ? 1.8 : n > 4000 ? 2.4 : n > 600 ? 3.2 : 4.5) + 0.55 * closer);
  };
  const sprite = (style, r) => {
    const name = `${style} ${r}`;
    if (!sprites.has(name)) {
      const half = Math.ceil((1.25 * r + 1) * ratio), made = document.createElement("canvas"), to = made.getContext("2d");
      made.width = made.height = 2 * half;
      to.scale(ratio, ratio);
      marks.outline(to, marks.shapeOf(style), half / ratio, half / ratio, r);
      to.globalAlpha = style === marks.OUT_OF_FOCUS ? 0.45 : n > 4000 ? 0.75 : 0.85;
      to.fillStyle = marks.colourOf(style);
      to.fill();
      if (n <= 4000 && style !== marks.OUT_OF_FOCUS) {  // a thin outline, for light colours on a light background
        to.globalAlpha = 0.4;
        to.lineWidth = 0.6;
        to.strokeStyle = theme.ink;
        to.stroke();
      }
      sprites.set(name, [made, half]);
    }
    return sprites.get(name);
  };
  const redraw = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };
  const draw = () => {
    if (!width) return;
    const r = Math.round(radius() * 4) / 4, narrowed = state.found || state.selected;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = theme.back;
    context.fillRect(0, 0, canvas.width, canvas.height);
    const scale = view.scale * ratio, left = (width / 2) * ratio - view.x * scale, top = (height / 2) * ratio + view.y * scale;
    for (const focus of narrowed ? [false, true] : [true]) {
      for (let place = 0; place < n; place++) {
        const at = order[place];
        if (!state.shown[at] || (narrowed && Boolean(inFocus(at)) !== focus)) continue;
        const x = left + xy[2 * at] * scale, y = top - xy[2 * at + 1] * scale;
        if (x < -20 || y < -20 || x > canvas.width + 20 || y > canvas.height + 20) continue;
        const [image, half] = sprite(focus ? state.style[at] : marks.OUT_OF_FOCUS, r);
        context.drawImage(image, Math.round(x) - half, Math.round(y) - half);
      }
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (const at of outliers) if (state.shown[at] && !inView(truePlace(at))) arrow(at);
    if (state.pinned >= 0) {
      const own = Array.from(near.subarray(state.pinned * k, (state.pinned + 1) * k));
      context.strokeStyle = theme.ink;
      context.globalAlpha = 0.45;
      context.lineWidth = 1;
      for (const at of own) {
        context.beginPath();
        context.moveTo(...placeOf(state.pinned));
        context.lineTo(...placeOf(at));
        context.stroke();
      }
      context.globalAlpha = 1;
      for (const at of own) ring(at, r + 1.5, 1.25);
      ring(state.pinned, r + 4, 2.5);
    }
    if (state.over >= 0) ring(state.over, r + 2.5, 1.5);
    if (lasso) outlineOf(lasso);
  };
  const arrow = (at) => {  // from the edge towards the clip
    const [x, y] = placeOf(at), [tx, ty] = truePlace(at);
    context.save();
    context.translate(x, y);
    context.rotate(Math.atan2(ty - y, tx - x));
    context.beginPath();
    context.moveTo(7, 0);
    context.lineTo(-4, -5);
    context.lineTo(-4, 5);
    context.closePath();
    context.fillStyle = marks.colourOf(inFocus(at) ? state.style[at] : marks.OUT_OF_FOCUS);
    context.fill();
    context.restore();
  };
  const ring = (at, r, thick) => {
    const [x, y] = placeOf(at);
    marks.outline(context, marks.shapeOf(state.style[at]), x, y, Math.max(1, r - 1.5));
    context.fillStyle = marks.colourOf(state.style[at]);
    context.fill();
    context.beginPath();
    context.arc(x, y, r, 0, 7);
    context.lineWidth = thick;
    context.strokeStyle = theme.ink;
    context.stroke();
  };
  const outlineOf = (corners) => {
    context.beginPath();
    corners.forEach((corner) => context.lineTo(...corner));
    context.closePath();
    context.globalAlpha = 0.08;
    context.fillStyle = theme.ink;
    context.fill();
    context.globalAlpha = 1;
    context.lineWidth = 1.5;
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

  // --- the clip at a position: a grid over the frame, so that a hover tests few clips -----------------------------------------
  const side = Math.max(1, Math.round(Math.sqrt(n / 2)));
  const cellOf = (value, axis) => Math.max(0, Math.min(side - 1, Math.floor(((value - space.low[axis]) / (axis ? frame.height : frame.width)) * side)));
  const cellAt = (at) => cellOf(xy[2 * at + 1], 1) * side + cellOf(xy[2 * at], 0);
  const cellStart = new Uint32Array(side * side + 1), inCell = new Uint32Array(n);
  for (let at = 0; at < n; at++) cellStart[cellAt(at) + 1]++;
  for (let cell = 0; cell < side * side; cell++) cellStart[cell + 1] += cellStart[cell];
  const filled = cellStart.slice();
  for (let at = 0; at < n; at++) inCell[filled[cellAt(at)]++] = at;
  const clipAt = (x, y, reach) => {
    const wx = view.x + (x - width / 2) / view.scale, wy = view.y - (y - height / 2) / view.scale, r = reach / view.scale;
    let best = -1, least = reach * reach;
    const test = (at) => {
      const [px, py] = placeOf(at), distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance <= least && state.shown[at] && inFocus(at)) [best, least] = [at, distance];
    };
    for (let row = cellOf(wy - r, 1); row <= cellOf(wy + r, 1); row++) {
      for (let column = cellOf(wx - r, 0); column <= cellOf(wx + r, 0); column++) {
        inCell.subarray(cellStart[row * side + column], cellStart[row * side + column + 1]).forEach(test);
      }
    }
    outliers.forEach(test);
    return best;
  };
  const clipsInside = (corners) => {  // corners of a polygon; by the even-odd rule
    const inside = new Uint8Array(n);
    for (let at = 0; at < n; at++) {
      if (!state.shown[at] || (state.found && !state.found[at])) continue;
      const [x, y] = placeOf(at);
      for (let one = 0, other = corners.length - 1; one < corners.length; other = one++) {
        const [x1, y1] = corners[one], [x2, y2] = corners[other];
        if (y1 > y !== y2 > y && x < x1 + ((y - y1) / (y2 - y1)) * (x2 - x1)) inside[at] ^= 1;
      }
    }
    return inside;
  };

  // --- pointers and keys ------------------------------------------------------------------------------------------------------
  const pointers = new Map();
  let travelled = 0, lasso = null;
  const pointOf = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  const reach = (event) => (event.pointerType === "touch" ? 22 : radius() + 6);
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, pointOf(event));
    if (pointers.size === 1) travelled = 0;
    lasso = pointers.size === 1 && (state.lasso || event.shiftKey) ? [pointOf(event)] : null;
    on.hover(-1, event);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = pointOf(event), before = pointers.get(event.pointerId);
    if (!before) {
      on.hover(clipAt(x, y, reach(event)), event);
      return;
    }
    travelled += Math.abs(x - before[0]) + Math.abs(y - before[1]);
    if (lasso) {
      lasso.push([x, y]);
      redraw();
    } else if (pointers.size === 2) {
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
    const was = pointers.size, corners = lasso;
    pointers.delete(event.pointerId);
    if (pointers.size) return;
    canvas.classList.remove("moving");
    lasso = null;
    redraw();
    if (event.type !== "pointerup" || was !== 1) return;
    if (travelled <= 4) on.pin(clipAt(...pointOf(event), reach(event)));
    else if (corners) on.select(clipsInside(corners));
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", (event) => on.hover(-1, event));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...pointOf(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (event.key in steps) move(...steps[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") fit();
    else if (event.key === "Enter") on.pin(clipAt(width / 2, height / 2, Math.hypot(width, height)));
    else if (event.key === "s") on.select(clipsInside([[0, 0], [width, 0], [width, height], [0, height]]));
    else if (event.key === "Escape") on.clear();
    else return;
    event.preventDefault();
  });
  button("closer").addEventListener("click", () => zoom(1.6));
  button("farther").addEventListener("click", () => zoom(1 / 1.6));
  button("fit").addEventListener("click", () => fit());
  button("all").addEventListener("click", () => fit(all));
  if (outliers.length) {
    figure.querySelector(".beyond").hidden = false;
    figure.querySelector(".beyond span").textContent = `${outliers.length.toLocaleString("en-US")} far clip${outliers.length === 1 ? " is an arrow" : "s are arrows"} at the edge.`;
  }
  const describe = (text) => canvas.setAttribute("aria-label", text);
  return { name: space.name, redraw, reveal, describe, forgetSprites: () => { sprites = new Map(); } };
};
