// One picture of the workbench, large, with what is cut out of it drawn on it and its caption beside.
const PICTURE = {
  row: null, editor: null, saving: Promise.resolve(), words: [], at: -1,

  get place() { return BENCH.place?.querySelector('.wb-picture'); },
  get open() { return Boolean(PICTURE.place && !PICTURE.place.hidden); },
  get field() { return PICTURE.place.querySelector('.wb-caption'); },

  build() {
    const act = (words, does, more = {}) => make('button', {type: 'button', class: 'small', onclick: does, ...more}, words);
    PICTURE.place.replaceChildren(
      make('div', {class: 'wb-stage'}, make('div', {class: 'wb-frame'}, make('img', {alt: '', draggable: 'false'}), make('canvas', {class: 'wb-mask', hidden: true}), make('i', {class: 'wb-crop'}))),
      make('div', {class: 'wb-beside'},
        make('div', {class: 'wb-line'},
          act('← Grid', () => PICTURE.leave(), {title: 'Back to the grid (Esc)'}),
          make('span', {class: 'wb-where', role: 'status'}),
          act('↑', () => PICTURE.step(-1), {'aria-label': 'The picture before', title: 'The picture before (Page up)'}),
          act('↓', () => PICTURE.step(1), {'aria-label': 'The next picture', title: 'The next picture (Page down)'})),
        make('h3', {class: 'wb-name'}),
        make('p', {class: 'wb-facts quiet'}),
        make('div', {class: 'wb-wrong'}),
        make('label', {for: 'wb-caption'}, 'Caption'),
        make('div', {class: 'wb-writing'},
          make('textarea', {id: 'wb-caption', class: 'wb-caption', rows: 7, spellcheck: 'false', role: 'combobox', 'aria-autocomplete': 'list', 'aria-expanded': 'false', 'aria-controls': 'wb-words',
            oninput: () => PICTURE.typed(), onblur: () => setTimeout(() => PICTURE.open && PICTURE.field !== document.activeElement && PICTURE.save(), 150), onclick: () => PICTURE.complete()}),
          make('ul', {id: 'wb-words', class: 'wb-words', role: 'listbox', 'aria-label': 'Tags of this folder', hidden: true})),
        make('p', {class: 'wb-hint quiet'}, 'Enter saves and goes to the next; Shift+Enter begins a line; Tab takes the tag that is offered.'),
        make('div', {class: 'wb-chips', 'aria-label': 'Tags of this caption'}),
        make('div', {class: 'wb-line wb-tools'},
          act('Save', () => PICTURE.save()), act('Leave out', () => PICTURE.remark({skip: !PICTURE.row.skipped}), {class: 'small wb-skip'}),
          act('Crop', () => CROP.begin(), {class: 'small wb-crop-it'}), act('Mask', () => MASK.begin(), {class: 'small wb-mask-it'}),
          make('label', {class: 'wb-choice'}, 'Repeats', make('input', {type: 'number', class: 'wb-repeats', min: 1, step: 1, inputmode: 'numeric', onchange: (event) => PICTURE.remark({repeats: Number(event.target.value) || null})}))),
        make('div', {class: 'wb-editing'})));
    new ResizeObserver(() => PICTURE.fit()).observe(PICTURE.place.querySelector('.wb-stage'));
  },

  async show() {
    if (BENCH.current === undefined) return;
    if (!PICTURE.place.firstChild) PICTURE.build();
    PICTURE.place.hidden = false;
    BENCH.place.classList.add('large');
    await PICTURE.turn();
    PICTURE.field.focus();
  },
  close() {
    if (!PICTURE.open) return;
    PICTURE.place.hidden = true;
    BENCH.place.classList.remove('large');
    PICTURE.row = null;
  },
  // Back to the grid; what was typed is saved.
  async leave() {
    EDIT.end();
    if (!await PICTURE.save()) return;
    PICTURE.close();
    BENCH.go(BENCH.at, {keep: true});
    BENCH.grid.focus();
  },
  async step(by) {
    EDIT.end();
    if (!await PICTURE.save()) return;
    const next = BENCH.at + by;
    if (next < 0 || next >= BENCH.ids.length) return BENCH.tell(by > 0 ? 'This was the last picture.' : 'This is the first picture.');
    BENCH.go(next, {keep: true});
    await PICTURE.turn();
    PICTURE.field.focus();
  },

  async turn() {
    const id = BENCH.current;
    const row = await BENCH.fetchRow(id);
    if (BENCH.current !== id || !row) return;
    PICTURE.row = row;
    PICTURE.field.value = row.caption;
    PICTURE.field.scrollTop = 0;
    PICTURE.field.setSelectionRange(row.caption.length, row.caption.length);
    const image = PICTURE.place.querySelector('.wb-frame img');
    image.src = row.large;
    image.alt = row.name;
    PICTURE.shut();
    PICTURE.paint();
    const after = BENCH.ids[BENCH.at + 1];
    if (after !== undefined) BENCH.fetchRow(after).then((next) => { if (next) new Image().src = next.large; }, () => {});
  },

  paint() {
    const row = PICTURE.row, place = PICTURE.place;
    place.querySelector('.wb-where').textContent = `${(BENCH.at + 1).toLocaleString('en-US')} of ${BENCH.ids.length.toLocaleString('en-US')}`;
    place.querySelector('.wb-name').textContent = row.name;
    const size = row.size ? `${row.size[0]} × ${row.size[1]}` : 'unreadable';
    const bucket = row.bucket ? `, bucket ${row.bucket[0]} × ${row.bucket[1]}${row.upscaled ? ' (scaled up)' : ''}` : '';
    const coded = row.encoding ? `, caption reads as ${row.encoding}` : '';
    place.querySelector('.wb-facts').textContent = `${size}${bucket}${coded}${row.missing ? ', no caption file yet' : ''}`;
    place.querySelector('.wb-wrong').replaceChildren(...row.wrong.map((each) => make('p', {}, each.title)), row.fixed ? make('p', {}, row.fixed) : '');
    place.querySelector('.wb-mask-it').textContent = row.masked ? 'Change the mask' : 'Mask';
    place.querySelector('.wb-skip').textContent = row.skipped ? 'Take in again' : 'Leave out';
    PICTURE.field.readOnly = Boolean(row.fixed);
    const repeats = place.querySelector('.wb-repeats');
    repeats.value = row.repeats ?? '';
    repeats.placeholder = String(BENCH.about.folders[row.folder].repeats);
    place.classList.toggle('skipped', row.skipped);
    PICTURE.fit();
    PICTURE.chips();
    MASK.show();
  },

  // The frame has the picture's form and as much room as there is; what is cut out of it is drawn in it.
  fit() {
    const row = PICTURE.row;
    if (!row) return;
    const stage = PICTURE.place.querySelector('.wb-stage'), frame = stage.firstElementChild;
    const [wide, high] = row.size || [1, 1];
    const width = Math.min(stage.clientWidth, stage.clientHeight * wide / high);
    frame.style.cssText = `width:${width}px;height:${width * high / wide}px`;
    EDIT.box(row.crop);
  },

  // --- the caption ----------------------------------------------------------------------------------------------------

  // Saves what was typed where it differs; true where nothing stands in the way of going on.
  save() {
    PICTURE.saving = PICTURE.saving.then(PICTURE.saveOnce, PICTURE.saveOnce);
    return PICTURE.saving;
  },
  async saveOnce() {
    const row = PICTURE.row, text = PICTURE.field?.value;
    if (!row || text === row.caption) return true;
    try {
      const done = await BENCH.of('caption', {id: row.id, text, was: row.caption}, true);
      Object.assign(BENCH.about, {undo: done.undo, redo: done.redo, marks: done.marks});
      PICTURE.seen(done.row);
      BENCH.count();
      BENCH.tell(`Saved ${row.name}.`);
      BENCH.later();
      return true;
    } catch (error) {
      if (error.said?.row) PICTURE.seen(error.said.row);
      const [more, offer] = error.said?.row ? ['; save again to write it all the same.', null] : ['.', ['Drop what I typed', () => PICTURE.drop()]];
      BENCH.tell(`${error.message} What you typed stands in the field${more}`, {refused: true, offer});
      return false;
    }
  },
  drop() {
    PICTURE.field.value = PICTURE.row.caption;
    PICTURE.chips();
    PICTURE.field.focus();
    BENCH.tell('What you typed is dropped.');
  },
  // The answer to a saving: from now on what was typed is beside this caption, and is saved over it if it differs.
  seen(row) {
    if (PICTURE.row?.id === row.id) PICTURE.row = row;
    BENCH.keep([row]);
  },
  // While something is typed it is beside the caption that stood there: one that changed since is not saved over unsaid.
  renewed(rows) {
    const mine = PICTURE.row && rows.find((row) => row.id === PICTURE.row.id);
    if (!mine || !PICTURE.open) return;
    const typed = PICTURE.field.value !== PICTURE.row.caption;
    PICTURE.row = typed ? {...mine, caption: PICTURE.row.caption} : mine;
    if (!typed) PICTURE.field.value = mine.caption;
    PICTURE.paint();
  },
  // What was typed before the folder was opened again, over the caption that stood there then.
  typedBefore(caption, typed) {
    PICTURE.row = {...PICTURE.row, caption};
    PICTURE.field.value = typed;
    PICTURE.chips();
  },
  async reload() {
    if (!PICTURE.open) return;
    const row = (await BENCH.of('rows', {ids: [PICTURE.row.id]})).rows[0];
    PICTURE.row = row;
    PICTURE.field.value = row.caption;
    BENCH.keep([row]);
  },
  async remark(what) {
    const names = {skip: what.skip ? 'Left out' : 'Taken in again', repeats: 'Repeats', crop: 'Crop', mask: 'Mask'};
    try {
      const answer = await BENCH.of('remark', {ids: [PICTURE.row.id], title: `${names[Object.keys(what)[0]]}: ${PICTURE.row.name}`, ...what});
      BENCH.remarked(answer);
    } catch { /* it was said */ }
  },

  // --- tags -----------------------------------------------------------------------------------------------------------

  chips() {
    const text = PICTURE.field.value;
    const parts = [...text.matchAll(/[^,\n]+/g)].filter((each) => each[0].trim());
    PICTURE.place.querySelector('.wb-chips').replaceChildren(...parts.map((part, number) => make('button', {
      type: 'button', class: 'wb-chip', title: 'Take this tag out', 'aria-label': `Take out ${part[0].trim()}`, onclick: () => PICTURE.takeOut(number),
    }, make('span', {}, part[0].trim()), make('i', {'aria-hidden': 'true'}, '×'))));
  },
  takeOut(number) {
    const field = PICTURE.field;
    const part = [...field.value.matchAll(/[^,\n]+/g)].filter((each) => each[0].trim())[number];
    let [from, to] = [part.index, part.index + part[0].length];
    if (field.value[to] === ',') to++;
    else if (field.value[from - 1] === ',') from--;
    const rest = field.value.slice(0, from) + field.value.slice(to);
    field.value = from === 0 ? rest.replace(/^[ ]+/, '') : rest;
    field.focus();
    PICTURE.typed();
    PICTURE.save();
  },
  // The tag that is being written: its place in the text and its letters.
  word() {
    const field = PICTURE.field, before = field.value.slice(0, field.selectionStart);
    const from = Math.max(before.lastIndexOf(','), before.lastIndexOf('\n')) + 1;
    return {from: from + (before.slice(from).length - before.slice(from).trimStart().length), to: field.selectionStart, text: before.slice(from).trimStart()};
  },
  typed() {
    PICTURE.chips();
    PICTURE.complete();
  },
  complete() {
    clearTimeout(PICTURE.completing);
    const word = PICTURE.word();
    if (!word.text) return PICTURE.shut();
    PICTURE.completing = setTimeout(async () => {
      const found = await BENCH.of('tags', {find: word.text, most: 8}, true).catch(() => ({tags: []}));
      if (document.activeElement !== PICTURE.field || PICTURE.word().text !== word.text) return;
      PICTURE.offer(found.tags.filter(([tag]) => tag !== word.text));
    }, 60);
  },
  offer(words) {
    PICTURE.words = words;
    PICTURE.at = -1;
    const list = PICTURE.place.querySelector('.wb-words');
    list.hidden = !words.length;
    if (words.length) requestAnimationFrame(() => list.scrollIntoView({block: 'nearest'}));
    PICTURE.field.setAttribute('aria-expanded', String(words.length > 0));
    list.replaceChildren(...words.map(([tag, count], place) => make('li', {id: `wb-word-${place}`, role: 'option', 'aria-selected': 'false',
      onpointerdown: (event) => { event.preventDefault(); PICTURE.take(place); }}, make('span', {}, tag), make('b', {}, count.toLocaleString('en-US')))));
  },
  shut() { PICTURE.offer([]); },
  move(by) {
    PICTURE.at = (PICTURE.at + by + PICTURE.words.length) % PICTURE.words.length;
    const list = PICTURE.place.querySelector('.wb-words');
    for (const [place, item] of [...list.children].entries()) item.setAttribute('aria-selected', String(place === PICTURE.at));
    PICTURE.field.setAttribute('aria-activedescendant', `wb-word-${PICTURE.at}`);
  },
  take(place) {
    const {from, to} = PICTURE.word(), field = PICTURE.field, tag = PICTURE.words[place][0];
    const rest = field.value.slice(to).replace(/^[^,\n]*/, '');
    field.value = `${field.value.slice(0, from)}${tag}${rest || ', '}`;
    const at = from + tag.length + (rest ? 0 : 2);
    field.setSelectionRange(at, at);
    PICTURE.shut();
    PICTURE.chips();
  },

  // --- keys -----------------------------------------------------------------------------------------------------------

  key(event, typing, order) {
    if (EDIT.active) return EDIT.key(event);
    const does = (what) => { event.preventDefault(); what(); };
    if (event.key === 'PageDown') return does(() => PICTURE.step(1));
    if (event.key === 'PageUp') return does(() => PICTURE.step(-1));
    if (order && event.key.toLowerCase() === 's') return does(() => PICTURE.save());
    const way = BENCH.way(event);
    if (way && (!typing || PICTURE.field.value === PICTURE.row?.caption)) return does(() => BENCH.turn(way));
    if (event.target === PICTURE.field) return PICTURE.fieldKey(event, does);
    if (event.key === 'Escape') return does(() => PICTURE.leave());
    if (typing || order || event.altKey) return;
    if (event.target.matches?.('button, a') && ['Enter', ' '].includes(event.key)) return;
    const keys = {Enter: () => PICTURE.step(1), ArrowRight: () => PICTURE.step(1), ArrowLeft: () => PICTURE.step(-1), x: () => PICTURE.remark({skip: !PICTURE.row.skipped}),
      c: () => CROP.begin(), k: () => MASK.begin(), e: () => PICTURE.field.focus(), '?': () => ACTS.help()};
    if (keys[event.key]) does(keys[event.key]);
  },
  fieldKey(event, does) {
    const offered = PICTURE.words.length > 0;
    if (offered && event.key === 'ArrowDown') return does(() => PICTURE.move(1));
    if (offered && event.key === 'ArrowUp') return does(() => PICTURE.move(PICTURE.at < 0 ? 0 : -1));
    if (offered && event.key === 'Tab' && !event.shiftKey) return does(() => PICTURE.take(Math.max(0, PICTURE.at)));
    if (event.key === 'Escape') return does(() => (offered ? PICTURE.shut() : PICTURE.leave()));
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    if (offered && PICTURE.at >= 0) return does(() => PICTURE.take(PICTURE.at));
    does(() => PICTURE.step(1));
  },
};

