// Keeps an open page up to date, shows the heat map, takes dropped files, has keys for the PIN.
// Without it: reload.
"use strict";
const POLL = 5000, SHORTEST = 500;
const lost = document.getElementById("lost");
// Where the head alone is live, any page that is quickly made has it: the answer to a form has no
// address of its own, and a check of the audit trail or statistics would be made for nothing.
const source = new URL(document.querySelector("main [data-live]") ? location.href : "/alerts", location.href);
let timer = 0, busy = false, again = false;

async function refresh() {
  if (busy) { again = true; return; }
  busy = true;
  try {
    const answer = await fetch(source, { headers: { accept: "text/html" } });
    if (answer.redirected && new URL(answer.url).pathname !== source.pathname) location.assign(answer.url);
    if (answer.ok) take(new DOMParser().parseFromString(await answer.text(), "text/html"));
    lost.hidden = answer.status < 500;
  } catch { lost.hidden = false; }
  await new Promise(done => setTimeout(done, SHORTEST));
  busy = false;
  if (again) { again = false; refresh(); }
}

// Children that are the same stay, so that focus stays and only what is new is read aloud.
function take(fresh) {
  if (fresh.getElementById("picture") && document.querySelector(".no-picture")) location.reload();
  for (const part of document.querySelectorAll("[data-live]")) {
    const wanted = fresh.getElementById(part.id);
    if (!wanted || wanted.isEqualNode(part)) continue;
    const old = new Map([...part.children].filter(child => child.id).map(child => [child.id, child]));
    const focused = document.activeElement?.closest("[data-live] > [id]")?.id;
    const kept = [...wanted.childNodes].map(child => {
      const own = child.id && old.get(child.id);
      return own && own.isEqualNode(child) ? own : document.importNode(child, true);
    });
    let place = part.firstChild;
    for (const child of kept) {
      if (child === place) place = place.nextSibling; else part.insertBefore(child, place);
    }
    while (place) { const next = place.nextSibling; place.remove(); place = next; }
    if (focused && !document.activeElement?.closest(`#${CSS.escape(part.id)}`)) {
      document.getElementById(focused)?.querySelector("a, button")?.focus();
    }
  }
}

if (document.querySelector("[data-live]")) {
  const stream = new EventSource("/changes");
  const poll = () => { timer ||= setInterval(refresh, POLL); };
  stream.onopen = () => { clearInterval(timer); timer = 0; lost.hidden = true; };
  stream.onmessage = refresh;
  stream.onerror = () => { refresh(); poll(); };
}

const toggle = document.getElementById("toggle"), picture = document.getElementById("picture");
toggle?.addEventListener("submit", event => {
  event.preventDefault();
  const button = toggle.querySelector("button"), on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(on));
  picture.src = on ? picture.dataset.map : picture.dataset.picture;
});

// A touch screen has no keyboard.
const keypad = document.getElementById("keypad"), pin = document.getElementById("pin");
if (keypad) {
  keypad.hidden = false;
  keypad.addEventListener("click", event => {
    const key = event.target.closest("button");
    if (key) pin.value = key.value ? pin.value + key.value : pin.value.slice(0, -1);
  });
}

const upload = document.getElementById("upload");
if (upload) {
  const stop = event => { event.preventDefault(); upload.classList.toggle("over", event.type === "dragover"); };
  for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, stop);
  document.addEventListener("drop", event => {
    upload.querySelector("input[type=file]").files = event.dataTransfer.files;
    if (event.dataTransfer.files.length) upload.requestSubmit();
  });
}
