// The tiles of the player: one for each variant, with a clip, its progress or the reason why there is none.
// player.js, which comes after this text, calls these functions; they know nothing of it but their arguments.
// User text enters the page through textContent only.
const OPEN_STATES = ["queued", "running"];
const SMALL = 256; // pixels; clips up to this width are enlarged a lot: sharp pixels say more than a blur
const MAX_ENLARGEMENT = 8;
const CALM = window.matchMedia("(prefers-reduced-motion: reduce)"); // nothing moves by itself

function make(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  return seconds < 90 ? `${Math.max(1, Math.round(seconds))} s left` : `${Math.round(seconds / 60)} min left`;
}

function makeTile(cell) {
  const tile = make("figure", "player-tile");
  tile.dataset.label = cell.label;
  const head = make("figcaption", "player-head");
  const letter = make("button", "player-letter", cell.label);
  letter.type = "button";
  letter.dataset.solo = cell.label;
  letter.title = `Show ${cell.label} alone`;
  letter.setAttribute("aria-label", letter.title);
  const title = make("span", "player-title", cell.title);
  title.title = cell.detail;
  head.append(letter, title);
  if (cell.image) head.append(makeFirstFrame(cell));
  tile.append(head, make("div", "player-frame-box"), make("dl", "player-metrics"));
  tile.append(make("p", "player-detail", cell.detail));
  return tile;
}

function makeFirstFrame(cell) {
  const image = make("img", "player-first-frame");
  Object.assign(image, { src: cell.image, alt: "The image it starts from", title: "The image it starts from" });
  return image;
}

function sizeLike(node, cell) {
  node.style.setProperty("--ratio", cell.width / cell.height);
  node.style.setProperty("--largest", `${MAX_ENLARGEMENT * cell.width}px`);
}

// `viewer` has no Cancel. `clock` is what follows the clips: it has `gone()`, `ended(video)` and `loaded()`.
function fillTile(tile, cell, viewer, clock) {
  tile.dataset.state = cell.state;
  const box = tile.querySelector(".player-frame-box");
  sizeLike(tile, cell);
  if (cell.state === "finished") box.replaceChildren(makeVideo(cell, clock));
  else if (OPEN_STATES.includes(cell.state)) box.replaceChildren(makeProgress(cell, viewer));
  else box.replaceChildren(make("p", "player-reason", cell.error || "Cancelled."));
}

function makeVideo(cell, clock) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, playsInline: true, preload: "auto", src: cell.url });
  video.dataset.fps = cell.fps;
  video.dataset.frames = cell.num_frames;
  video.setAttribute("aria-label", `${cell.label}: ${cell.title}`);
  video.classList.toggle("player-small", cell.width <= SMALL);
  video.addEventListener("error", () => {
    video.replaceWith(make("p", "player-reason", "The clip cannot be played; its file is gone or damaged."));
    clock.gone();
  });
  video.addEventListener("ended", () => clock.ended(video));
  video.addEventListener("loadeddata", () => clock.loaded());
  return video;
}

function makeProgress(cell, viewer) {
  const progress = make("div", "player-progress");
  const bar = make("progress", "player-progress-bar");
  bar.setAttribute("aria-label", `Progress of ${cell.label}`);
  progress.append(make("p", "player-phase"), bar, make("p", "player-eta"));
  if (!viewer) {
    const cancel = make("button", "player-cancel", "Cancel");
    cancel.type = "button";
    cancel.dataset.cancel = cell.job;
    cancel.setAttribute("aria-label", `Cancel ${cell.label}`);
    progress.append(cancel);
  }
  return progress;
}

function showProgress(tile, cell) {
  const bar = tile.querySelector("progress");
  let phase = `Waiting, ${cell.ahead} before this one`;
  if (cell.ahead === 0) phase = "Waiting for the device";
  if (cell.state === "running") phase = cell.phase === null ? "Starting" : `${cell.phase} ${cell.step}/${cell.total}`;
  if (cell.cancelling) phase = "Stopping after this step";
  tile.querySelector(".player-phase").textContent = phase;
  tile.querySelector(".player-eta").textContent = duration(cell.eta_sec);
  if (cell.state === "running" && cell.total) Object.assign(bar, { max: cell.total, value: cell.step });
  else bar.removeAttribute("value");
  if (cell.preview && !CALM.matches) showPreview(tile, cell.preview);
}

function showPreview(tile, url) {
  const box = tile.querySelector(".player-frame-box");
  let image = box.querySelector(".player-preview");
  if (!image) {
    image = make("img", "player-preview");
    image.alt = "Rough preview of the clip as it is so far";
    image.addEventListener("error", () => image.remove()); // the job has ended meanwhile
    box.prepend(image);
  }
  if (image.getAttribute("src") !== url) image.src = url;
}

function showMetrics(tile, cell) {
  const pairs = cell.metrics.map(([name, value]) => {
    const pair = make("div", "player-metric");
    pair.append(make("dt", "", name), make("dd", "", value));
    return pair;
  });
  tile.querySelector(".player-metrics").replaceChildren(...pairs);
  tile.querySelector(".player-detail").textContent = [cell.detail, cell.notes].filter(Boolean).join(". ");
}
