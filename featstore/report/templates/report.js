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

  // A printed page shows everything except provenance; afterwards the state of the screen is restored.
  const wanted = "details.task, details.part";
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all(wanted).filter((each) => !each.open);
    opened.forEach((each) => { each.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((each) => { each.open = false; }));
  document.getElementById("print").addEventListener("click", () => print());
  const setAll = (open) => all("details.task").forEach((each) => { each.open = open; });
  document.getElementById("open-all")?.addEventListener("click", () => setAll(true));
  document.getElementById("close-all")?.addEventListener("click", () => setAll(false));

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
