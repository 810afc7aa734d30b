// Runs once when the component loads; gets `element`, `props`, `server`, `trigger` and `watch`.
// Shows what server.show returns, looks again while it can be seen, and sends clicks to server.act.
const EVERY_MS = 2000;
const ASK_AGAIN_MS = 4000; // a button that asks for confirmation forgets it after this
const root = element.querySelector(".live");
const note = element.querySelector(".live-note");
let asked = null; // run and action that wait for their second click
let timer = null;
let picked = []; // up to two samples, in the order of their clicks

const keyOf = (button) => `${button.dataset.run}/${button.dataset.do}/${button.dataset.sample ?? ""}`;

function patch(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  const old = new Map([...root.children].map((child) => [child.dataset.key, child]));
  const next = [...template.content.children].map((child) => {
    const before = old.get(child.dataset.key);
    child.source = child.outerHTML;
    return before && before.source === child.source ? before : child;
  });
  const same = next.length === root.children.length && next.every((child, i) => child === root.children[i]);
  if (same) return;
  const focused = root.contains(document.activeElement) ? keyOf(document.activeElement) : null;
  root.replaceChildren(...next);
  showAsked();
  showPicked();
  if (focused) [...root.querySelectorAll("[data-do]")].find((button) => keyOf(button) === focused)?.focus();
}

function showAsked() {
  for (const button of root.querySelectorAll("[data-confirm]")) {
    button.dataset.text ??= button.textContent;
    button.textContent = keyOf(button) === asked ? button.dataset.confirm : button.dataset.text;
    button.classList.toggle("asked", keyOf(button) === asked);
  }
}

function showPicked() {
  for (const button of root.querySelectorAll("[data-sample]")) {
    const place = picked.indexOf(button.dataset.sample);
    button.setAttribute("aria-pressed", String(place >= 0));
    button.dataset.label = place >= 0 ? "AB"[place] : "";
  }
}

function pick(button) {
  const sample = button.dataset.sample;
  picked = picked.includes(sample) ? picked.filter((other) => other !== sample) : [...picked, sample].slice(-2);
  showPicked();
  if (picked.length === 2) trigger("pair", { samples: picked });
}

async function refresh() {
  clearTimeout(timer);
  if (!document.hidden && root.offsetParent !== null) {
    try {
      patch(await server.show(props.value || ""));
    } catch {
      note.textContent = "The studio does not answer.";
    }
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, EVERY_MS);
}

function playRow(button) {
  const videos = [...button.closest(".sample-row").querySelectorAll("video")];
  const paused = videos.every((video) => video.paused);
  for (const video of videos) {
    video.currentTime = 0;
    if (paused) video.play();
    else video.pause();
  }
}

async function act(button) {
  if (button.dataset.confirm && asked !== keyOf(button)) {
    asked = keyOf(button);
    setTimeout(() => ((asked = null), showAsked()), ASK_AGAIN_MS);
    return showAsked();
  }
  asked = null;
  button.disabled = true;
  const field = button.closest(".keep")?.querySelector("input"); // a name, for what is kept
  const answer = await server.act([button.dataset.run, button.dataset.do, field ? field.value : ""]);
  button.disabled = false;
  note.textContent = answer.error || answer.note || "";
  note.classList.toggle("problem", Boolean(answer.error));
  if (answer.link) window.location.assign(answer.link);
  if (answer.gone) trigger("gone");
  refresh();
}

root.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  if (button.dataset.do === "open") trigger("open", { run: button.dataset.run });
  else if (button.dataset.do === "play") playRow(button);
  else if (button.dataset.do === "pick") pick(button);
  else act(button);
});

watch("value", () => {
  note.textContent = "";
  picked = [];
  refresh();
});
refresh();
