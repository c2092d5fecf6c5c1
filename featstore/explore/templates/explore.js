// The panels around the maps: controls, the clip and its neighbours, search and selection, legend, table.
(() => {
  const $ = (id) => document.getElementById(id);
  const { n, keys, columns, valueOf, hasSound } = clips;
  const withCommas = (value) => value.toLocaleString("en-US");
  const counted = (count) => `${count ? withCommas(count) : "No"} clip${count === 1 ? "" : "s"}`;
  const make = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const refilter = () => {
    const { column } = state, only = $("only-heard").checked;
    for (let at = 0; at < n; at++) {
      let keep = !only || hasSound(at);
      if (keep && column?.numbers) {
        const value = column.numbers[at];
        keep = Number.isNaN(value) ? state.from === -Infinity && state.to === Infinity : value >= state.from && value <= state.to;
      } else if (keep && column) keep = !state.hidden.has(state.style[at]);
      state.shown[at] = keep ? 1 : 0;
    }
  };

  // --- the maps, which share one state: what is chosen in one is drawn in all ------------------------------------------------
  const tipOf = (at) => [keys[at], ...(state.column ? [`${state.column.name}: ${valueOf(state.column, at) || "no value"}`] : [])].join("\n");
  const on = {
    hover: (at, event) => {
      page.showTip(at >= 0 ? tipOf(at) : "", event);
      if (at !== state.over) { state.over = at; redraw(); }
    },
    pin: (at) => pin(at),
    select: (inside) => select(inside.includes(1) ? inside : null),
    clear: () => { pin(-1); select(null); },
  };
  const maps = clips.maps.map((space, at) => createMap(space, document.querySelectorAll("figure.map")[at], on));
  const redraw = () => maps.forEach((map) => map.redraw());
  $("lasso").addEventListener("click", () => {
    state.lasso = !state.lasso;
    $("lasso").setAttribute("aria-pressed", String(state.lasso));
  });

  // --- a clip, its sound, its neighbours ------------------------------------------------------------------------------------
  const markOf = (style) => {
    const made = make("i", { className: `mark ${marks.shapeOf(style)}` });
    made.setAttribute("aria-hidden", "true");
    made.style.setProperty("--c", marks.colourOf(style));
    return made;
  };
  const entry = (at, text) => {
    const label = state.column ? valueOf(state.column, at) : "";
    const button = make("button", { type: "button", title: keys[at] }, markOf(state.style[at]), make("span", { className: "key", textContent: keys[at] }));
    if (label) button.append(make("span", { className: "label", textContent: label, title: label }));
    if (clips.audio === "embedded" && hasSound(at)) button.append(make("span", { textContent: "♪", title: "has sound" }));
    if (text) button.append(make("span", { className: "n", textContent: text }));
    button.addEventListener("click", () => pin(at));
    return make("li", {}, button);
  };
  const pin = (at) => {
    state.pinned = at;
    if (at >= 0) maps.forEach((map) => map.reveal(at));
    showClip();
    if (at >= 0 && $("play").checked) $("clip").querySelector("audio")?.play().catch(() => {});
    redraw();
  };
  const showClip = () => {
    const panel = $("clip"), at = state.pinned;
    panel.replaceChildren();
    if (at < 0) {
      panel.append(make("p", { className: "dim", textContent: "Click a point, or find a clip by its key or a label." }));
      return;
    }
    panel.append(make("h2", { textContent: keys[at] }));
    if (hasSound(at)) {
      const player = make("audio", { controls: true, preload: "none", src: clips.soundOf(at) });
      player.setAttribute("aria-label", `Sound of ${keys[at]}`);
      player.addEventListener("error", () => player.replaceWith(make("p", { className: "dim", textContent: "This clip cannot be played: its shard is not in --data, has changed, or the browser does not support the format." })));
      panel.append(player);
    } else if ($("more-sound")) {
      const link = make("a", { href: "#more-sound", textContent: "How to add sounds" });
      link.addEventListener("click", () => { $("more-sound").open = true; });
      panel.append(make("p", { className: "dim silent" }, "The page does not have the sound of this clip. ", link));
    }
    const list = make("dl");
    for (const column of columns) {
      const value = valueOf(column, at);
      if (value !== "") list.append(make("dt", { textContent: column.name }), make("dd", { textContent: value }));
    }
    panel.append(list);
    for (const { name, near, cosines } of clips.maps) {
      const rows = make("ol", { className: "clips" });
      for (let place = at * clips.k; place < (at + 1) * clips.k; place++) rows.append(entry(near[place], cosines[place].toFixed(3)));
      panel.append(make("h3", { textContent: clips.maps.length > 1 ? `Nearest by cosine in ${name}` : "Nearest by cosine" }), rows);
    }
  };

  // --- search and selection -----------------------------------------------------------------------------------------------------
  const LISTED = 60;
  let lowered = null;
  const matching = (text) => {
    if (!text) return null;
    lowered ??= { keys: keys.map((key) => key.toLowerCase()), values: columns.map((column) => column.codes && column.values.map((value) => value.toLowerCase())) };
    const found = new Uint8Array(n);
    const equals = text.indexOf("="), named = equals > 0 ? columns.findIndex((column) => column.name.toLowerCase() === text.slice(0, equals).trim()) : -1;
    const wanted = named >= 0 ? text.slice(equals + 1).trim() : text;
    columns.forEach((column, which) => {
      if (named >= 0 ? which !== named : column.name.startsWith("(")) return;  // a match of a shard would find all of its clips
      if (!column.codes) {
        if (named === which) for (let at = 0; at < n; at++) if (valueOf(column, at) === wanted) found[at] = 1;
        return;
      }
      const hits = Uint8Array.from([...lowered.values[which].map((value) => (value.includes(wanted) ? 1 : 0)), 0]);
      if (hits.includes(1)) for (let at = 0; at < n; at++) if (hits[column.codes[at]]) found[at] = 1;
    });
    if (named < 0) for (let at = 0; at < n; at++) if (lowered.keys[at].includes(wanted)) found[at] = 1;
    return found;
  };
  const search = () => {
    state.found = matching($("find").value.trim().toLowerCase());
    showFound();
  };
  const select = (inside) => {
    state.selected = inside;
    showFound();
  };
  const showFound = () => {
    $("found").hidden = !state.found && !state.selected;
    $("clear").hidden = !state.selected;
    const listed = [];
    let count = 0;
    for (let at = 0; at < n && !$("found").hidden; at++) {
      if (!state.shown[at] || !inFocus(at)) continue;
      count++;
      if (listed.length < LISTED) listed.push(at);
    }
    const how = !state.selected ? "found" : !state.found ? "selected" : "found in the selection";
    $("count").textContent = `${counted(count)} ${how}${count > LISTED ? `, the first ${LISTED}:` : ""}`;
    $("results").replaceChildren(...listed.map((at) => entry(at, "")));
    redraw();
  };
  $("clear").addEventListener("click", () => select(null));
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
  const countsByStyle = () => {
    const counts = new Map();
    for (const style of state.style) counts.set(style, (counts.get(style) ?? 0) + 1);
    return counts;
  };
  const nameOf = (number) => {
    const values = state.column.values;
    return number === marks.NONE ? "no value" : number === marks.OTHER ? `${withCommas(values.length - marks.TOP)} other${values.length - marks.TOP === 1 ? "" : "s"}` : values[number] || "(empty)";
  };
  const filterChanged = () => { refilter(); showFound(); };
  const showLegend = () => {
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
      const stops = Array.from({ length: 12 }, (_, at) => marks.rampAt(at / 11, marks.theme.dark));
      ramp.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
      legend.append(ramp, make("div", { className: "ends" }, make("span", { textContent: clips.shortNumber(state.low) }), make("span", { textContent: column.name }), make("span", { textContent: clips.shortNumber(state.high) })));
      legend.append(make("div", { className: "range" }, box("from", "from"), box("to", "to")));
      return;
    }
    const list = make("ul", { className: "marks" }), counts = countsByStyle();
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
      list.append(make("li", {}, button));
    }
    if (buttons.length > 1) {
      const all = make("button", { type: "button", textContent: "all" }), none = make("button", { type: "button", textContent: "none" });
      all.addEventListener("click", () => { state.hidden.clear(); pressed(); });
      none.addEventListener("click", () => { state.hidden = new Set(counts.keys()); pressed(); });
      list.append(make("li", { className: "choose" }, all), make("li", { className: "choose" }, none));
    }
    legend.append(list);
  };
  const showTable = () => {
    const table = $("table"), column = state.column, head = table.tHead, body = table.tBodies[0];
    head.replaceChildren();
    body.replaceChildren();
    $("table-caption").textContent = column?.codes
      ? `Classes of ${column.name}, and the share of the ${clips.k} nearest clips of each clip with the same class.`
      : "Colour the map by a field of classes to see them as a table.";
    if (!column?.codes) return;
    const count = new Map(), alike = clips.maps.map(() => new Map());
    const add = (map, code, more) => map.set(code, (map.get(code) ?? 0) + more);
    for (let at = 0; at < n; at++) {
      const code = column.codes[at];
      add(count, code, 1);
      clips.maps.forEach(({ near }, map) => {
        let same = 0;
        for (let place = at * clips.k; place < (at + 1) * clips.k; place++) same += column.codes[near[place]] === code;
        add(alike[map], code, same / clips.k);
      });
    }
    const title = (text, kind) => { const cell = make("th", { textContent: text, className: kind }); cell.scope = "col"; return cell; };
    const heads = clips.maps.map(({ name }) => title(clips.maps.length > 1 ? `Neighbours of its class, ${name}` : "Neighbours of its class", "n"));
    head.append(make("tr", {}, title(column.name, "t"), title("Clips", "n"), ...heads));
    const rows = [...count].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 200).map(([code, some]) => {
      const name = make("th", { textContent: column.values[code] ?? "no value" });
      name.scope = "row";
      const shares = alike.map((map) => make("td", { className: "n", textContent: `${Math.round((100 * map.get(code)) / some)} %` }));
      return make("tr", {}, name, make("td", { className: "n", textContent: withCommas(some) }), ...shares);
    });
    body.append(...rows);
    if (count.size > 200) body.append(make("tr", {}, make("td", { className: "dim", textContent: `and ${withCommas(count.size - 200)} more` })));
  };
  const describe = () => {
    const by = state.column ? `, coloured by ${state.column.name}` : "";
    for (const map of maps) {
      const encoder = maps.length > 1 ? ` in ${map.name}` : "";
      map.describe(`Map of ${withCommas(n)} clips of ${clips.of}${encoder}${by}. A table of the classes is below the map; the search box finds clips.`);
    }
  };

  const recolour = (which) => {
    state.column = which >= 0 ? columns[which] : null;
    state.hidden = new Set();
    [state.from, state.to] = [-Infinity, Infinity];
    maps.forEach((map) => map.forgetSprites());
    marks.restyle();
    refilter();
    showLegend();
    showTable();
    showClip();
    describe();
    showFound();
  };
  const choices = columns.map((column, which) => [column, which]).filter(([column]) => column.kind !== "text" && (column.numbers || column.values.length > 0));
  $("colour").append(...choices.map(([column, which]) => make("option", { value: which, textContent: column.name })), make("option", { value: -1, textContent: "nothing" }));
  $("colour").value = String(clips.colour);
  $("colour").addEventListener("change", () => recolour(Number($("colour").value)));
  $("heard").hidden = clips.audio !== "embedded";
  $("aloud").hidden = clips.audio === "none";
  $("only-heard").addEventListener("change", filterChanged);
  page.onTheme(() => {
    marks.readTheme();
    maps.forEach((map) => map.forgetSprites());
    showLegend();
    showClip();
    showFound();
  });
  marks.readTheme();
  recolour(clips.colour);
})();
