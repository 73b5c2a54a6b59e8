"use strict";
// Sorting, hiding, reading values off a chart, opening all sections. Without this script the page says the same.
(() => {
  document.documentElement.classList.add("js");

  // What a reader has hidden or sorted outlives the reloads of a page that is being watched, and
  // the last of them, after which it is not.
  const watched = document.querySelector('meta[http-equiv="refresh"]') !== null;
  const reloaded = performance.getEntriesByType("navigation")[0]?.type === "reload";
  const own = (key) => location.pathname + " " + key;
  const remember = (key, value) => {
    if (!watched) return;
    try { sessionStorage.setItem(own(key), JSON.stringify(value)); } catch { /* not allowed here */ }
  };
  const recall = (key) => {
    if (!reloaded) return null;
    try { return JSON.parse(sessionStorage.getItem(own(key))); } catch { return null; }
  };

  // --- tables ---

  // A number where the text begins with one, seconds for h:mm:ss, null for nothing at all.
  const value = (cell) => {
    const text = cell.textContent.trim();
    if (text === "–" || text === "") return null;
    const time = /^(\d+):(\d\d):(\d\d)$/.exec(text);
    if (time) return 3600 * time[1] + 60 * time[2] + Number(time[3]);
    const number = /^(?:< )?([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w(])/.exec(text);
    return number ? Number(number[1].replaceAll(",", "")) : text;
  };

  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, "en", { numeric: true });
  };

  const sort = (table, column, direction) => {
    const body = table.tBodies[0];
    const sign = direction === "descending" ? -1 : 1;
    const keyed = table.original.map((row) => [value(row.cells[column]), row]);
    if (direction !== "none") {
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null); // nothing comes last
        return sign * compare(a, b);
      });
    }
    body.append(...keyed.map(([, row]) => row));
    for (const [index, head] of [...table.tHead.rows[0].cells].entries()) {
      head.setAttribute("aria-sort", index === column ? direction : "none");
    }
  };

  const next = { none: "ascending", ascending: "descending", descending: "none" };

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const name = "sort " + table.caption.id;
    table.original = [...table.tBodies[0].rows];
    for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const direction = next[head.getAttribute("aria-sort")];
        sort(table, column, direction);
        remember(name, [column, direction]);
      });
    }
    const before = recall(name);
    if (before && before[0] < table.tHead.rows[0].cells.length) sort(table, ...before);
  }

  // --- charts ---

  const create = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, held] of Object.entries(attributes)) made.setAttribute(key, held);
    return made;
  };
  const fixed = (number) => (number === null ? "–" : number.toFixed(2));
  const loss3 = (number) => (number === null ? "–" : number.toFixed(3));

  const chart = (figure) => {
    const data = JSON.parse(figure.querySelector("script.figures").textContent);
    const plot = figure.querySelector(".plot");
    const svg = plot.querySelector("svg");
    const at = figure.querySelector(".at");
    const rows = [...figure.querySelectorAll("tr[data-line]")];
    const lines = rows.map((row) => [...svg.querySelectorAll(`[data-line="${row.dataset.line}"]`)]);
    const colours = rows.map((row) => row.querySelector("svg").classList[0]);
    const last = data.x.length - 1;
    const end = rows.map((row) => [...row.querySelectorAll("[data-figure]")].map((cell) => cell.textContent));
    const [[low, bottom], [high, top]] = data.y;
    const place = (error) => bottom + ((error - low) / (high - low)) * (top - bottom);
    let index = null;

    const pointer = create("g", { class: "pointer off" });
    const cursor = create("path", { class: "cursor" });
    const dots = colours.map((colour) => create("circle", { class: "dot " + colour, r: 4.5 }));
    pointer.append(cursor, ...dots);
    svg.append(pointer);

    const hidden = (k) => rows[k].classList.contains("hidden");

    const show = (wanted) => {
      index = wanted;
      pointer.classList.toggle("off", index === null);
      at.textContent = index === null ? "at the end" : "at iteration " + data.x[index].toLocaleString("en-US");
      if (index !== null) cursor.setAttribute("d", `M${data.px[index]} ${top}V${bottom}`);
      const spoken = [];
      rows.forEach((row, k) => {
        const cells = row.querySelectorAll("[data-figure]");
        if (index === null) {
          cells.forEach((cell, column) => { cell.textContent = end[k][column]; });
          return;
        }
        const line = data.lines[k];
        const error = line.error[index];
        const figures = { error: fixed(error), loss: loss3(line.loss[index]), span: "–" };
        if (line.runs > 1 && error !== null) figures.span = fixed(line.low[index]) + "–" + fixed(line.high[index]);
        cells.forEach((cell) => { cell.textContent = figures[cell.dataset.figure]; });
        const seen = error !== null && error <= high && !hidden(k);
        dots[k].classList.toggle("off", !seen);
        if (seen) {
          dots[k].setAttribute("cx", data.px[index]);
          dots[k].setAttribute("cy", place(error));
        }
        if (error !== null && !hidden(k)) {
          spoken.push(row.querySelector(".name").textContent + " " + fixed(error) + " %");
        }
      });
      plot.setAttribute("aria-valuenow", data.x[index ?? last]);
      plot.setAttribute("aria-valuetext",
        index === null ? "at the end" : at.textContent + ": " + spoken.join("; "));
    };

    // Focus and arrow keys read the chart as a slider over iterations.
    plot.tabIndex = 0;
    for (const [name, held] of Object.entries({
      role: "slider", "aria-label": "Read values at an iteration: " + figure.querySelector("figcaption").textContent,
      "aria-valuemin": data.x[0], "aria-valuemax": data.x[last],
    })) plot.setAttribute(name, held);
    const leap = Math.max(1, Math.round(last / 10));
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -leap, PageUp: leap };
    plot.addEventListener("keydown", (event) => {
      let wanted;
      if (event.key in steps) wanted = (index ?? last) + steps[event.key];
      else if (event.key === "Home") wanted = 0;
      else if (event.key === "End") wanted = last;
      else if (event.key === "Escape") { show(null); return; } else return;
      event.preventDefault();
      show(Math.min(last, Math.max(0, wanted)));
    });
    plot.addEventListener("blur", () => show(null));
    const follow = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      let nearest = 0;
      data.px.forEach((px, k) => { if (Math.abs(px - x) < Math.abs(data.px[nearest] - x)) nearest = k; });
      show(nearest);
    };
    plot.addEventListener("pointermove", follow);
    plot.addEventListener("pointerdown", follow);
    plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") show(null); });
    show(null);

    // A click on a variant, or Enter, hides its lines.
    rows.forEach((row, k) => {
      const key = row.querySelector(".key");
      const name = "hide " + figure.id + " " + key.textContent;
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Hide or show";
      const set = (off) => {
        row.classList.toggle("hidden", off);
        for (const part of lines[k]) part.classList.toggle("off", off);
        button.setAttribute("aria-pressed", String(!off));
        show(index);
      };
      button.append(...key.childNodes);
      key.append(button);
      button.addEventListener("click", () => {
        set(!hidden(k));
        remember(name, hidden(k));
      });
      set(recall(name) === true);
    });
  };

  for (const figure of document.querySelectorAll("figure.chart")) chart(figure);

  // --- folds ---

  const folds = [...document.querySelectorAll("details")];
  const named = (fold) => "open " + (fold.querySelector("section")?.id ?? folds.indexOf(fold));
  const opener = document.createElement("button");
  const isOpen = () => folds.every((fold) => fold.open);
  const label = () => { opener.textContent = isOpen() ? "Close all sections" : "Open all sections"; };
  opener.type = "button";
  opener.className = "opener";
  opener.addEventListener("click", () => {
    const wanted = !isOpen();
    for (const fold of folds) fold.open = wanted;
  });
  document.querySelector(".folds").before(opener);
  for (const fold of folds) {
    if (recall(named(fold)) === true) fold.open = true;
    fold.addEventListener("toggle", () => {
      remember(named(fold), fold.open);
      label();
    });
  }
  label();

  // Browsers that do not do so themselves: a link opens the folds around its target, and paper has
  // everything.
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    let closed = false;
    for (let at = target.closest("details"); at; at = at.parentElement.closest("details")) {
      closed ||= !at.open;
      at.open = true;
    }
    if (closed) target.scrollIntoView({ behavior: "instant" });
  };
  addEventListener("hashchange", reveal);
  reveal();
  let before = [];
  addEventListener("beforeprint", () => {
    before = folds.filter((fold) => !fold.open);
    for (const fold of before) fold.open = true;
  });
  addEventListener("afterprint", () => { for (const fold of before) fold.open = false; });

  // --- a page that loads itself again stays where it was ---

  const top = recall("scroll");
  if (top) document.documentElement.scrollTo({ top, behavior: "instant" });
  addEventListener("pagehide", () => remember("scroll", scrollY));
})();
