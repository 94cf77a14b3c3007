// What the page does by itself: leads from a problem to its field, closes the dialog, keeps the phone's layout in order.
document.addEventListener('click', (event) => {
  const link = event.target.closest('[data-goto]');
  if (link) goTo(link.dataset.goto, link.dataset.tab);
});

// A preset that suits the model is shown at the top of the form, where it can be applied.
document.addEventListener('click', (event) => {
  if (!event.target.closest('[data-offer^=preset-]')) return;
  showSide('form');
  document.getElementById('presets').scrollIntoView({block: 'center', behavior: 'smooth'});
});

// On a phone one side of the page is seen at a time. Start leads to the run, a problem to its field.
function showSide(side) {
  const main = document.getElementById('main');
  if (main.dataset.side === side) return;
  main.dataset.side = side;
  for (const button of document.querySelectorAll('button[data-side]')) {
    button.setAttribute('aria-pressed', String(button.dataset.side === side));
  }
  window.scrollTo({top: 0});
}
document.addEventListener('click', (event) => {
  const side = event.target.closest('button[data-side]');
  if (side) showSide(side.dataset.side);
  if (event.target.closest('#start')) showSide('watch');
  const controls = document.getElementById('controls');
  const more = event.target.closest('#more-orders');
  const open = more ? controls.classList.toggle('open') : Boolean(controls?.classList.remove('open'));
  document.getElementById('more-orders')?.setAttribute('aria-expanded', String(open));
});

// A run of the list is opened in this tab; Start and Resume lead back to the run under way.
document.addEventListener('click', (event) => {
  const link = event.target.closest('[data-open-run]');
  if (link) {
    NEWS.open(link.dataset.openRun);
    for (const tab of document.querySelectorAll('#watch-tabs [role=tab]')) if (tab.textContent.trim() === 'Training') tab.click();
    document.getElementById('watch-side').scrollTo({top: 0});
  }
  if (event.target.closest('#start, [data-act^=resume], [data-act=go-on], [data-act=delete-run], [data-act=delete-all], [data-act=rename-to]')) NEWS.open('');
});

document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape') return;
  const cancel = document.querySelector('#dialog [data-act=close]');
  if (cancel) cancel.click();
});

function goTo(key, tab) {
  showSide('form');
  const name = tab === 'basic' ? 'Basic' : 'Advanced';
  for (const button of document.querySelectorAll('#form-tabs [role=tab]')) {
    if (button.textContent.trim() === name && button.getAttribute('aria-selected') !== 'true') button.click();
  }
  let tries = 40;
  const find = () => {
    const input = document.getElementById(key);
    if (!input || !input.offsetParent && tries > 20 && !openGroup(input)) {
      if (tries-- > 0) requestAnimationFrame(find);
      return;
    }
    openGroup(input);
    input.scrollIntoView({block: 'center', behavior: 'smooth'});
    input.focus({preventScroll: true});
  };
  find();
}

function openGroup(input) {
  const group = input.closest('details');
  if (!group) return false;
  group.open = true;
  return true;
}

// A text with a Copy button is copied, or, where the browser does not let us, selected.
document.addEventListener('click', async (event) => {
  const button = event.target.closest('[data-copy]');
  if (!button) return;
  const text = button.parentElement.querySelector('code');
  getSelection().selectAllChildren(text);
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = 'Copied';
  } catch {
    button.textContent = 'Selected';
  }
  setTimeout(() => { button.textContent = 'Copy'; }, 1500);
});

// A file of settings that is dropped anywhere on the page is opened; of a LoRA file the browser reads the metadata alone.
const MOST = 1e6;
const hasFile = (event) => [...(event.dataTransfer?.types || [])].includes('Files');
for (const name of ['dragenter', 'dragover']) document.addEventListener(name, (event) => {
  if (!hasFile(event)) return;
  event.preventDefault();
  document.body.classList.add('dropping');
});
document.addEventListener('dragleave', (event) => !event.relatedTarget && document.body.classList.remove('dropping'));
document.addEventListener('drop', async (event) => {
  document.body.classList.remove('dropping');
  const file = hasFile(event) && event.dataTransfer.files[0];
  if (!file) return;
  event.preventDefault();
  if (document.querySelector('#dialog .dialog') || BENCH.open) return; // there, pictures are dropped
  const [name, text] = ['dropped_name', 'dropped_text'].map((each) => document.querySelector(`#preset-more [name=${each}]`));
  name.value = file.name;
  text.value = await textOf(file);
  document.getElementById('dropped-open').click();
  name.value = text.value = '';
});
async function textOf(file) {
  if (!/\.safetensors$/i.test(file.name)) return file.size > MOST ? ' '.repeat(MOST + 1) : file.text();
  try {
    const length = Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
    if (length > 100 * MOST) return '';
    const metadata = JSON.parse(await file.slice(8, 8 + length).text()).__metadata__ || {};
    delete metadata.ss_tag_frequency; // long, and no setting
    return JSON.stringify(metadata);
  } catch {
    return '';
  }
}

// What was opened or closed by hand stays so when the server sends the part anew.
const kept = new Map();
document.addEventListener('toggle', (event) => {
  if (event.target.dataset?.keep) kept.set(event.target.dataset.keep, event.target.open);
}, true);
function keepOpen() {
  for (const part of document.querySelectorAll('details[data-keep]:not([data-kept])')) {
    part.dataset.kept = '';
    if (kept.has(part.dataset.keep)) part.open = kept.get(part.dataset.keep);
  }
}

// The dialog takes the focus when it opens and gives it back when it closes. What Gradio adds late gets the news too.
let before = null;
new MutationObserver(() => {
  NEWS.show();
  keepOpen();
  const dialog = document.querySelector('#dialog .dialog');
  for (const id of ['top', 'main']) {
    const part = document.getElementById(id);
    if (part && part.inert !== Boolean(dialog)) part.inert = Boolean(dialog);
  }
  if (dialog && !dialog.contains(document.activeElement)) {
    before = before || document.activeElement;
    (dialog.querySelector('.entries button') || dialog.querySelector('button')).focus();
  } else if (!dialog && before) {
    if (before.isConnected) before.focus();
    before = null;
  }
}).observe(document.documentElement, {childList: true, subtree: true});
