// Colour and shape of a class. The eight colours of Okabe and Ito, darker or lighter where the background needs it, are
// distinct for every kind of colour vision; four shapes repeat the distinction, and make sixteen classes distinct.
const marks = (() => {
  const TOP = 16, OTHER = TOP, NONE = TOP + 1, RAMP = 32, NO_NUMBER = 255, OUT_OF_FOCUS = 254;
  const PALETTES = {
    light: ["#0072b2", "#d97f00", "#009e73", "#cc79a7", "#c24e00", "#56b4e9", "#d4bf00", "#2b2f33"],
    dark: ["#4aa3e0", "#e69f00", "#22c295", "#e08bbd", "#f0703a", "#8ad0ff", "#f0e442", "#eef1f4"],
  };
  const SHAPES = ["circle", "square", "triangle", "diamond"];
  const shapeOf = (style) => (state.column?.numbers || style >= TOP ? "circle" : SHAPES[(style + (style >> 3)) % 4]);
  // viridis, without the end that is close to the background
  const VIRIDIS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37]];
  const rampAt = (share, dark) => {
    const place = (dark ? 0.22 + 0.78 * share : 0.88 * share) * (VIRIDIS.length - 1), low = Math.min(VIRIDIS.length - 2, Math.floor(place));
    return `rgb(${VIRIDIS[low].map((value, channel) => Math.round(value + (VIRIDIS[low + 1][channel] - value) * (place - low))).join(",")})`;
  };
  const theme = {};
  const readTheme = () => {
    const dark = page.isDark();
    Object.assign(theme, { dark, palette: PALETTES[dark ? "dark" : "light"], ink: dark ? "#ffffff" : "#000000", back: dark ? "#14171a" : "#ffffff", dim: dark ? "#59636e" : "#c3cad1", none: dark ? "#76818d" : "#98a2ad" });
  };
  const colourOf = (style) => {
    if (style === NO_NUMBER) return theme.none;
    if (style === OUT_OF_FOCUS) return theme.dim;
    if (state.column?.numbers) return rampAt(style / (RAMP - 1), theme.dark);
    return style === OTHER || style === NONE ? theme.none : theme.palette[style % 8];
  };
  const restyle = () => {
    const { column, style } = state;
    if (!column) style.fill(0);
    else if (column.numbers) {
      const sorted = column.numbers.filter((value) => !Number.isNaN(value)).sort();
      state.low = sorted.length ? sorted[Math.floor(0.01 * (sorted.length - 1))] : 0;
      state.high = sorted.length ? sorted[Math.ceil(0.99 * (sorted.length - 1))] : 1;
      const span = state.high - state.low || 1;
      for (let at = 0; at < clips.n; at++) {
        const share = (column.numbers[at] - state.low) / span;
        style[at] = Number.isNaN(share) ? NO_NUMBER : Math.max(0, Math.min(RAMP - 1, Math.floor(share * RAMP)));
      }
    } else {
      const some = column.values.length;
      for (let at = 0; at < clips.n; at++) {
        const code = column.codes[at];
        style[at] = code >= some ? NONE : code < TOP ? code : OTHER;
      }
    }
  };
  const outline = (to, shape, x, y, r) => {
    to.beginPath();
    if (shape === "square") to.rect(x - 0.86 * r, y - 0.86 * r, 1.72 * r, 1.72 * r);
    else if (shape === "triangle") { to.moveTo(x, y - 1.1 * r); to.lineTo(x + 1.05 * r, y + 0.8 * r); to.lineTo(x - 1.05 * r, y + 0.8 * r); to.closePath(); }
    else if (shape === "diamond") { to.moveTo(x, y - 1.2 * r); to.lineTo(x + 1.2 * r, y); to.lineTo(x, y + 1.2 * r); to.lineTo(x - 1.2 * r, y); to.closePath(); }
    else to.arc(x, y, r, 0, 7);
  };
  return { TOP, OTHER, NONE, OUT_OF_FOCUS, theme, readTheme, shapeOf, colourOf, rampAt, restyle, outline };
})();
