// Asks the program for news of the run and shows them. Only what differs is touched: what has the focus keeps it, a
// list keeps its place, and the browser draws no more than it must, for what it takes is taken from the training.
const NEWS = {
  RUNNING: 1000, IDLE: 3000, HIDDEN: 15000, // milliseconds from one answer to the next question
  PATIENCE: 20000, // milliseconds to wait for an answer
  number: 0, parts: {}, controls: null, busy: false, form: null, fetched: null, timer: 0, asking: null,
  run: '', // the run that is looked at in this tab, "" for the newest

  // One question after another: who asks after something was done gets an answer from after it.
  ask() {
    NEWS.asking = (NEWS.asking || Promise.resolve()).then(NEWS.askOnce);
    return NEWS.asking;
  },

  async askOnce() {
    clearTimeout(NEWS.timer);
    try {
      const asked = NEWS.run;
      const answer = await fetch(`news/${NEWS.number}?run=${encodeURIComponent(asked)}`, {signal: AbortSignal.timeout(NEWS.PATIENCE)});
      if (asked !== NEWS.run) return; // another run was opened meanwhile, and is asked for next
      if (!answer.ok) throw new Error(answer.statusText);
      if (answer.status === 200) Object.assign(NEWS, NEWS.merged(await answer.json()));
      NEWS.show();
      NOTIFY.take(NEWS.controls.run);
      NEWS.follow();
    } catch (error) {
      NEWS.lost(error);
    }
    NEWS.timer = setTimeout(NEWS.ask, document.hidden ? NEWS.HIDDEN : NEWS.busy ? NEWS.RUNNING : NEWS.IDLE);
  },

  merged(answer) {
    return {...answer, parts: {...NEWS.parts, ...answer.parts}};
  },

  show() {
    for (const place of document.querySelectorAll('[data-part]')) {
      const markup = NEWS.parts[place.dataset.part];
      if (markup === undefined || place.shown === markup) continue;
      place.shown = markup;
      const wanted = document.createElement('div');
      wanted.innerHTML = markup;
      const chosen = place.value; // of a list, which keeps what is chosen in it
      alikeInside(place, wanted);
      if (place.tagName === 'SELECT') place.value = chosen;
    }
    CURVES.look();
    GALLERY.newest();
    if (!NEWS.controls) return;
    const share = NEWS.controls.share;
    if (document.body.style.getPropertyValue('--share') !== share) document.body.style.setProperty('--share', share);
    if ((NEWS.controls.there || NEWS.parts.head) && document.querySelector('#sides button') && !document.querySelector('#main').dataset.side) showSide('watch');
    for (const [name, usable] of Object.entries(NEWS.controls.usable)) {
      const button = document.getElementById(name);
      if (button && button.disabled === usable) button.disabled = !usable;
    }
    for (const name of ['start', 'pause']) {
      const button = document.getElementById(name);
      if (button && button.textContent.trim() !== NEWS.controls[name]) button.textContent = NEWS.controls[name];
    }
  },

  // Show another run, here and after a reload; "" goes back to the newest.
  open(run) {
    if (run === NEWS.run) return;
    NEWS.run = run;
    NEWS.number = 0;
    const place = run ? `#run=${encodeURIComponent(run)}` : '#';
    if (location.hash !== place && (run || location.hash)) history.replaceState(null, '', run ? place : location.pathname);
    NEWS.ask();
  },

  // What was changed in another tab is shown here too. window.FORM is the revision of the form that the fields show.
  follow() {
    const fresh = document.querySelector('#fresh');
    if (!fresh || window.FORM === undefined || NEWS.form === window.FORM || NEWS.form === NEWS.fetched) return;
    NEWS.fetched = NEWS.form;
    fresh.click();
  },

  // Old numbers would look like a run that goes on.
  lost(error) {
    console.warn('no news:', error);
    NEWS.number = 0;
    delete NEWS.parts.bar;
    const bar = document.querySelector('[data-part=bar]');
    const pill = bar && bar.querySelector('.pill');
    if (!pill) return;
    bar.shown = null;
    pill.className = 'pill failed';
    pill.textContent = 'The program does not answer';
  },
};

function alike(old, wanted) {
  if (old.dataset?.own !== undefined && wanted.dataset?.own !== undefined) return; // filled by a script
  for (const {name, value} of wanted.attributes) {
    if (name !== 'open' && old.getAttribute(name) !== value) old.setAttribute(name, value); // open is the person's
  }
  for (const {name} of [...old.attributes]) {
    if (name !== 'open' && !wanted.hasAttribute(name)) old.removeAttribute(name);
  }
  alikeInside(old, wanted);
}

function alikeInside(old, wanted) {
  // Both lists as they are now: what is put into the page leaves `wanted`.
  const before = [...old.childNodes], after = [...wanted.childNodes];
  after.forEach((child, place) => {
    const there = before[place];
    if (!there) old.append(child);
    else if (there.nodeName !== child.nodeName || isOther(there, child)) there.replaceWith(child);
    else if (child.nodeType === Node.ELEMENT_NODE) alike(there, child);
    else if (there.data !== child.data) there.data = child.data;
  });
  for (const there of before.slice(after.length)) there.remove();
}

// What a script has filled belongs to its run, and to no other.
function isOther(there, child) {
  return there.dataset?.curves !== child.dataset?.curves || (there.dataset?.own === undefined) !== (child.dataset?.own === undefined);
}

function runOfAddress() {
  const found = /^#run=(.+)$/.exec(location.hash);
  try {
    return found ? decodeURIComponent(found[1]) : '';
  } catch {
    return '';
  }
}
NEWS.run = runOfAddress();
window.addEventListener('hashchange', () => NEWS.open(runOfAddress()));
document.addEventListener('visibilitychange', () => document.hidden || NEWS.ask());
NEWS.ask();
