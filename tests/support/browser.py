"""A real browser, and what can be asked of a page by rule: names, order, contrast."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, Page, sync_playwright

__all__ = [
    "ARGUMENTS",
    "CHROMIUM",
    "NO_CHROMIUM",
    "faint_texts",
    "focused_names",
    "launched_browser",
    "unnamed_controls",
]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_CHROMIUM = "there is no Chromium here: install the package chromium"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",  # it needs rights that a container has not
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
]

# As WCAG 2.2 defines the contrast of two colours; what is behind a text is the nearest ground that is not transparent.
_FAINT_TEXTS = """
(least) => {
  const parse = (text) => {
    const [red, green, blue, alpha = 1] = text.match(/[\\d.]+/g).map(Number);
    return { parts: [red, green, blue], alpha };
  };
  const luminance = ({ parts }) => {
    const [red, green, blue] = parts.map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parse(getComputedStyle(each).backgroundColor);
      if (colour.alpha > 0) return colour;
    }
    return { parts: [255, 255, 255], alpha: 1 };
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    const isShown = element.checkVisibility({ visibilityProperty: true }) && element.getClientRects().length;
    if (!own || !isShown || element.disabled || element.closest(".unseen")) continue;
    const [one, other] = [luminance(parse(getComputedStyle(element).color)), luminance(ground(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < least) found.push(`${element.textContent.trim().slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return found;
}
"""

_FOCUSED_NAME = """
() => {
  const element = document.activeElement;
  if (!element || element === document.body) return "";
  const labels = element.labels ? [...element.labels].map((label) => label.textContent.trim()) : [];
  const referred = (element.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean);
  const names = [element.getAttribute("aria-label"), ...referred.map((id) => document.getElementById(id)?.textContent),
                 ...labels, element.textContent.trim()];
  return names.find(Boolean) || element.id || element.tagName;
}
"""


@contextlib.contextmanager
def launched_browser() -> Iterator[Browser]:
    """Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def faint_texts(page: Page, least: float = 4.5) -> list[str]:
    """The visible texts whose contrast with what is behind them is below `least`, and what it is."""
    found: list[str] = page.evaluate(_FAINT_TEXTS, least)
    return found


def unnamed_controls(page: Page) -> list[str]:
    """The controls in the accessibility tree of the page that a screen reader has no name for, and references to ids that do
    not exist or exist twice."""
    unnamed = [line for line in page.locator("body").aria_snapshot().splitlines() if _is_unnamed(line)]
    broken: list[str] = page.evaluate(
        """() => {
          const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
          const twice = ids.filter((id, place) => ids.indexOf(id) !== place);
          const used = ["for", "aria-labelledby", "aria-describedby"].flatMap((name) =>
            [...document.querySelectorAll(`[${name}]`)].flatMap((element) => element.getAttribute(name).split(" ")));
          const missing = used.filter((id) => !ids.includes(id));
          return [...twice.map((id) => `twice: ${id}`), ...missing.map((id) => `nowhere: ${id}`)];
        }"""
    )
    return unnamed + broken


def focused_names(page: Page, steps: int) -> list[str]:
    """What has the focus after each of so many steps with the Tab key."""
    names = []
    for _ in range(steps):
        page.keyboard.press("Tab")
        names.append(page.evaluate(_FOCUSED_NAME))
    return names


def _is_unnamed(line: str) -> bool:
    role = line.strip().removeprefix("- ").rstrip(":")
    return role in {
        "button",
        "textbox",
        "combobox",
        "checkbox",
        "searchbox",
        "spinbutton",
        "img",
        "dialog",
        "link",
    }
