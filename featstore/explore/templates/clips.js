// The clips of the page: fields, sounds, and for each map positions and neighbours, unpacked from base64.
const clips = (() => {
  const data = JSON.parse(document.getElementById("data").textContent), n = data.n;
  const bytes = (text) => {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let at = 0; at < raw.length; at++) out[at] = raw.charCodeAt(at);
    return out.buffer;
  };
  const whole = (text, count) => {  // one, two or four bytes for each number
    const buffer = bytes(text), width = buffer.byteLength / Math.max(1, count);
    return width === 1 ? new Uint8Array(buffer) : width === 2 ? new Uint16Array(buffer) : new Uint32Array(buffer);
  };
  const columns = data.columns.map((column) => ({
    ...column,
    codes: column.codes === undefined ? null : whole(column.codes, n),
    numbers: column.numbers === undefined ? null : new Float32Array(bytes(column.numbers)),
  }));
  const maps = data.maps.map((map) => ({
    ...map,
    xy: new Float32Array(bytes(map.xy)),
    near: whole(map.near, n * data.k),
    cosines: Float32Array.from(new Uint16Array(bytes(map.cosines)), (value) => (value / 65535) * 2 - 1),
  }));
  const numbers = data.numbers === undefined ? null : whole(data.numbers, n);
  const shortNumber = (value) => String(Number(Number(value).toPrecision(6)));
  const valueOf = (column, at) => {
    if (column.numbers) return Number.isNaN(column.numbers[at]) ? "" : shortNumber(column.numbers[at]);
    return column.values[column.codes[at]] ?? "";
  };
  const hasSound = (at) => data.audio === "served" || (data.audio === "embedded" && Object.hasOwn(data.sounds, at));
  const soundOf = (at) => (data.audio === "served" ? `audio/${numbers[at]}` : data.sounds[at]);
  return { n, of: data.of, keys: data.keys, k: data.k, columns, colour: data.colour, maps, audio: data.audio, shortNumber, valueOf, hasSound, soundOf };
})();

// What is selected and shown: one state for all maps, so that a clip that is chosen in one is chosen in all.
const state = {
  column: null, low: 0, high: 1,               // the colour, and the range of its gradient
  hidden: new Set(), from: -Infinity, to: Infinity,
  style: new Uint8Array(clips.n),              // colour and shape of each clip, by the column
  shown: new Uint8Array(clips.n),              // by the legend and by sound
  found: null, selected: null,                 // by the search and by the lasso; null without one
  pinned: -1, over: -1,                        // by a click or a key, and by the pointer
  lasso: false,                                // whether a drag selects
};
const inFocus = (at) => (!state.found || state.found[at]) && (!state.selected || state.selected[at]);
