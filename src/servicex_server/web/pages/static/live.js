// Parts of a page that go on: fetched anew from where the page is, as long as they say so.
// An element with an id and data-every="2" is replaced by what the page has for it after 2 seconds.
"use strict";

const keep = (old, fresh) => {
  for (const opened of old.querySelectorAll("details[open][id]")) {
    const same = fresh.querySelector("#" + CSS.escape(opened.id));
    if (same) same.open = true;
  }
};

const swap = (text) => {
  const page = new DOMParser().parseFromString(text, "text/html");
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (!fresh || fresh.outerHTML === old.outerHTML) continue;
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    keep(old, fresh);
    old.replaceWith(document.importNode(fresh, true));
    if (focused) document.getElementById(focused)?.focus();
  }
};

const wait = () => {
  const next = document.querySelector("[data-every]");
  if (next) setTimeout(refresh, 1000 * Number(next.dataset.every));
};

const refresh = async () => {
  try {
    if (!document.hidden) {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.redirected) return location.assign(answer.url);
      if (answer.ok) swap(await answer.text());
    }
  } catch {
    // the service is away for a moment: the page stays as it is
  }
  wait();
};

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = !navigator.clipboard; // which there is only with TLS or on this machine
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}

wait();
