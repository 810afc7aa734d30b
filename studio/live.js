// Runs once when the component loads; gets `element`, `props`, `server`, `trigger` and `watch`.
// Shows what server.show returns, looks again while it can be seen, and sends clicks to server.act.
const EVERY_MS = 2000;
const ASK_AGAIN_MS = 4000; // a button that asks for confirmation forgets it after this
const root = element.querySelector(".live");
const note = element.querySelector(".live-note");
let asked = null; // run and action that wait for their second click
let timer = null;

const keyOf = (button) => `${button.dataset.run}/${button.dataset.do}`;

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
  if (focused) [...root.querySelectorAll("[data-do]")].find((button) => keyOf(button) === focused)?.focus();
}

function showAsked() {
  for (const button of root.querySelectorAll("[data-confirm]")) {
    button.dataset.text ??= button.textContent;
    button.textContent = keyOf(button) === asked ? button.dataset.confirm : button.dataset.text;
    button.classList.toggle("asked", keyOf(button) === asked);
  }
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
  const videos = [...button.parentElement.querySelectorAll("video")];
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
  const answer = await server.act([button.dataset.run, button.dataset.do]);
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
  else act(button);
});

watch("value", () => {
  note.textContent = "";
  refresh();
});
refresh();
