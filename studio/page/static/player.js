// Runs once when the component loads; gets `element`, `props`, `server`, `trigger`, `watch` and player_tiles.js.
const POLL_MS = 500;
const find = (selector) => element.querySelector(selector);
const root = find(".player");
const tiles = find(".player-tiles");
const scrub = find(".player-scrub");

let comparison = null; // what Studio.status returned last
let videos = []; // finished clips, in order of their tiles
let master = null; // the longest video: the clock that the others follow
let playing = false;
let loop = true;
let solo = null; // the label that is shown alone
let pollTimer = null;

function note(text) {
  find(".player-note").textContent = text;
}

function show(next) {
  const same = comparison !== null && next !== null && comparison.id === next.id;
  const before = same ? comparison.cells : [];
  comparison = next;
  root.hidden = next === null;
  if (next === null) return;
  if (!same) openComparison(next);
  next.cells.forEach((cell, index) => {
    const tile = tiles.children[index];
    if (before[index]?.state !== cell.state || before[index]?.url !== cell.url) fillTile(tile, cell, next.viewer, clock);
    if (OPEN_STATES.includes(cell.state)) showProgress(tile, cell);
    if (cell.state === "finished") showMetrics(tile, cell);
  });
  collectVideos();
  schedulePoll();
  const finished = (cells) => cells.length > 0 && cells.every((cell) => cell.state === "finished");
  if (!finished(next.cells) || finished(before)) return;
  trigger("made");
  if (!CALM.matches) play();
}

function openComparison(next) {
  pause();
  solo = null;
  setView("grid");
  note("");
  if (!next.samples) {
    const address = new URL(window.location);
    if (address.searchParams.get("v") !== next.id) requestAnimationFrame(comeIntoView); // it was just asked for
    address.searchParams.set("v", next.id);
    window.history.replaceState(null, "", address);
  }
  find(".player-prompt").textContent = next.cells[0].prompt;
  sizeLike(root, next.cells[0]); // for the wipe, which is as wide as A
  root.classList.toggle("player-viewer", next.viewer);
  root.classList.toggle("player-samples", Boolean(next.samples)); // of a run: not in the store
  tiles.replaceChildren(...next.cells.map(makeTile));
}

function comeIntoView() {
  root.scrollIntoView({ block: "nearest" });
}

// --- the clock ------------------------------------------------------------------------------

const clock = {
  gone: collectVideos,
  ended: (video) => { if (video === master) reachedEnd(); },
  loaded: () => { if (!playing) seekFrame(currentFrame()); },
};

function collectVideos() {
  videos = [...tiles.querySelectorAll("video")];
  const length = (video) => video.dataset.frames / video.dataset.fps;
  master = videos.reduce((longest, video) => (longest && length(longest) >= length(video) ? longest : video), null);
  scrub.max = master ? master.dataset.frames - 1 : 0;
  for (const video of videos) video.playbackRate = Number(find(".player-speed").value);
  const [a, b] = tiles.children;
  find("[data-do=wipe]").disabled = !(a?.querySelector("video") && b?.querySelector("video"));
  if (find("[data-do=wipe]").disabled && root.dataset.view === "wipe") setView("grid");
  find(".player-bar").inert = master === null;
  for (const kind of ["mp4", "gif"]) find(`[data-do=${kind}]`).disabled = master === null;
  if (playing) play();
  showFrame();
}

function currentFrame() {
  if (!master) return 0;
  return Math.min(Math.floor(master.currentTime * master.dataset.fps + 1e-3), master.dataset.frames - 1);
}

function seekFrame(frame) {
  if (!master) return;
  const clamped = Math.min(Math.max(frame, 0), master.dataset.frames - 1);
  const seconds = (clamped + 0.5) / master.dataset.fps; // the middle of a frame, clear of rounding
  for (const video of videos) video.currentTime = Math.min(seconds, lastMoment(video));
  showFrame(clamped);
}

function lastMoment(video) {
  return (video.dataset.frames - 0.5) / video.dataset.fps;
}

function showFrame(frame = currentFrame()) {
  scrub.value = frame;
  find(".player-frame").textContent = master ? `${frame + 1}/${master.dataset.frames}` : "";
}

function play() {
  if (!master) return;
  playing = true;
  if (master.ended || currentFrame() >= master.dataset.frames - 1) restart();
  for (const video of videos) if (!video.ended) video.play().catch(() => {}); // a later seek retries
  drawPlay();
  requestAnimationFrame(tick);
}

function pause() {
  playing = false;
  for (const video of videos) video.pause();
  drawPlay();
}

function restart() {
  for (const video of videos) video.currentTime = 0;
}

function reachedEnd() {
  if (!playing) return;
  if (!loop) return pause();
  restart();
  for (const video of videos) video.play().catch(() => {});
}

function drawPlay() {
  root.classList.toggle("player-playing", playing);
  find("[data-do=toggle]").setAttribute("aria-label", playing ? "Pause" : "Play");
}

