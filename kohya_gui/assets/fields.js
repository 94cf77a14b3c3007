// One set of settings in the page: reports what is typed, shows what the server answers. The server owns the values.
const WAIT = 350; // milliseconds without a key before a change is reported
const field = (key) => element.querySelector(`[data-field="${key}"]`);
const waiting = new Map();
const unheard = new Map(); // what was typed and no answer of the server's has had yet: an older one may be on its way

function report(input) {
  clearTimeout(waiting.get(input));
  waiting.delete(input);
  const value = input.type === 'checkbox' ? input.checked : input.value;
  if (input.reported === value) return;
  input.reported = value;
  trigger('edit', {key: input.dataset.key, value});
}

element.addEventListener('input', (event) => {
  const input = event.target;
  if (input.matches('[data-search]')) return search(input.value);
  if (!input.dataset.key) return;
  unheard.set(input.dataset.key, input.type === 'checkbox' ? input.checked : input.value);
  clearTimeout(waiting.get(input));
  if (input.selectedOptions && input.selectedOptions[0] && 'other' in input.selectedOptions[0].dataset) askForAnother(input);
  const now = input.type === 'checkbox' || input.tagName === 'SELECT';
  waiting.set(input, setTimeout(() => report(input), now ? 0 : WAIT));
});
element.addEventListener('change', (event) => event.target.dataset.key && report(event.target));

// A choice that the list lacks, such as the class of a package: it becomes one more line of the list.
function hold(select, value) {
  if ([...select.options].some((option) => option.value === value && !('other' in option.dataset))) return;
  select.insertBefore(new Option(value, value), select.querySelector('[data-other]'));
}

function askForAnother(select) {
  const name = (window.prompt('Its name, such as package.Class') || '').trim();
  if (name) hold(select, name);
  select.value = name || select.reported;
}
element.addEventListener('focusout', (event) => {
  if (event.target.dataset.key) showProblem(event.target.dataset.key, false);
});
element.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && event.target.matches('input[data-key]')) report(event.target);
  if (event.key === 'F1' && event.target.dataset.key) {
    event.preventDefault();
    more(element.querySelector(`[data-more="${event.target.dataset.key}"]`));
  }
  if (event.key === 'Escape') for (const open of element.querySelectorAll('.more[aria-expanded=true]')) more(open);
});
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.more) more(button);
  if (button.dataset.undo) unheard.delete(button.dataset.undo);
  if (button.dataset.undo) trigger('edit', {key: button.dataset.undo, undo: true});
  if (button.dataset.offer) trigger('act', {act: 'offer', name: button.dataset.offer});
  if (button.dataset.browse) trigger('act', {act: 'browse', key: button.dataset.browse});
  if (button.dataset.run) run(button.dataset.run);
  if (button.dataset.step) step(button);
  if (button.dataset.fold) for (const group of element.querySelectorAll('.group')) group.open = button.dataset.fold === 'open';
});

// All that stands in the tool's form is told with the click: what was typed last might be told later than it.
function run(tool) {
  const typed = {};
  for (const input of element.querySelectorAll(`#tool-${tool} [data-key]`)) {
    clearTimeout(waiting.get(input));
    waiting.delete(input);
    const key = input.dataset.key;
    typed[key] = input.reported = unheard.has(key) ? unheard.get(key) : input.type === 'checkbox' ? input.checked : input.value;
  }
  trigger('act', {act: 'run', tool, typed});
  document.getElementById('tool-work')?.scrollIntoView({block: 'start', behavior: 'smooth'});
}

// The button is no stop of the tab key: that would double the way through the form. F1 in the field does the same.
function more(button) {
  const key = button.dataset.more;
  const tip = element.querySelector(`[id="${key}-more"]`);
  tip.hidden = !tip.hidden;
  button.setAttribute('aria-expanded', String(!tip.hidden));
  const told = [`${key}-help`, `${key}-problem`, ...(tip.hidden ? [] : [tip.id])];
  field(key).querySelector('[data-key]').setAttribute('aria-describedby', told.join(' '));
}

