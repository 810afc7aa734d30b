// Runs once when the header loads; gets `element` and `server` from Gradio.
const EVERY_MS = 3000;
const line = element.querySelector(".studio-status");

function describe(state) {
  const memory = state.memory.map(([name, used, total]) => `${name} ${used.toFixed(1)}/${total.toFixed(0)} GB`);
  const queue = state.running + state.queued === 0 ? "idle" : `${state.running} running, ${state.queued} waiting`;
  return [...(state.viewer ? ["viewing only"] : []), ...memory, queue].join(" · ");
}

async function refresh() {
  if (!document.hidden) {
    try {
      line.textContent = describe(await server.machine({}));
    } catch {
      line.textContent = "the studio does not answer";
    }
  }
  setTimeout(refresh, EVERY_MS);
}

element.querySelector(".studio-theme").addEventListener("click", () => {
  const dark = document.body.classList.toggle("dark");
  localStorage.setItem("studio-theme", dark ? "dark" : "light");
});

const chosen = localStorage.getItem("studio-theme");
const asked = new URL(window.location).searchParams.has("__theme");
if (chosen && !asked) document.body.classList.toggle("dark", chosen === "dark");
refresh();