// What is drawn on the large picture: one thing at a time, a crop or a mask.
const EDIT = {
  active: null,
  get frame() { return PICTURE.place.querySelector('.wb-frame'); },
  begin(what, panel) {
    EDIT.end();
    EDIT.active = what;
    PICTURE.place.classList.add('editing');
    PICTURE.place.querySelector('.wb-editing').replaceChildren(panel);
    panel.querySelector('button, input')?.focus();
    // On a phone the panel stands below the picture, and both are seen.
    if (matchMedia('(max-width: 900px)').matches) PICTURE.place.querySelector('.wb-stage').scrollIntoView({block: 'start'});
    else panel.scrollIntoView({block: 'nearest'});
  },
  end() {
    if (!EDIT.active) return;
    const was = EDIT.active;
    EDIT.active = null;
    PICTURE.place.classList.remove('editing');
    PICTURE.place.querySelector('.wb-editing').replaceChildren();
    was.over();
    PICTURE.fit();
  },
  key(event) {
    if (event.key === 'Escape') {
      event.preventDefault();
      EDIT.end();
      PICTURE.field.focus();
    } else EDIT.active.key(event);
  },
  // Draws a part of the picture: left, top, width, height in its pixels.
  box(crop) {
    const drawn = PICTURE.place.querySelector('.wb-crop'), size = PICTURE.row?.size;
    drawn.hidden = !crop || !size;
    if (drawn.hidden) return;
    const [left, top, width, height] = crop, part = (value, of) => `${100 * value / of}%`;
    drawn.style.cssText = `left:${part(left, size[0])};top:${part(top, size[1])};width:${part(width, size[0])};height:${part(height, size[1])}`;
  },
  // Where in the picture a pointer is, in its pixels.
  at(event) {
    const box = EDIT.frame.getBoundingClientRect(), [wide, high] = PICTURE.row.size;
    const within = (value) => Math.max(0, Math.min(1, value));
    return [within((event.clientX - box.left) / box.width) * wide, within((event.clientY - box.top) / box.height) * high];
  },
};

