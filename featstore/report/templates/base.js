"use strict";
// What every page can do: `page` is all that the script after this one may count on.
const page = (() => {
  // Light or dark: what the reader's system says, until asked.
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)"), listeners = [];
  const isDark = () => (root.style.colorScheme ? root.style.colorScheme === "dark" : system.matches);
  const tell = () => listeners.forEach((listener) => listener());
  document.getElementById("theme").addEventListener("click", () => {
    root.style.colorScheme = isDark() ? "light" : "dark";
    tell();
  });
  system.addEventListener("change", tell);

  const tip = document.getElementById("tip");
  const showTip = (text, at) => {
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(at.clientX + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${at.clientY + 18 + box.height > innerHeight ? at.clientY - box.height - 10 : at.clientY + 18}px`;
  };
  return { isDark, onTheme: (listener) => listeners.push(listener), showTip };
})();
