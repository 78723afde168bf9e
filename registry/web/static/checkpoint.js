"use strict";
// Copy buttons: the text of the element that data-copies names, or data-copied itself.

(() => {
  async function put(text, element) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // No clipboard outside of https and localhost: select it, and ask the browser the old way.
      if (!element) return false;
      const range = document.createRange();
      range.selectNodeContents(element);
      const selection = getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      return document.execCommand("copy");
    }
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const element = document.getElementById(button.dataset.copies || "");
    const text = button.dataset.copied ?? element?.textContent ?? "";
    const label = button.dataset.label ?? (button.dataset.label = button.textContent);
    button.textContent = (await put(text, element)) ? "Copied" : "Ctrl+C";
    clearTimeout(button.timer);
    button.timer = setTimeout(() => { button.textContent = label; }, 1600);
  });
})();
