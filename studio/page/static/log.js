// Runs once when the component loads; the value is the name of a run. Follows its log by byte offset.
const EVERY_MS = 1500;
const MAX_CHARS = 500_000; // what the page keeps; the file has the rest
const lines = element.querySelector(".log-lines");
const found = element.querySelector(".log-found");
const wanted = element.querySelector(".log-search");
const follow = element.querySelector(".log-follow");
const save = element.querySelector(".log-download");
let run = null;
let offset = -1;
let timer = null;

async function look() {
  clearTimeout(timer);
  const name = props.value || "";
  if (name !== run) {
    [run, offset] = [name, -1];
    lines.textContent = "";
    found.textContent = "";
  }
  if (name && !document.hidden && lines.offsetParent !== null) {
    const answer = await server.read([name, offset]);
    if (name === run && answer.text !== undefined) append(answer);
  }
  clearTimeout(timer);
  timer = setTimeout(look, EVERY_MS);
}

function append(answer) {
  save.href = answer.link;
  if (offset < 0 && !answer.offset) lines.dataset.empty = "Nothing is written yet.";
  if (answer.offset === offset) return;
  if (answer.skipped) lines.textContent = "… earlier lines are in the file\n";
  offset = answer.offset;
  lines.textContent = (lines.textContent + answer.text).slice(-MAX_CHARS);
  if (follow.checked) lines.scrollTop = lines.scrollHeight;
}

wanted.addEventListener("change", async () => {
  const text = wanted.value;
  if (!text) return found.replaceChildren();
  const answer = await server.find([run, text]);
  const title = `${answer.lines.length} lines with “${text}”, the last ones:\n`;
  found.textContent = answer.lines.length ? title + answer.lines.join("\n") : `No line has “${text}”.`;
});
follow.addEventListener("change", () => follow.checked && (lines.scrollTop = lines.scrollHeight));
watch("value", look);
look();