function tick() {
  if (!playing || !master) return;
  for (const video of videos) if (video !== master) follow(video);
  showFrame();
  requestAnimationFrame(tick);
}

function follow(video) {
  const drift = Math.abs(video.currentTime - Math.min(master.currentTime, video.duration || Infinity));
  if (video.seeking || video.readyState < 2 || drift <= 0.5 / video.dataset.fps) return;
  video.currentTime = Math.min(master.currentTime, lastMoment(video));
  if (video.paused && !video.ended) video.play().catch(() => {});
}

// --- views: grid, one alone, B wiped over A -------------------------------------------------

function setView(view) {
  root.dataset.view = view;
  root.dataset.solo = view === "solo" ? solo : "";
  for (const tile of tiles.children) tile.classList.toggle("player-hidden", view === "solo" && tile.dataset.label !== solo);
  find("[data-do=wipe]").setAttribute("aria-pressed", String(view === "wipe"));
  find(".player-wipe").hidden = view !== "wipe";
}

function toggleSolo(label) {
  const alone = root.dataset.view === "solo" && solo === label;
  solo = alone ? null : label;
  setView(alone ? "grid" : "solo");
}

function toggleWipe() {
  if (!find("[data-do=wipe]").disabled) setView(root.dataset.view === "wipe" ? "grid" : "wipe");
}

function toggleFullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else root.requestFullscreen();
}

// --- what the buttons do --------------------------------------------------------------------

async function copy(text, message) {
  try {
    await navigator.clipboard.writeText(text);
    note(message);
  } catch {
    window.prompt("Copy this:", text); // pages without https or localhost have no clipboard
  }
}

async function copyCommands() {
  const reply = await server.commands(comparison.id);
  if (reply.error) note(reply.error);
  else copy(reply.text, "Commands copied.");
}

async function exportGrid(suffix) {
  note("Exporting…");
  const reply = await server.export([comparison.id, suffix]);
  if (reply.error) return note(reply.error);
  const link = document.createElement("a");
  link.href = reply.url;
  link.download = reply.url.split("/").pop();
  link.click();
  note("Exported.");
}

const actions = {
  toggle: () => (playing ? pause() : play()),
  back: () => step(-1),
  forward: () => step(1),
  loop: toggleLoop,
  wipe: toggleWipe,
  full: toggleFullScreen,
  link: () => copy(linkTo(comparison.id), "Link copied."),
  commands: copyCommands,
  mp4: () => exportGrid(".mp4"),
  gif: () => exportGrid(".gif"),
};

function linkTo(id) {
  const address = new URL(window.location.origin + window.location.pathname);
  address.searchParams.set("v", id);
  return address.href;
}

function step(frames) {
  pause();
  seekFrame(currentFrame() + frames);
}

function toggleLoop() {
  loop = !loop;
  find("[data-do=loop]").setAttribute("aria-pressed", String(loop));
}

// --- talking to the server ------------------------------------------------------------------

function schedulePoll() {
  clearTimeout(pollTimer);
  const open = comparison.cells.some((cell) => OPEN_STATES.includes(cell.state));
  if (open) pollTimer = setTimeout(poll, POLL_MS);
}

async function poll() {
  const asked = comparison.id;
  try {
    const reply = await server.status(asked);
    if (comparison.id !== asked) return; // another comparison was opened meanwhile
    note("");
    show(reply);
  } catch {
    note("The studio does not answer; trying again.");
    pollTimer = setTimeout(poll, 4 * POLL_MS);
  }
}

// --- wiring ---------------------------------------------------------------------------------

root.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.do) actions[button.dataset.do]();
  if (button.dataset.solo) toggleSolo(button.dataset.solo);
  if (button.dataset.cancel) {
    button.disabled = true;
    server.cancel(Number(button.dataset.cancel)).then(poll);
  }
});

scrub.addEventListener("input", () => {
  pause();
  seekFrame(Number(scrub.value));
});

find(".player-speed").addEventListener("change", (event) => {
  for (const video of videos) video.playbackRate = Number(event.target.value);
});

find(".player-wipe").addEventListener("input", (event) => {
  root.style.setProperty("--wipe", `${event.target.value}%`);
});

const keys = {
  " ": actions.toggle, ",": actions.back, ".": actions.forward,
  ArrowLeft: actions.back, ArrowRight: actions.forward, w: actions.wipe, f: actions.full,
};

function onKey(event) {
  if (root.hidden || root.offsetParent === null || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, select, button, a, [contenteditable], [role=listbox]")) return;
  const cell = comparison.cells[Number(event.key) - 1];
  const action = cell ? () => toggleSolo(cell.label) : keys[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

document.addEventListener("keydown", onKey);
const shown = () => (props.value?.cells ? props.value : null); // Gradio's empty value is not always null
watch("value", () => show(shown()));
show(shown());