function step(button) {
  const input = button.parentElement.querySelector('input');
  const before = parseInt(input.value || '0', 10);
  if (Number.isNaN(before)) return;
  input.value = String(Math.max(0, before + Number(button.dataset.step)));
  input.dispatchEvent(new Event('input', {bubbles: true}));
}

function search(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const each of element.querySelectorAll('[data-field]')) {
    const hit = words.every((word) => each.dataset.words.includes(word));
    each.classList.toggle('missed', !hit);
    if (hit) found += 1;
  }
  for (const group of element.querySelectorAll('.group')) {
    const hit = group.querySelector('[data-field]:not(.missed)');
    group.classList.toggle('missed', !hit);
    if (words.length) group.open = Boolean(hit);
  }
  element.classList.toggle('searching', words.length > 0);
  const nothing = element.querySelector('[data-nothing]');
  if (nothing) nothing.hidden = found > 0;
}

let state = {values: {}, problems: {}, notes: {}, undo: {}, changed: [], hidden: [], offers: {}};

function showProblem(key, typing) {
  const place = field(key);
  if (!place) return;
  const message = state.problems[key] || '';
  const line = place.querySelector('.problem');
  if (message && typing && line.hidden) return; // not while it is being typed; see focusout
  line.textContent = message;
  line.hidden = !message;
  place.classList.toggle('wrong', Boolean(message));
  place.querySelector('[data-key]').setAttribute('aria-invalid', String(Boolean(message)));
}

function showField(place) {
  const key = place.dataset.field;
  const input = place.querySelector('[data-key]');
  const typing = document.activeElement === input && input.tagName !== 'SELECT' && input.type !== 'checkbox';
  const value = state.values[key];
  if (unheard.get(key) === value) unheard.delete(key);
  if (input.tagName === 'SELECT' && value && input.querySelector('[data-other]')) hold(input, value);
  if (input.type === 'checkbox') input.checked = Boolean(value);
  else if (!typing && input.value !== value && value !== undefined) input.value = value;
  if (!typing) input.reported = input.type === 'checkbox' ? input.checked : input.value;
  place.classList.toggle('changed', state.changed.includes(key));
  place.classList.toggle('own', key in state.undo);
  place.classList.toggle('idle', state.hidden.includes(key));
  const undo = place.querySelector('.undo');
  undo.hidden = !(key in state.undo);
  undo.textContent = '↺';
  undo.title = state.undo[key] || '';
  undo.setAttribute('aria-label', undo.title);
  const note = place.querySelector('.note');
  note.textContent = state.notes[key] || '';
  note.hidden = !state.notes[key];
  showOffers(place.querySelector('.offers'), state.offers[key] || []);
  showProblem(key, typing);
}

function showOffers(line, offers) {
  const now = JSON.stringify(offers);
  if (line.dataset.shown === now) return; // a button that has the focus keeps it
  line.dataset.shown = now;
  line.hidden = !offers.length;
  line.replaceChildren(...offers.map(({name, label}) => {
    const button = document.createElement('button');
    Object.assign(button, {type: 'button', className: 'small', textContent: label});
    button.dataset.offer = name;
    return button;
  }));
}

function show() {
  if (!props.value || !props.value.values) return;
  state = props.value;
  if (state.revision !== undefined) window.FORM = state.revision;
  for (const place of element.querySelectorAll('[data-field]')) showField(place);
  for (const group of element.querySelectorAll('.group')) {
    const own = group.querySelectorAll('.field.own:not(.idle)').length;
    const wrong = group.querySelectorAll('.field.wrong').length;
    const count = group.querySelector('[data-count]');
    const size = group.querySelectorAll('.field:not(.idle)').length;
    count.textContent = wrong ? `${wrong} to correct` : own ? `${own} changed` : `${size}`;
    count.classList.toggle('plain', !wrong && !own);
    count.classList.toggle('bad', wrong > 0);
    const live = group.querySelector('.field:not(.idle)');
    group.classList.toggle('idle', !live);
  }
}

watch('value', show);
show();
