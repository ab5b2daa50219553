// Text with marked pieces. Every string goes into the page as a text node, never as markup.
// data.pieces: {text, kind, title, pick, chosen}; a piece with a number `pick` can be chosen by a
// click or with the Enter key.

export default function ({ data, parentElement, setTriggerValue }) {
  const box = parentElement.querySelector(".traced");
  if (!data || !box) return;
  box.setAttribute("aria-label", data.alt);
  box.replaceChildren(...data.pieces.map((piece) => {
    if (!piece.kind) return document.createTextNode(piece.text);
    const mark = document.createElement("mark");
    mark.textContent = piece.text;
    mark.className = piece.chosen ? `${piece.kind} chosen` : piece.kind;
    mark.title = piece.title || "";
    if (Number.isInteger(piece.pick)) {
      const pick = () => setTriggerValue("picked", { span: piece.pick });
      mark.tabIndex = 0;
      mark.setAttribute("role", "button");
      mark.setAttribute("aria-pressed", String(Boolean(piece.chosen)));
      mark.addEventListener("click", pick);
      mark.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        pick();
      });
    }
    return mark;
  }));
  box.dataset.ready = data.name;
}
