// The theme's menu and search buttons of narrow screens are labels, which a keyboard cannot reach.
for (const label of document.querySelectorAll("label.md-header__button[for]")) {
  label.tabIndex = 0;
  label.setAttribute("role", "button");
  if (!label.hasAttribute("aria-label") && !label.title) {
    label.setAttribute("aria-label", label.htmlFor === "__drawer" ? "Menu" : "Search");
  }
  // The theme itself listens to Enter.
  label.addEventListener("keydown", (event) => {
    if (event.key === " ") {
      event.preventDefault();
      label.click();
    }
  });
}
