// The workbench: the pictures and captions of one folder, at full width. This file holds what is known, the grid and the
// keys; the large picture is in workbench_picture.js, what is done with many in workbench_acts.js.
const make = (kind, about = {}, ...inside) => {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(about)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (name === 'class') made.className = value;
    else if (name in made && !name.includes('-') && typeof value !== 'string') made[name] = value;
    else made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...inside.flat().filter((each) => each !== null && each !== undefined && each !== false));
  return made;
};
const counted = (number, one, many = `${one}s`) => `${number.toLocaleString('en-US')} ${number === 1 ? one : many}`;
const sizes = {small: 116, medium: 164, large: 240};

const BENCH = {
  PAGE: 100, // rows that are asked for at once
  MOST_ROWS: 3000, // rows that are kept
  SETTLED: 90, // milliseconds without scrolling before thumbnails are fetched
  token: '', about: null, ids: [], rows: new Map(), asked: new Set(), chosen: new Set(), at: 0, anchor: 0,
  filter: {}, size: 'medium', cells: new Map(), spare: [], number: 0, laters: 0, there: false, turning: Promise.resolve(), resuming: null,

  get place() { return document.getElementById('workbench'); },
  get grid() { return BENCH.place?.querySelector('.wb-grid'); },
  get open() { return document.body.dataset.place === 'pictures'; },
  row(id) { return BENCH.rows.get(id); },
  get current() { return BENCH.ids[BENCH.at]; },
  // What an act is about: the selection, else all that is shown.
  subject() { return BENCH.chosen.size ? BENCH.ids.filter((id) => BENCH.chosen.has(id)) : BENCH.ids; },

  // --- asking the program ---------------------------------------------------------------------------------------------

  // Returns the answer's document. A refusal is said and thrown; `quietly` leaves the saying to the caller.
  async ask(path, body, quietly = false) {
    let answer, said;
    try {
      answer = await fetch(`workbench/${path}`, {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body || {})});
      said = await answer.json();
    } catch (error) {
      said = {refused: 'The program does not answer.'};
    }
    if (answer?.ok) return said;
    const refusal = Object.assign(new Error(said.refused || 'Refused.'), {said});
    if (said.closed && BENCH.resuming) quietly = true;
    else if (said.closed) {
      const words = await BENCH.resume();
      refusal.message = `${words} The program had closed it; do it once more.`;
      if (quietly) BENCH.tell(words); // a look at counts or tags has nobody who says it
    }
    if (!quietly) BENCH.tell(refusal.message, {refused: true});
    throw refusal;
  },
  of(path, body, quietly) { return BENCH.ask(`${BENCH.token}/${path}`, body, quietly); },

  // Opens the folder again, since the program closed it or its pictures changed. The place in it stays, and so does a
  // picture that is large, with what was typed. Returns what to say of it.
  resume() {
    BENCH.resuming ||= (async () => {
      const large = PICTURE.open, row = PICTURE.row || BENCH.row(BENCH.current), typed = large ? PICTURE.field.value : '';
      try {
        const about = await BENCH.ask('open', {path: BENCH.about.path}, true);
        await BENCH.took(about);
        const folder = row && about.folders.find((each) => each.name === row.folder_name);
        const {id} = folder ? await BENCH.of('named', {folder: folder.number, name: row.name}, true) : {};
        if (row && !BENCH.ids.includes(id)) return `This folder was opened again; ${row.name} is not there any more.`;
        if (row) BENCH.go(BENCH.ids.indexOf(id), {keep: true});
        if (large) await PICTURE.show();
        if (large && typed !== row.caption) PICTURE.typedBefore(row.caption, typed);
        return 'This folder was opened again.';
      } catch (error) {
        return error.message;
      } finally {
        BENCH.resuming = null;
      }
    })();
    return BENCH.resuming;
  },

  // Says something in the line above the pictures; `turn` is what it offers beside it, 'undo' or 'redo', or `offer` is.
  tell(words, {refused = false, turn = '', offer = null} = {}) {
    const [name, act, hide] = offer || (turn ? [turn === 'undo' ? 'Undo' : 'Redo', () => BENCH.turn(turn)] : []);
    const line = BENCH.place.querySelector('.wb-told');
    line.className = `wb-told${refused ? ' refused' : ''}`;
    line.setAttribute('role', refused ? 'alert' : 'status');
    line.replaceChildren(make('span', {}, words), ...(name ? [make('button', {type: 'button', class: 'small', onclick: act}, name)] : []),
      make('button', {type: 'button', class: 'small close', 'aria-label': 'Hide this', onclick: () => { line.replaceChildren(); hide?.(); }}, '×'));
  },

  // --- opening --------------------------------------------------------------------------------------------------------

  async start() {
    if (BENCH.there) return;
    BENCH.there = true;
    BENCH.build();
    try {
      const state = await BENCH.ask('state', {path: sessionStorage.getItem('folder') || ''});
      if (!BENCH.chose) BENCH.took(state); // a folder that was named meanwhile goes before it
    } catch {
      BENCH.there = false;
    }
  },

  async openFolder(path) {
    if (PICTURE.open && !await PICTURE.save()) return;
    BENCH.place.classList.add('busy');
    BENCH.chose = true;
    try {
      await BENCH.took(await BENCH.ask('open', {path}));
    } catch { /* it was said */ }
    BENCH.place.classList.remove('busy');
  },

  // The folder as the program knows it now: its parts, counts and what can be done.
  took(about, turn = 'undo') {
    const other = about.token !== BENCH.token;
    BENCH.about = about;
    BENCH.token = about.token;
    if (about.token) sessionStorage.setItem('folder', about.path);
    if (other) {
      BENCH.filter = {};
      BENCH.place.querySelector('.wb-find').value = BENCH.tagWord = '';
      BENCH.chosen.clear();
      BENCH.at = BENCH.anchor = 0;
      PICTURE.close();
    }
    BENCH.place.dataset.empty = String(!about.token);
    const field = BENCH.place.querySelector('.wb-path');
    // What is being typed there stays, whenever the answer to the opening of the page comes.
    if ((other && BENCH.chose) || document.activeElement !== field) field.value = about.path || '';
    if (about.told) BENCH.tell(about.told, {turn: about[turn] ? turn : ''});
    BENCH.unfinished(about.unfinished || []);
    BENCH.otherwise();
    BENCH.follow(about.errand).catch(() => {}); // why was said
    BENCH.rail();
    if (about.token && !about.complete) BENCH.later();
    return about.token ? BENCH.look({anew: other}) : null;
  },

  // Pictures that came or went since the folder was opened.
  otherwise() {
    const {gone = 0, new: more = 0} = BENCH.about.otherwise || {};
    const parts = [gone && `${counted(gone, 'picture')} ${gone === 1 ? 'is' : 'are'} gone`, more && `${counted(more, 'picture')} ${more === 1 ? 'is' : 'are'} new`].filter(Boolean);
    BENCH.place.querySelector('.wb-otherwise').replaceChildren(...(parts.length ? [make('div', {class: 'wb-cut', role: 'status'}, make('span', {}, `Since this folder was opened ${parts.join(' and ')}.`),
      make('button', {type: 'button', class: 'small', onclick: async () => BENCH.tell(await BENCH.resume())}, 'Open it again'))] : []));
  },

  // Work that was begun before the page was loaded anew, or in another tab: how far it is, and what came of it.
  async follow(errand) {
    if (!errand?.number || ACTS.met.has(errand.number)) return;
    const going = errand.status === 'running';
    let result = errand.status === 'done' ? errand.result : null;
    if (going) {
      const place = BENCH.place.querySelector('.wb-going');
      result = await ACTS.wait(errand, place, {named: true});
      await BENCH.again();
    }
    ACTS.met.add(errand.number);
    if (result?.plan && result.path === BENCH.about.path) ACTS.offerPlan(errand.title, result);
    else if (going && result?.told) BENCH.tell(result.told, {turn: result.written ? 'undo' : ''});
    else if (going && result?.found !== undefined) BENCH.tell(`${counted(result.found, 'problem')} found.`, {offer: ['Show them', () => ACTS.problems()]});
  },

  // Changes that were cut off, by a stop or the end of the program, and what to do about them.
  unfinished(listed) {
    const settle = async (number, back) => {
      try {
        BENCH.took(await BENCH.of('settle', {number, back}));
        PICTURE.reload();
      } catch { /* it was said */ }
    };
    const said = ({title, undoing, done, pending, foreign}) => {
      const parts = [`${done.toLocaleString('en-US')} of ${counted(done + pending + foreign, 'caption')} ${undoing ? 'taken back' : 'changed'}`, `${pending.toLocaleString('en-US')} not yet`];
      if (foreign) parts.push(`${foreign.toLocaleString('en-US')} written by another program meanwhile, which stay as they are`);
      return `${undoing ? 'Taking back ' : ''}“${title}” was cut off: ${parts.join(', ')}.`;
    };
    BENCH.place.querySelector('.wb-unfinished').replaceChildren(...listed.map((each) => {
      const act = (words, back) => make('button', {type: 'button', class: 'small', onclick: () => settle(each.number, back)}, words);
      const [finish, back] = each.undoing ? ['Take the rest back', 'Change all again'] : ['Finish it', 'Take it back'];
      return make('div', {class: 'wb-cut', role: 'alert'}, make('span', {}, said(each)), act(finish, false), act(back, true));
    }));
  },

  // What was remarked of pictures shows in them; the frame counts anew.
  remarked(answer) {
    const ids = answer.changed.filter((id) => BENCH.rows.has(id));
    for (let from = 0; from < ids.length; from += BENCH.PAGE) BENCH.of('rows', {ids: ids.slice(from, from + BENCH.PAGE)}).then((found) => BENCH.keep(found.rows), () => {});
    BENCH.about = answer;
    BENCH.rail();
    BENCH.count();
    BENCH.tell(answer.told, {turn: 'undo'});
  },

  // After single captions were saved the counts are asked for, but not after each letter. An answer that was made before
  // something newer is known would have old marks of what can be taken back.
  later() {
    clearTimeout(BENCH.counting);
    const number = ++BENCH.laters;
    BENCH.counting = setTimeout(async () => {
      const before = BENCH.about;
      const about = await BENCH.of('about', {}, true).catch(() => null);
      if (!about || about.token !== BENCH.token || number !== BENCH.laters) return;
      if (BENCH.about !== before) return BENCH.later();
      const known = BENCH.about.complete;
      BENCH.about = about;
      BENCH.rail();
      BENCH.otherwise();
      BENCH.count();
      if (!about.complete) BENCH.later();
      else if (!known && PICTURE.open && document.activeElement === PICTURE.field) PICTURE.complete(); // all tags are known now
    }, 600);
  },

  async again() { BENCH.took(await BENCH.of('about')); },

  // Asks which pictures the filter leaves, and shows them.
  async look({anew = false} = {}) {
    const number = ++BENCH.number;
    const current = BENCH.current;
    const found = await BENCH.of('view', BENCH.filter);
    if (number !== BENCH.number) return;
    BENCH.ids = found.ids;
    BENCH.rows.clear();
    BENCH.asked.clear();
    const there = new Set(found.ids);
    for (const id of [...BENCH.chosen]) if (!there.has(id)) BENCH.chosen.delete(id);
    BENCH.at = anew ? 0 : Math.max(0, found.ids.indexOf(current) >= 0 ? found.ids.indexOf(current) : Math.min(BENCH.at, found.ids.length - 1));
    for (const cell of BENCH.cells.values()) BENCH.free(cell);
    BENCH.cells.clear();
    if (anew) BENCH.grid.scrollTop = 0;
    BENCH.count();
    BENCH.draw();
  },

  // --- the frame ------------------------------------------------------------------------------------------------------

  build() {
    const act = (words, does, more = {}) => make('button', {type: 'button', class: 'small', onclick: does, ...more}, words);
    BENCH.place.replaceChildren(
      make('form', {class: 'wb-open', onsubmit: (event) => { event.preventDefault(); BENCH.openFolder(BENCH.place.querySelector('.wb-path').value); }},
        make('label', {for: 'wb-path'}, 'Folder'),
        make('input', {id: 'wb-path', class: 'wb-path', type: 'text', spellcheck: 'false', autocomplete: 'off', placeholder: 'The folder of your pictures, such as ~/pictures/dog'}),
        make('button', {class: 'small primary'}, 'Open'),
        act('Browse', () => ACTS.browse()),
        make('div', {class: 'wb-acts'},
          act('Add pictures', () => ACTS.upload()),
          act('Problems', () => ACTS.problems(), {class: 'small wb-with wb-problems'}),
          act('Caption by a model', () => ACTS.captioners(), {class: 'small wb-with'}),
          act('Use for training', () => ACTS.use(), {class: 'small wb-with'}),
          act('?', () => ACTS.help(), {class: 'small wb-help', 'aria-label': 'Keys', title: 'Keys (?)'}))),
      make('div', {class: 'wb-told'}),
      make('div', {class: 'wb-unfinished'}),
      make('div', {class: 'wb-otherwise'}),
      make('div', {class: 'wb-going'}),
      make('div', {class: 'wb-body'},
        make('aside', {class: 'wb-rail', 'aria-label': 'Folders, filters and tags'}),
        make('section', {class: 'wb-middle', 'aria-label': 'Pictures'},
          make('div', {class: 'wb-bar'},
            make('input', {class: 'wb-find', type: 'search', 'aria-label': 'Find in names and captions', placeholder: 'Find in names and captions  ( / )', oninput: () => BENCH.typed()}),
            make('span', {class: 'wb-count', role: 'status'}),
            make('span', {class: 'wb-spacer'}),
            make('div', {class: 'wb-acts'},
            act('Filters', () => BENCH.place.classList.toggle('rail-open'), {class: 'small wb-narrow'}),
            act('Select all', () => BENCH.chooseAll(), {class: 'small wb-all'}),
            act('Change captions', () => ACTS.change(), {class: 'small primary wb-change'}),
            act('Leave out', () => ACTS.leaveOut(), {class: 'small wb-chosen'}),
            act('Undo', () => BENCH.turn('undo'), {class: 'small wb-undo'}),
            act('Redo', () => BENCH.turn('redo'), {class: 'small wb-redo'}),
            act('History', () => ACTS.history(), {title: 'What was done to the captions (H)'}),
            make('select', {class: 'wb-size', 'aria-label': 'Size of the pictures', onchange: (event) => { BENCH.size = event.target.value; BENCH.draw(); }},
              ...Object.keys(sizes).map((each) => make('option', {value: each, selected: each === 'medium'}, each))))),
          make('div', {class: 'wb-grid', role: 'listbox', 'aria-multiselectable': 'true', 'aria-label': 'Pictures', tabIndex: 0}, make('div', {class: 'wb-space'})),
          make('div', {class: 'wb-none'})),
        make('section', {class: 'wb-picture', hidden: true, 'aria-label': 'One picture'})));
    const grid = BENCH.grid;
    grid.addEventListener('scroll', () => requestAnimationFrame(BENCH.draw), {passive: true});
    grid.addEventListener('click', BENCH.clicked);
    grid.addEventListener('dblclick', (event) => event.target.closest('.wb-cell') && PICTURE.show());
    new ResizeObserver(() => BENCH.draw()).observe(grid);
    ACTS.drops(BENCH.place);
    const top = document.getElementById('top');
    new ResizeObserver(() => BENCH.place.style.setProperty('--top', `${top.offsetHeight}px`)).observe(top);
  },

  typed() {
    clearTimeout(BENCH.typing);
    BENCH.typing = setTimeout(() => BENCH.filterBy({find: BENCH.place.querySelector('.wb-find').value}), 200);
  },
  filterBy(more) {
    BENCH.filter = {...BENCH.filter, ...more};
    for (const [name, value] of Object.entries(BENCH.filter)) if (value === '' || value === null || (Array.isArray(value) && !value.length)) delete BENCH.filter[name];
    BENCH.rail();
    return BENCH.look({anew: true});
  },

  count() {
    const {about, ids, chosen} = BENCH;
    const all = about.pictures;
    const shown = ids.length === all ? counted(all, 'picture') : `${ids.length.toLocaleString('en-US')} of ${counted(all, 'picture')}`;
    BENCH.place.querySelector('.wb-count').textContent = chosen.size ? `${shown}, ${chosen.size.toLocaleString('en-US')} selected` : shown;
    BENCH.place.querySelector('.wb-all').textContent = chosen.size ? 'Select none' : 'Select all';
    BENCH.place.querySelector('.wb-change').disabled = !ids.length;
    BENCH.place.querySelector('.wb-change').textContent = chosen.size ? `Change ${counted(chosen.size, 'caption')}` : 'Change all shown';
    BENCH.place.querySelector('.wb-chosen').disabled = !chosen.size;
    for (const [name, words, key] of [['undo', 'Undo', 'Ctrl+Z'], ['redo', 'Redo', 'Ctrl+Shift+Z']]) {
      const button = BENCH.place.querySelector(`.wb-${name}`);
      button.disabled = !about[name];
      button.title = about[name] ? `${words}: ${about[name]} (${key})` : `Nothing to ${name}`;
    }
    const none = BENCH.place.querySelector('.wb-none');
    none.hidden = ids.length > 0;
    none.replaceChildren(...(all ? [make('p', {}, 'No picture fits these filters.'), make('button', {type: 'button', class: 'small', onclick: () => BENCH.clear()}, 'Show all')]
      : [make('p', {}, 'No pictures in here yet. Drop pictures or a zip here, or choose them with “Add pictures”.')]));
  },
  clear() {
    BENCH.place.querySelector('.wb-find').value = '';
    BENCH.filter = {};
    BENCH.filterBy({});
  },

  // --- the rail: folders, filters, tags -------------------------------------------------------------------------------

  rail() {
    const {about, filter} = BENCH;
    const rail = BENCH.place.querySelector('.wb-rail');
    const scrolled = rail.scrollTop;
    const toggle = (name, value, words, count, more = '') => make('button', {
      type: 'button', class: `wb-row ${more}`, 'aria-pressed': String(filter[name] === value),
      onclick: () => BENCH.filterBy({[name]: filter[name] === value ? null : value}),
    }, make('span', {}, words), make('b', {}, count.toLocaleString('en-US')));
    if (!about.token) return rail.replaceChildren();
    const folders = about.folders.map((folder) => make('div', {class: 'wb-folder'},
      toggle('folder', folder.number, folder.name, folder.pictures),
      make('div', {class: 'wb-folder-about'},
        make('span', {}, `${counted(folder.repeats, 'repeat')}${folder.regularisation ? ', regularisation' : ''}${folder.class_tokens ? `, “${folder.class_tokens}”` : ''}`),
        make('button', {type: 'button', class: 'link', 'aria-label': `Change repeats and class of ${folder.name}`, onclick: () => ACTS.folder(folder)}, 'Change'))));
    const kinds = about.kinds.filter((kind) => kind.count || filter.problem === kind.name);
    const tagField = make('input', {type: 'search', class: 'wb-tag-find', placeholder: 'Find a tag', 'aria-label': 'Find a tag', value: BENCH.tagWord || '',
      oninput: (event) => { BENCH.tagWord = event.target.value; BENCH.tagList(); }});
    rail.replaceChildren(...[
      make('button', {type: 'button', class: 'small wb-narrow', onclick: () => BENCH.place.classList.remove('rail-open')}, 'Done'),
      make('h3', {}, 'Folders'), ...folders, ...BENCH.notices(about),
      make('h3', {}, 'Show only'),
      ...kinds.map((kind) => toggle('problem', kind.name, kind.title, kind.count, kind.serious ? 'bad' : '')),
      about.buckets.length > 1 && make('label', {class: 'wb-choice'}, 'Bucket', make('select', {onchange: (event) => BENCH.filterBy({bucket: event.target.value || null})},
        make('option', {value: ''}, 'any'),
        ...about.buckets.map((each) => make('option', {value: each.name, selected: filter.bucket === each.name}, `${each.name.replace('x', ' × ')} (${each.count})`)))),
      make('label', {class: 'wb-choice'}, 'Shorter side below', make('input', {type: 'number', min: 0, step: 1, inputmode: 'numeric', value: filter.below ?? '',
        onchange: (event) => BENCH.filterBy({below: Number(event.target.value) || null})}), 'px'),
      make('label', {class: 'wb-choice'}, 'Order', make('select', {onchange: (event) => BENCH.filterBy({sort: event.target.value || null})},
        ...[['', 'folder and name'], ['size', 'smallest first'], ['short', 'shortest caption first'], ['changed', 'last changed first']]
          .map(([value, words]) => make('option', {value, selected: (filter.sort || '') === value}, words)))),
      make('h3', {}, 'Tags ', make('span', {class: 'quiet'}, about.tags.toLocaleString('en-US'))), tagField,
      make('div', {class: 'wb-tags'})].filter(Boolean));
    rail.scrollTop = scrolled;
    BENCH.tagList();
  },

  // What is to be known of the folders: pictures in them that are not used, and why.
  notices(about) {
    const hidden = about.hidden ? [`${counted(about.hidden, 'picture')} that ${about.hidden === 1 ? 'leads' : 'lead'} out of the folders which the page may use ${about.hidden === 1 ? 'is' : 'are'} not shown.`] : [];
    const said = [...hidden, ...about.notices];
    return said.length ? [make('details', {class: 'wb-notices', open: BENCH.noticing, ontoggle: (event) => { BENCH.noticing = event.target.open; }}, make('summary', {}, counted(said.length, 'notice')), ...said.map((each) => make('p', {}, each)))] : [];
  },

  async tagList() {
    const number = (BENCH.tagNumber = (BENCH.tagNumber || 0) + 1);
    const found = await BENCH.of('tags', {find: BENCH.tagWord || '', most: 60});
    if (number !== BENCH.tagNumber) return;
    const wanted = BENCH.filter.tags || [];
    const listed = [...wanted.filter((tag) => !found.tags.some(([each]) => each === tag)).map((tag) => [tag, 0]), ...found.tags];
    BENCH.place.querySelector('.wb-tags')?.replaceChildren(...listed.map(([tag, count]) => make('button', {
      type: 'button', class: 'wb-chip', 'aria-pressed': String(wanted.includes(tag)), title: tag,
      onclick: () => BENCH.filterBy({tags: wanted.includes(tag) ? wanted.filter((each) => each !== tag) : [...wanted, tag]}),
    }, make('span', {}, tag), make('b', {}, count ? count.toLocaleString('en-US') : ''))),
    found.more ? make('p', {class: 'quiet'}, `and ${found.more.toLocaleString('en-US')} more; find them by name.`) : '');
  },

  // --- the grid -------------------------------------------------------------------------------------------------------

  // How the grid is laid out: so many columns of cells of this width and height, with the gap.
  layout() {
    const grid = BENCH.grid, gap = 8, foot = 42;
    const width = grid.clientWidth - 2 * gap;
    const columns = Math.max(2, Math.floor((width + gap) / (sizes[BENCH.size] + gap)));
    const side = Math.floor((width - gap * (columns - 1)) / columns);
    return {gap, columns, side, high: side + foot, step: side + foot + gap, lines: Math.ceil(BENCH.ids.length / columns)};
  },

  draw() {
    const grid = BENCH.grid;
    if (!grid || !grid.clientHeight || !BENCH.token) return;
    const form = BENCH.layout();
    grid.firstElementChild.style.height = `${form.lines * form.step + form.gap}px`;
    const first = Math.max(0, Math.floor(grid.scrollTop / form.step)) * form.columns;
    const last = Math.min(BENCH.ids.length, (Math.ceil((grid.scrollTop + grid.clientHeight) / form.step)) * form.columns);
    for (const [place, cell] of BENCH.cells) {
      if (place >= first && place < last) continue;
      BENCH.free(cell);
      BENCH.cells.delete(place);
    }
    for (let place = first; place < last; place++) {
      let cell = BENCH.cells.get(place);
      if (!cell) BENCH.cells.set(place, cell = BENCH.cell());
      BENCH.fill(cell, place, form);
    }
    BENCH.want(first, last);
    grid.setAttribute('aria-activedescendant', BENCH.cells.has(BENCH.at) ? `wb-cell-${BENCH.at}` : '');
    clearTimeout(BENCH.settling);
    BENCH.settling = setTimeout(BENCH.load, BENCH.SETTLED);
  },

  cell() {
    const spare = BENCH.spare.pop();
    if (spare) {
      spare.hidden = false;
      return spare;
    }
    const cell = make('div', {class: 'wb-cell', role: 'option'}, make('img', {alt: '', decoding: 'async', draggable: 'false'}),
      make('i', {class: 'wb-tick', 'aria-hidden': 'true'}), make('span', {class: 'wb-marks'}), make('p', {}));
    BENCH.grid.firstElementChild.append(cell);
    return cell;
  },
  free(cell) {
    cell.hidden = true;
    cell.id = '';
    cell.querySelector('img').removeAttribute('src');
    BENCH.spare.push(cell);
  },

  fill(cell, place, {gap, columns, side, high, step}) {
    const id = BENCH.ids[place], row = BENCH.row(id);
    const [x, y] = [gap + (place % columns) * (side + gap), gap + Math.floor(place / columns) * step];
    cell.style.cssText = `width:${side}px;height:${high}px;transform:translate(${x}px,${y}px)`;
    cell.id = `wb-cell-${place}`;
    cell.place = place;
    cell.setAttribute('aria-selected', String(BENCH.chosen.has(id)));
    cell.classList.toggle('current', place === BENCH.at);
    cell.classList.toggle('skipped', Boolean(row?.skipped));
    const words = cell.querySelector('p');
    const text = row ? (row.missing ? 'no caption' : row.caption || 'empty caption') : '';
    if (words.textContent !== text) words.textContent = text;
    words.classList.toggle('absent', Boolean(row && (row.missing || !row.caption)));
    cell.setAttribute('aria-label', row ? `${row.name}: ${text}` : '');
    cell.title = row ? row.name : '';
    const marks = row ? [...(row.skipped ? ['left out'] : []), ...(row.repeats ? [`${row.repeats}×`] : []), ...(row.masked ? ['mask'] : []), ...(row.wrong.length ? ['!'] : [])] : [];
    const shown = marks.join(' · ');
    const place_ = cell.querySelector('.wb-marks');
    if (place_.textContent !== shown) place_.textContent = shown;
    place_.title = row ? row.wrong.map((each) => each.title).join(', ') : '';
    const image = cell.querySelector('img'), wanted = row ? row.small : '';
    if (image.wanted !== wanted && image.getAttribute('src')) image.removeAttribute('src');
    image.wanted = wanted;
  },

  // Thumbnails of what is in view, once the scrolling rests.
  load() {
    for (const cell of BENCH.cells.values()) {
      const image = cell.querySelector('img');
      if (image.wanted && image.getAttribute('src') !== image.wanted) image.setAttribute('src', image.wanted);
    }
  },

  // Asks for the rows of these places that are not known, a page at a time.
  async want(first, last) {
    for (let from = first - (first % BENCH.PAGE); from < last; from += BENCH.PAGE) {
      const ids = BENCH.ids.slice(from, from + BENCH.PAGE).filter((id) => !BENCH.rows.has(id) && !BENCH.asked.has(id));
      if (!ids.length) continue;
      for (const id of ids) BENCH.asked.add(id);
      const number = BENCH.number;
      BENCH.of('rows', {ids}).then((found) => {
        if (number !== BENCH.number) return;
        if (BENCH.rows.size > BENCH.MOST_ROWS) BENCH.forget();
        BENCH.keep(found.rows);
      }, () => {}).finally(() => { for (const id of ids) BENCH.asked.delete(id); });
    }
  },
  forget() {
    const near = new Set([...BENCH.cells.keys()].map((place) => BENCH.ids[place]));
    for (const id of BENCH.rows.keys()) if (!near.has(id)) BENCH.rows.delete(id);
  },
  keep(rows) {
    for (const row of rows) BENCH.rows.set(row.id, row);
    BENCH.draw();
    PICTURE.renewed(rows);
  },
  async fetchRow(id) {
    if (!BENCH.row(id)) BENCH.keep((await BENCH.of('rows', {ids: [id]})).rows);
    return BENCH.row(id);
  },

  // --- the cursor and the selection -----------------------------------------------------------------------------------

  go(place, {extend = false, keep = false} = {}) {
    if (!BENCH.ids.length) return;
    BENCH.at = Math.max(0, Math.min(BENCH.ids.length - 1, place));
    if (extend) {
      BENCH.chosen = new Set(BENCH.ids.slice(Math.min(BENCH.anchor, BENCH.at), Math.max(BENCH.anchor, BENCH.at) + 1));
    } else {
      BENCH.anchor = BENCH.at;
      if (!keep) BENCH.chosen.clear();
    }
    const form = BENCH.layout(), grid = BENCH.grid;
    const top = Math.floor(BENCH.at / form.columns) * form.step;
    if (grid.clientHeight) {
      if (top < grid.scrollTop) grid.scrollTop = top;
      else if (top + form.step + form.gap > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + form.step + form.gap - grid.clientHeight;
    }
    BENCH.count();
    BENCH.draw();
  },
  choose(place) {
    const id = BENCH.ids[place];
    if (!BENCH.chosen.delete(id)) BENCH.chosen.add(id);
    BENCH.at = BENCH.anchor = place;
    BENCH.count();
    BENCH.draw();
  },
  chooseAll() {
    BENCH.chosen = BENCH.chosen.size ? new Set() : new Set(BENCH.ids);
    BENCH.count();
    BENCH.draw();
  },
  clicked(event) {
    const cell = event.target.closest('.wb-cell');
    if (!cell) return;
    if (event.shiftKey) BENCH.go(cell.place, {extend: true});
    else if (event.ctrlKey || event.metaKey || event.target.closest('.wb-tick')) BENCH.choose(cell.place);
    else if (BENCH.at === cell.place && cell.classList.contains('current') && matchMedia('(pointer: coarse)').matches) PICTURE.show();
    else BENCH.go(cell.place, {keep: true});
  },

  // Takes back what was done last, or does again what was taken back; what is being typed is saved before, and counts.
  turn(way) {
    BENCH.turning = BENCH.turning.then(() => BENCH.turnOnce(way), () => BENCH.turnOnce(way));
    return BENCH.turning;
  },
  async turnOnce(way) {
    if (PICTURE.open && !await PICTURE.save()) return;
    BENCH.place.classList.add('busy'); // captions of many take a while
    try {
      await BENCH.took(await BENCH.of(way, {mark: BENCH.about.marks[way]}), way === 'undo' ? 'redo' : 'undo');
      await PICTURE.reload();
    } catch {
      await BENCH.again().catch(() => {}); // why was said
    }
    BENCH.place.classList.remove('busy');
  },
  // Which of the two a key means.
  way(event) {
    const key = event.ctrlKey || event.metaKey ? event.key.toLowerCase() : '';
    return key === 'y' || (key === 'z' && event.shiftKey) ? 'redo' : key === 'z' ? 'undo' : '';
  },

  // --- keys -----------------------------------------------------------------------------------------------------------

  key(event) {
    if (!BENCH.open || document.querySelector('dialog[open], #dialog .dialog') || event.defaultPrevented) return;
    const typing = event.target.matches?.('input, textarea, select');
    const order = event.ctrlKey || event.metaKey;
    if (typing && event.target.matches('.wb-find, .wb-tag-find') && event.key === 'Escape') return event.target.blur(), BENCH.grid.focus();
    if (event.target.matches?.('.wb-find') && ['Enter', 'ArrowDown'].includes(event.key)) return event.preventDefault(), BENCH.grid.focus();
    if (PICTURE.open) return PICTURE.key(event, typing, order);
    if (typing || event.altKey) return;
    if (event.target.matches?.('button, a, summary') && ['Enter', ' '].includes(event.key)) return;
    const keys = order ? BENCH.orders : BENCH.keys;
    const does = BENCH.token || event.key === '?' ? keys[event.key.length === 1 ? event.key.toLowerCase() : event.key] : null;
    if (!does) return;
    event.preventDefault();
    does(event);
  },
  step(columns, lines) { return (event) => BENCH.go(BENCH.at + columns + lines * BENCH.layout().columns, {extend: event.shiftKey, keep: !event.shiftKey}); },
};
BENCH.keys = {
  ArrowLeft: BENCH.step(-1, 0), ArrowRight: BENCH.step(1, 0), ArrowUp: BENCH.step(0, -1), ArrowDown: BENCH.step(0, 1),
  PageUp: (event) => BENCH.go(BENCH.at - BENCH.cells.size, {extend: event.shiftKey, keep: true}),
  PageDown: (event) => BENCH.go(BENCH.at + BENCH.cells.size, {extend: event.shiftKey, keep: true}),
  Home: (event) => BENCH.go(0, {extend: event.shiftKey, keep: true}), End: (event) => BENCH.go(BENCH.ids.length - 1, {extend: event.shiftKey, keep: true}),
  ' ': () => BENCH.choose(BENCH.at), Enter: () => PICTURE.show(), Escape: () => { BENCH.chosen.clear(); BENCH.count(); BENCH.draw(); },
  '/': () => BENCH.place.querySelector('.wb-find').focus(), '?': () => ACTS.help(),
  r: () => ACTS.change('replace'), a: () => ACTS.change('prefix'), t: () => ACTS.change('trigger'), d: () => ACTS.change('remove'), b: () => ACTS.change(), h: () => ACTS.history(),
  x: () => ACTS.leaveOut(), p: () => ACTS.problems(), u: () => ACTS.upload(), m: () => ACTS.captioners(), o: () => BENCH.place.querySelector('.wb-path').focus(),
};
BENCH.orders = {
  a: () => { BENCH.chosen.clear(); BENCH.chooseAll(); }, z: (event) => BENCH.turn(BENCH.way(event)), y: () => BENCH.turn('redo'),
};
document.addEventListener('keydown', BENCH.key);
// Whoever comes back from another program may have moved pictures there, or written captions.
document.addEventListener('visibilitychange', () => { if (!document.hidden && BENCH.open && BENCH.token) BENCH.of('again', {}, true).then((about) => BENCH.took(about), () => {}); });

