"use strict";
// Functions of every page: scripts that follow use `page` only.
const page = (() => {
  // Light or dark: the setting of the system, until the button is clicked.
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)"), listeners = [];
  const isDark = () => (root.style.colorScheme ? root.style.colorScheme === "dark" : system.matches);
  const notify = () => listeners.forEach((listener) => listener());
  document.getElementById("theme").addEventListener("click", () => {
    root.style.colorScheme = isDark() ? "light" : "dark";
    notify();
  });
  system.addEventListener("change", notify);

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
