"use strict";
// What pages do beyond links and forms: keys, marked rows, short URLs. Everything here is also
// possible without it. No state is kept but in the URL.

(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

  // A URL says what was asked for, and not what wasn't.
  document.addEventListener("htmx:configRequest", (event) => {
    const given = event.detail.parameters;
    for (const name of Object.keys(given)) if (given[name] === "") delete given[name];
  });
  document.addEventListener("submit", (event) => {
    if (event.target.method !== "get" || event.target.hasAttribute("hx-get")) return;
    for (const field of event.target.elements)
      if (field.name && field.value === "") {
        field.disabled = true;
        setTimeout(() => (field.disabled = false));
      }
  });

  // A choice filters at once; what is typed, when Enter says that it is complete.
  document.addEventListener("change", (event) => {
    if (event.target.matches("form.filters select")) event.target.form.requestSubmit();
  });

  // --- rows ---

  const rows = () => $$("[data-rows] tbody tr").filter((row) => $("[data-open]", row));
  let at = -1;

  function go(to) {
    const all = rows();
    if (!all.length) return;
    at = Math.max(0, Math.min(all.length - 1, to));
    $$("tr.at").forEach((row) => row.classList.remove("at"));
    all[at].classList.add("at");
    const link = $("[data-open]", all[at]);
    link.focus({ preventScroll: true });
    all[at].scrollIntoView({ block: "nearest" });
  }

  const picked = [];

  function showPicked() {
    const box = $("[data-picked]");
    if (!box) return;
    $$("[data-pick]").forEach((field) => (field.checked = picked.includes(field.value)));
    box.hidden = picked.length === 0;
    const button = $("button", box);
    button.disabled = picked.length !== 2;
    button.textContent = picked.length === 2 ? "Compare these two" : "Mark one more to compare";
    button.classList.toggle("primary", picked.length === 2);
  }

  document.addEventListener("change", (event) => {
    const field = event.target;
    if (!field.matches || !field.matches("[data-pick]")) return;
    event.stopPropagation();
    const place = picked.indexOf(field.value);
    if (place >= 0) picked.splice(place, 1);
    else picked.push(field.value);
    if (picked.length > 2) picked.shift();
    showPicked();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-compare]") && picked.length === 2)
      location.href = "/compare?" + new URLSearchParams({ a: picked[0], b: picked[1] });
    if (event.target.closest("[data-help]")) $("#help").showModal();
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      const text = copy.parentElement.querySelector("pre, code").textContent;
      navigator.clipboard?.writeText(text).then(() => {
        copy.textContent = "Copied";
        setTimeout(() => (copy.textContent = "Copy"), 1500);
      });
    }
  });

  document.addEventListener("htmx:afterSettle", () => {
    $("#said")?.remove();
    at = -1;
    showPicked();
  });
  // An answer that has no place in this page, such as an error's, is a page of its own.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { xhr, target } = event.detail;
    if (xhr.status < 400 || !target.id || xhr.response.includes(`id="${target.id}"`)) return;
    event.preventDefault();
    location.href = event.detail.pathInfo.finalRequestPath;
  });
  document.addEventListener("htmx:sendError", () => say("No answer: has ckreg ui ended?"));

  function say(text) {
    const box = $("#said") || document.createElement("div");
    box.id = "said";
    box.className = "callout bad";
    box.setAttribute("role", "alert");
    box.textContent = text;
    $("main").prepend(box);
  }

  document.addEventListener("htmx:beforeRequest", () => document.body.classList.add("waiting"));
  document.addEventListener("htmx:afterRequest", () => document.body.classList.remove("waiting"));

  // --- keys ---

  const leads = { m: "/", c: "/checkpoints", s: "/storage", d: "/compare" };
  let prefix = 0;

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
    const field = event.target;
    if (field.matches("input:not([type=checkbox]), select, textarea")) {
      if (event.key === "Escape") field.blur();
      return;
    }
    if (performance.now() - prefix < 1200 && leads[event.key]) {
      location.href = leads[event.key];
      return;
    }
    prefix = 0;
    const act = {
      "/": () => {
        const filter = $("[data-filter]") || $(".go input");
        filter.focus();
        filter.select();
      },
      j: () => go(at + 1),
      k: () => go(at - 1),
      x: () => at >= 0 && $("[data-pick]", rows()[at])?.click(),
      n: () => $("[data-next]")?.click(),
      p: () => ($("[data-prev]") ? history.back() : undefined),
      g: () => (prefix = performance.now()),
      "?": () => $("#help").showModal(),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  $$("[data-help]").forEach((button) => (button.hidden = false));
  showPicked();
})();
