// Progressive enhancement: every page works without this file.
"use strict";

// Show times in the reader's time zone.
for (const time of document.querySelectorAll("time")) {
  const at = new Date(time.dateTime);
  time.textContent = at.toLocaleString(document.documentElement.lang, { dateStyle: "long", timeStyle: "short" });
}

// Grow text areas with their text.
const grow = (area) => { area.rows = Math.max(2, Math.min(12, area.value.split("\n").length + Math.floor(area.value.length / 60))); };
for (const area of document.querySelectorAll("textarea")) {
  grow(area);
  area.addEventListener("input", () => grow(area));
}

// After a form, restore the scroll position and announce the result. Errors are shown next to the field.
const place = "popi-place " + location.pathname;
const storage = (() => { try { return sessionStorage; } catch { return null; } })(); // browsers may deny it to embedded pages
const left = storage?.getItem(place) ?? null;
const said = document.querySelector(".said");
storage?.removeItem(place);
said?.focus({ preventScroll: true });
document.querySelector("[aria-invalid]")?.focus();
if (left !== null && !said?.matches(".trouble")) {
  scrollTo(0, Number(left));
  if (said !== null && said.getBoundingClientRect().top < 0) {
    said.classList.add("floating");
    setTimeout(() => said.classList.remove("floating"), 6000);
  }
}
document.addEventListener("submit", () => storage?.setItem(place, String(scrollY)));
document.addEventListener("toggle", (event) => {
  if (event.target.matches("details.edit") && event.target.open) event.target.querySelector("textarea").focus();
}, true);

// Announce a newer version, without changing the page that is being read.
const newer = document.getElementById("newer");
if (newer !== null) {
  const look = async () => {
    if (!document.hidden) {
      const answer = await fetch(newer.dataset.state).catch(() => null);
      if (answer !== null && answer.ok && (await answer.text()) !== newer.dataset.version) {
        newer.hidden = false;
        return;
      }
    }
    setTimeout(look, 5000);
  };
  setTimeout(look, 5000);
}
