// One user at a time, with a filter. Without this script all users stand below one another.
(() => {
  const bar = document.querySelector(".browse");
  if (!bar) return;
  const users = [...document.querySelectorAll("article.user")];
  const texts = users.map((user) => user.textContent.toLowerCase());
  const input = bar.querySelector("input");
  const count = bar.querySelector(".count");
  const buttons = [...bar.querySelectorAll("button")];
  let found = users.map((_, i) => i);
  let at = 0;

  function show() {
    users.forEach((user, i) => { user.hidden = i !== found[at]; });
    count.textContent = found.length ? `${at + 1} of ${found.length}` : "no user holds all of these words";
    buttons.forEach((button) => {
      const next = at + Number(button.dataset.step);
      button.disabled = next < 0 || next >= found.length;
    });
  }

  buttons.forEach((button) => button.addEventListener("click", () => { at += Number(button.dataset.step); show(); }));
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = users.map((_, i) => i).filter((i) => words.every((word) => texts[i].includes(word)));
    at = 0;
    show();
  });
  bar.hidden = false;
  show();
})();
