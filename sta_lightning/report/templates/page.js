// A click on a heading sorts by its column, largest first; another click turns the order round.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (body.rows.length < 3) continue;
  const headings = table.tHead.rows[table.tHead.rows.length - 1].cells;
  [...headings].forEach((heading, place) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") === "descending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const text = (row) => row.cells[place].textContent.trim().replace("\u2212", "-");
      const order = (a, b) => {
        const [x, y] = [parseFloat(text(a)), parseFloat(text(b))];
        if (isNaN(x) && isNaN(y)) return (up ? 1 : -1) * text(a).localeCompare(text(b));
        return isNaN(x) - isNaN(y) || (up ? x - y : y - x);
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}