// The part of a picture that is trained, drawn with the pointer or moved with the arrow keys (with Shift its size).
const CROP = {
  part: null,
  begin() {
    const row = PICTURE.row;
    if (!row?.size) return;
    CROP.part = (row.own_crop ? row.crop : [0, 0, ...row.size]).map(Math.round);
    const act = (words, does, more = {}) => make('button', {type: 'button', class: 'small', onclick: does, ...more}, words);
    EDIT.begin(CROP, make('div', {class: 'wb-edit'},
      make('p', {}, 'Draw the part that is to be trained. Arrow keys move it, with Shift they change its size. The picture itself stays as it is.'),
      make('p', {class: 'wb-crop-size', role: 'status'}),
      make('div', {class: 'wb-line'}, act('Keep this crop', () => CROP.keep(), {class: 'small primary'}), row.own_crop && act('Remove the crop', () => { EDIT.end(); PICTURE.remark({crop: null}); }), act('Cancel', () => EDIT.end()))));
    CROP.draw();
    EDIT.frame.addEventListener('pointerdown', CROP.down);
  },
  over() { EDIT.frame.removeEventListener('pointerdown', CROP.down); },
  draw() {
    EDIT.box(CROP.part);
    PICTURE.place.querySelector('.wb-crop-size').textContent = `${CROP.part[2]} × ${CROP.part[3]} of ${PICTURE.row.size.join(' × ')} pixels`;
  },
  down(event) {
    event.preventDefault();
    const [x, y] = EDIT.at(event), frame = EDIT.frame;
    frame.setPointerCapture(event.pointerId);
    const move = (moved) => {
      const [to, down] = EDIT.at(moved);
      CROP.part = [Math.min(x, to), Math.min(y, down), Math.max(1, Math.abs(to - x)), Math.max(1, Math.abs(down - y))].map(Math.round);
      CROP.hold();
    };
    frame.addEventListener('pointermove', move);
    frame.addEventListener('pointerup', () => frame.removeEventListener('pointermove', move), {once: true});
  },
  hold() {
    const [wide, high] = PICTURE.row.size;
    let [left, top, width, height] = CROP.part;
    width = Math.max(1, Math.min(width, wide));
    height = Math.max(1, Math.min(height, high));
    CROP.part = [Math.max(0, Math.min(left, wide - width)), Math.max(0, Math.min(top, high - height)), width, height];
    CROP.draw();
  },
  key(event) {
    const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!way) return;
    event.preventDefault();
    const by = Math.max(1, Math.round(Math.max(...PICTURE.row.size) / 100));
    const from = event.shiftKey ? 2 : 0;
    CROP.part[from] += way[0] * by;
    CROP.part[from + 1] += way[1] * by;
    CROP.hold();
  },
  keep() {
    const crop = CROP.part;
    EDIT.end();
    PICTURE.remark({crop});
  },
};
