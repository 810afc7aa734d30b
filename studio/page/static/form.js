// Runs once when the component loads; gets `element`, `props`, `trigger` and `watch`.
// Python sends {html}; this sends back {values}: what every field holds, as text or a tick, by name.
const EDIT_MS = 300; // typing rests this long before the studio looks at it
const form = element.querySelector("form");
let timer = null;

function collect() {
  const values = {};
  for (const field of form.elements) {
    if (!field.name || (field.type === "radio" && !field.checked)) continue;
    values[field.name] = field.type === "checkbox" ? field.checked : field.value;
  }
  return values;
}

function showGroups(values) {
  for (const group of form.querySelectorAll("[data-when]")) {
    group.hidden = String(values[group.dataset.when]) !== group.dataset.is;
  }
  for (const fold of form.querySelectorAll("details")) {
    const switched = fold.querySelector(":scope > div > .switch input");
    const word = fold.querySelector(":scope > summary > em");
    if (switched && word) word.hidden = switched.checked;
  }
}

function edited(delay) {
  const values = collect();
  showGroups(values);
  props.value = { values };
  clearTimeout(timer);
  timer = setTimeout(() => trigger("edit"), delay);
}

form.addEventListener("input", (event) => {
  const slider = event.target.closest(".slider");
  if (slider) {
    const [range, number] = slider.querySelectorAll("input");
    if (event.target === range) number.value = range.value;
    else range.value = number.value;
  }
  edited(EDIT_MS);
});
form.addEventListener("submit", (event) => event.preventDefault());

function draw() {
  if (!props.value?.html) return;
  form.innerHTML = props.value.html;
  edited(0);
}
watch("value", draw);
draw();
