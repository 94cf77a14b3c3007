// Pictures of a grid, large: leafed through with the arrow keys, and two of them laid over one another.
const GALLERY = {
  grid: null, row: 0, column: 0, other: null, before: null,
  known: new WeakSet(), // grids whose width is watched
  left: new WeakSet(), // grids whose newest pictures were scrolled away from

  box() {
    let box = document.getElementById('lightbox');
    if (box) return box;
    box = document.createElement('dialog');
    box.id = 'lightbox';
    box.setAttribute('aria-label', 'Pictures');
    box.innerHTML = `<div class="stage"><div class="frame"><img class="over" alt=""><img class="under" alt=""><i class="seam"></i></div></div>
      <p class="what"><b></b> <span></span></p>
      <label class="slide" hidden><span></span><input type="range" min="0" max="100" value="50" aria-label="How much of each is seen"><span></span></label>
      <div class="orders"><button type="button" class="small" data-step="-1" aria-label="The picture before">←</button>
      <button type="button" class="small" data-step="1" aria-label="The next picture">→</button>
      <label>Compare with <select aria-label="Compare with"></select></label>
      <a class="small" target="_blank" rel="noopener">Open the file</a>
      <button type="button" class="small" data-close>Close</button></div>`;
    document.body.append(box);
    box.addEventListener('click', (event) => {
      if (event.target === box || event.target.closest('[data-close]')) box.close();
      const step = event.target.closest('[data-step]');
      if (step) GALLERY.go(0, Number(step.dataset.step));
    });
    box.addEventListener('keydown', GALLERY.key);
    box.querySelector('.over').addEventListener('load', (event) => { // the frame is as large as the picture, the seam too
      box.style.setProperty('--ratio', event.target.naturalWidth / event.target.naturalHeight);
    });
    box.addEventListener('close', () => { GALLERY.before?.focus(); });
    box.querySelector('select').addEventListener('change', (event) => {
      GALLERY.other = event.target.value === '' ? null : Number(event.target.value);
      GALLERY.show();
    });
    box.querySelector('input').addEventListener('input', GALLERY.slide);
    return box;
  },

  open(link) {
    GALLERY.grid = link.closest('[data-gallery]');
    GALLERY.before = link;
    [GALLERY.row, GALLERY.column] = [Number(link.dataset.row), Number(link.dataset.column)];
    GALLERY.other = null;
    GALLERY.show();
    const box = GALLERY.box();
    if (!box.open) box.showModal();
  },

  // As many whole columns as a grid has room for, so that none is cut off. What is set lies outside of what news draw.
  sized: new ResizeObserver((found) => {
    for (const {target} of found) {
      const least = Number(getComputedStyle(target).getPropertyValue('--least')), gap = 8;
      const count = Math.max(3, Math.floor((target.clientWidth + gap) / (least + gap)));
      if (target.clientWidth) (target.closest('[data-part]') || target).style.setProperty('--cell', `${Math.floor((target.clientWidth + gap) / count * 16) / 16 - gap}px`);
    }
    GALLERY.newest();
  }),

  // A run's grid stands at its newest pictures, unless it was scrolled.
  newest() {
    for (const each of document.querySelectorAll('.sheet')) {
      if (!GALLERY.known.has(each)) GALLERY.sized.observe(each);
      GALLERY.known.add(each);
    }
    const sheet = document.querySelector('#samples .sheet');
    if (sheet && !GALLERY.left.has(sheet)) sheet.scrollLeft = sheet.scrollWidth;
  },

  scrolled(event) {
    const sheet = event.target;
    if (!sheet.matches?.('#samples .sheet')) return;
    const away = sheet.scrollLeft + sheet.clientWidth < sheet.scrollWidth - 2;
    GALLERY.left[away ? 'add' : 'delete'](sheet);
  },

  // The grid is asked each time: news may have brought more pictures meanwhile.
  all() {
    return [...GALLERY.grid.querySelectorAll('a.sample')].map((link) => ({
      link, row: Number(link.dataset.row), column: Number(link.dataset.column), label: link.dataset.label,
      title: link.closest('.grid-row').querySelector('p > span').textContent,
    }));
  },

  at(row, column) {
    return GALLERY.all().find((each) => each.row === row && each.column === column);
  },

  // To the next picture of the row, or to the nearest one of the row above or below.
  go(rows, columns) {
    const found = GALLERY.all();
    let wanted;
    if (columns) {
      const row = found.filter((each) => each.row === GALLERY.row);
      const place = row.findIndex((each) => each.column === GALLERY.column);
      wanted = row[place + columns];
    } else {
      const row = found.filter((each) => each.row === GALLERY.row + rows);
      wanted = row.sort((one, other) => Math.abs(one.column - GALLERY.column) - Math.abs(other.column - GALLERY.column))[0];
    }
    if (!wanted) return;
    [GALLERY.row, GALLERY.column] = [wanted.row, wanted.column];
    GALLERY.show();
  },

  key(event) {
    if (event.target.matches('select, input')) return;
    const way = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (!way) return;
    event.preventDefault();
    GALLERY.go(...way);
  },

  show() {
    const shown = GALLERY.at(GALLERY.row, GALLERY.column);
    if (!shown) return;
    const box = GALLERY.box();
    const row = GALLERY.all().filter((each) => each.row === shown.row && each.column !== shown.column);
    const other = row.find((each) => each.column === GALLERY.other);
    const [over, under] = box.querySelectorAll('.stage img');
    over.src = shown.link.href;
    over.alt = shown.link.title;
    box.querySelector('.stage').classList.toggle('two', Boolean(other));
    if (other) under.src = other.link.href;
    else under.removeAttribute('src');
    box.querySelector('.what b').textContent = shown.label;
    box.querySelector('.what span').textContent = shown.title;
    box.querySelector('.orders a').href = shown.link.href;
    const select = box.querySelector('select');
    select.replaceChildren(new Option('nothing', ''), ...row.map((each) => new Option(each.label, each.column)));
    select.value = other ? String(other.column) : '';
    const slide = box.querySelector('.slide');
    slide.hidden = !other;
    const [left, right] = slide.querySelectorAll('span');
    left.textContent = other ? other.label : '';
    right.textContent = shown.label;
    const steps = box.querySelectorAll('[data-step]');
    const columns = GALLERY.all().filter((each) => each.row === shown.row).map((each) => each.column);
    steps[0].disabled = columns[0] === shown.column;
    steps[1].disabled = columns.at(-1) === shown.column;
    GALLERY.slide();
  },

  slide() {
    const box = GALLERY.box();
    box.style.setProperty('--seam', `${box.querySelector('input').value}%`);
  },
};

document.addEventListener('click', (event) => {
  const link = event.target.closest('[data-gallery] a.sample');
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    GALLERY.open(link);
  }
  const go = event.target.closest('[data-go]');
  if (go) document.getElementById(go.dataset.go)?.scrollIntoView({block: 'start', behavior: 'smooth'});
  const wide = event.target.closest('[data-wide]');
  if (wide) widen(document.body.dataset.widened ? '' : wide.dataset.wide);
});
document.addEventListener('scroll', GALLERY.scrolled, {capture: true, passive: true});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && document.body.dataset.widened && !document.getElementById('lightbox')?.open) widen('');
});

// A card over the whole window, and back.
function widen(card) {
  if (card) document.body.dataset.widened = card;
  else delete document.body.dataset.widened;
  for (const button of document.querySelectorAll('[data-wide]')) button.setAttribute('aria-pressed', String(Boolean(card)));
}