// The places of the page: training with its form and its run, and the pictures.
function showPlace(place) {
  document.body.dataset.place = place;
  document.getElementById('top').dataset.place = place;
  for (const button of document.querySelectorAll('button[data-side]')) {
    button.setAttribute('aria-pressed', String(place === 'training' && button.dataset.side === (document.getElementById('main').dataset.side || 'form')));
  }
  sessionStorage.setItem('place', place);
  for (const button of document.querySelectorAll('button[data-to-place]')) button.setAttribute('aria-pressed', String(button.dataset.toPlace === place));
  if (place !== 'pictures') return;
  BENCH.start().then(() => { BENCH.draw(); if (BENCH.token) BENCH.grid.focus({preventScroll: true}); });
}
// A reload comes back to the place that was left.
new MutationObserver((changes, observer) => {
  if (!document.getElementById('workbench') || !document.querySelector('[data-to-place]')) return;
  observer.disconnect();
  if (sessionStorage.getItem('place') === 'pictures') showPlace('pictures');
}).observe(document.documentElement, {childList: true, subtree: true});
document.addEventListener('click', (event) => {
  const to = event.target.closest('button[data-to-place]');
  if (to) showPlace(to.dataset.toPlace);
  if (event.target.closest('button[data-side], #start') && BENCH.open) showPlace('training');
});
