// The editor of datasets: rows come and go as the server says, and a field that has the focus keeps it and its text.
const WAIT = 350; // milliseconds without a key before a change is reported
const waiting = new Map();
let drawn = '';

const root = () => element.querySelector('[data-root]');
const valueOf = (input) => (input.type === 'checkbox' ? input.checked : input.value);

function report(input) {
  clearTimeout(waiting.get(input));
  waiting.delete(input);
  const value = valueOf(input);
  if (input.reported === value) return;
  input.reported = value;
  trigger('edit', {key: input.dataset.key, value});
}

element.addEventListener('input', (event) => {
  const input = event.target;
  if (!input.matches('input[data-key], select[data-key]')) return;
  clearTimeout(waiting.get(input));
  waiting.set(input, setTimeout(() => report(input), input.type === 'text' ? WAIT : 0));
});
element.addEventListener('change', (event) => {
  if (event.target.matches('input[data-key], select[data-key]')) report(event.target);
});
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-act]');
  if (button) trigger('act', {act: button.dataset.act, key: button.dataset.key || ''});
});

function draw(markup) {
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  const kept = focused && {id: focused.id, value: focused.value, at: focused.selectionStart};
  const open = [...element.querySelectorAll('details[open]')].map((each) => each.dataset.keep);
  const typed = new Map([...waiting.keys()].map((input) => [input.dataset.key, input.value]));
  root().innerHTML = markup;
  drawn = markup;
  for (const each of element.querySelectorAll('details')) each.open = open.includes(each.dataset.keep);
  waiting.clear();
  if (!kept || !kept.id) return typed;
  const again = element.querySelector(`[id="${kept.id}"]`);
  if (!again) return typed;
  if (again.type === 'text') again.value = kept.value;
  again.focus();
  if (again.type === 'text') again.setSelectionRange(kept.at, kept.at);
  return typed;
}

function show() {
  if (!props.value || props.value.markup === undefined || !root()) return;
  const {markup, values, wrong} = props.value;
  const typed = markup === drawn && root().firstChild ? new Map() : draw(markup);
  for (const input of element.querySelectorAll('input[data-key], select[data-key]')) {
    const value = values[input.dataset.key];
    const marked = (wrong || []).includes(input.dataset.key);
    input.setAttribute('aria-invalid', String(marked));
    input.closest('.field').classList.toggle('wrong', marked);
    if (input.type === 'checkbox') input.checked = Boolean(value);
    else if (input !== document.activeElement || input.tagName === 'SELECT') input.value = value === undefined ? '' : value;
    // What is still being typed was not reported: the server's value is what it is compared with.
    input.reported = input.type === 'checkbox' ? input.checked : String(value === undefined ? '' : value);
    if (typed.has(input.dataset.key) && typed.get(input.dataset.key) !== input.reported) {
      input.value = typed.get(input.dataset.key);
      waiting.set(input, setTimeout(() => report(input), WAIT));
    }
  }
}

watch('value', show);
show();
