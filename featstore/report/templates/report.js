(() => {
  const { showTip } = page;
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Sorting: numbers by data-v or by their text, text alphabetically; cells without a value are last, and each tbody is sorted separately.
  const keyOf = (row, at, numeric) => {
    const cell = row.cells[at];
    if (!numeric) return cell.textContent.trim().toLocaleLowerCase();
    const value = cell.dataset.v ?? cell.textContent;
    return value === "" || Number.isNaN(Number(value)) ? null : Number(value);
  };
  const sort = (head) => {
    const table = head.closest("table"), at = head.cellIndex, numeric = head.classList.contains("n");
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numeric;
    all("th[aria-sort]", table).forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !("fixed" in row.dataset));
      const keyed = rows.map((row) => [keyOf(row, at, numeric), row]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const order = numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
        return down ? -order : order;
      });
      body.append(...keyed.map(([, row]) => row));
    }
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.sort");
    if (button) sort(button.closest("th"));
  });

  // A printed page shows everything except provenance, and the definitions of columns once; afterwards the state of the
  // screen is restored.
  const wanted = () => [...all("details.task, details.part:not(.key), .banner details"), ...all("details.key").slice(0, 1)];
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = wanted().filter((each) => !each.open);
    opened.forEach((each) => { each.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((each) => { each.open = false; }));
  document.getElementById("print").addEventListener("click", () => print());
  const setAll = (open) => all("details.task").forEach((each) => { each.open = open; });
  document.getElementById("open-all")?.addEventListener("click", () => setAll(true));
  document.getElementById("close-all")?.addEventListener("click", () => setAll(false));

  // A figure as an SVG file of its own: light colours in place of the variables of the page, and the legend below.
  const plain = (colour) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.cssText = `color-scheme: light; color: ${colour}`;
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };
  const svgText = (figure) => {
    const svg = figure.querySelector("svg"), copy = svg.cloneNode(true), make = (name, attributes, text = "") => {
      const made = copy.appendChild(document.createElementNS("http://www.w3.org/2000/svg", name));
      Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
      made.textContent = text;
    };
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    const size = parseFloat(getComputedStyle(svg.querySelector("text")).fontSize);
    const legend = figure.querySelector(".legend") ?? document.querySelector("#result .legend");
    const names = all("li:has(.dot)", legend), row = size * 1.5;
    names.forEach((name, at) => {
      const y = height + row * (at + 1), colour = name.querySelector(".dot").style.getPropertyValue("--c");
      const dot = name.querySelector(".dot"), side = size * 0.6, round = dot.matches(".s1, .s2") ? 0 : side / 2;
      const turn = dot.matches(".s2") ? `rotate(45 ${size} ${y - size / 3})` : "";
      make("rect", { x: size - side / 2, y: y - size / 3 - side / 2, width: side, height: side, rx: round, fill: colour, transform: turn });
      make("text", { x: 2 * size, y, fill: "var(--ink)" }, name.textContent);
    });
    const box = [width, height + row * (names.length + 1)];
    const attributes = { viewBox: `0 0 ${box.join(" ")}`, width: box[0], height: box[1], color: "var(--ink)", "font-size": size, "font-family": "sans-serif" };
    Object.entries(attributes).forEach(([key, value]) => copy.setAttribute(key, value));
    all("text:not([fill])", copy).forEach((text) => text.setAttribute("fill", "currentColor"));
    return new XMLSerializer().serializeToString(copy).replace(/var\(--\w+\)/g, plain);
  };
  document.addEventListener("click", (event) => {
    const figure = event.target.closest("button.save")?.closest("figure");
    if (!figure) return;
    const link = document.createElement("a");
    link.download = `${figure.dataset.name.replace(/[^\w]+/g, "-")}.svg`;
    link.href = URL.createObjectURL(new Blob([svgText(figure)], { type: "image/svg+xml" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // A link to a target inside closed details opens them.
  const reveal = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (!target) return;
    for (let each = target; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  reveal();

  // Hover: cells of tables show their interval, cells of matrices the true and the predicted class.
  const matrixOf = new WeakMap();
  const matrix = (image) => {
    if (!matrixOf.has(image)) {
      const counts = image.dataset.counts.split(";").map((line) => line.split(",").map(Number));
      matrixOf.set(image, { classes: JSON.parse(image.closest("[data-classes]").dataset.classes), counts });
    }
    return matrixOf.get(image);
  };
  const describe = (name, as, n, line) => `${name} predicted as ${as}: ${n} of ${line.reduce((sum, each) => sum + each, 0)}`;
  const tipOf = (event) => {
    const image = event.target.closest("img.cm");
    if (image) {
      const { classes, counts } = matrix(image), box = image.getBoundingClientRect(), last = classes.length - 1;
      const place = (at, size) => Math.min(last, Math.max(0, Math.floor((at / size) * classes.length)));
      const row = place(event.clientY - box.top, box.height), column = place(event.clientX - box.left, box.width);
      return describe(classes[row], classes[column], counts[row][column], counts[row]);
    }
    const cell = event.target.closest("table.cm tbody td");
    if (cell) {
      const line = [...cell.parentElement.cells].slice(1).map((each) => Number(each.textContent || 0));
      const heads = cell.closest("table").tHead.rows[0].cells;
      return describe(cell.parentElement.cells[0].textContent, heads[cell.cellIndex].textContent, Number(cell.textContent || 0), line);
    }
    return event.target.closest("[data-tip]")?.dataset.tip;
  };
  document.addEventListener("pointermove", (event) => {
    showTip(event.target.closest ? tipOf(event) : "", event);
  });
  document.addEventListener("pointerleave", () => showTip(""));
})();
