// What is done with many pictures of the workbench, each in a dialog: captions changed, problems, captioners, uploads.
const ACTS = {
  met: new Set(), // numbers of the errands that were waited for here

  dialog(title, ...inside) {
    const closing = make('button', {type: 'button', class: 'small', onclick: () => box.close()}, 'Close');
    const box = make('dialog', {class: 'wb-dialog', 'aria-label': title}, make('h3', {}, title), make('div', {class: 'wb-inside'}, ...inside), make('div', {class: 'closing'}, closing));
    const before = document.activeElement;
    box.addEventListener('close', () => { box.remove(); if (before?.isConnected && before !== document.body) before.focus(); else BENCH.grid?.focus(); });
    box.addEventListener('keydown', (event) => event.stopPropagation());
    document.body.append(box);
    box.showModal();
    return box;
  },
  act(words, does, more = {}) { return make('button', {type: 'button', class: 'small', onclick: does, ...more}, words); },
  field(words, input, more = '') { return make('label', {class: `wb-field ${more}`}, make('span', {}, words), input); },
  refusals(listed) { return listed.length > 0 && make('div', {class: 'problem-box'}, ...listed.slice(0, 20).map(([name, why]) => make('p', {}, `${name}: ${why}`)), listed.length > 20 && make('p', {}, `and ${listed.length - 20} more`)); },

  // Says why something was refused; an errand that is under way, begun elsewhere, can be stopped here.
  refuse(place, error) {
    const stop = error.message.includes('is under way') && ACTS.act('Stop that', async () => { await BENCH.ask('stop'); place.replaceChildren(); });
    place.replaceChildren(...[make('p', {class: 'problem', role: 'alert'}, error.message), stop].filter(Boolean));
  },

  // Waits for an errand, shows how far it has come, and returns its result; null where it was stopped or failed. One
  // that only looks is stopped when its dialog is closed.
  async wait(standing, place, {looks = false, named = false} = {}) {
    ACTS.met.add(standing.number);
    const bar = make('i', {}), words = make('p', {class: 'quiet', role: 'status'});
    const row = make('div', {class: 'wb-errand'}, words, make('div', {class: 'progress', role: 'progressbar', 'aria-label': standing.title}, bar), ACTS.act('Stop', () => BENCH.ask('stop')));
    place.replaceChildren(row);
    let now = standing;
    for (let pause = 60; now.status === 'running' && now.number === standing.number; pause = Math.min(800, pause * 1.6)) {
      words.textContent = `${named && now.phase ? `${now.title}: ` : ''}${now.phase || now.title}${now.total ? `: ${now.done.toLocaleString('en-US')} of ${now.total.toLocaleString('en-US')}` : ' …'}`;
      row.lastElementChild.previousElementSibling.classList.toggle('waiting', !now.total);
      bar.style.width = `${now.total ? 100 * now.done / now.total : 0}%`;
      await new Promise((then) => setTimeout(then, pause));
      if (looks && !place.isConnected) BENCH.ask('stop', {}, true).catch(() => {});
      now = await BENCH.ask('errand', {}, true).catch(() => now);
    }
    place.replaceChildren();
    if (now.status === 'done') return now.result;
    place.replaceChildren(make('p', {class: now.status === 'failed' ? 'problem' : 'quiet', role: 'alert'}, now.words));
    return null;
  },

  // --- captions of many -----------------------------------------------------------------------------------------------

  KINDS: [
    ['replace', 'Find and replace', () => [['find', 'Find'], ['with', 'Replace with'], ['match_case', 'Match case', true], ['whole', 'Whole words', false]]],
    ['rename', 'Replace a tag', () => [['find', 'Tag', 'tag'], ['with', 'Replace with', 'tag']]],
    ['prefix', 'Put before', () => [['text', 'Text before each caption']]],
    ['suffix', 'Put behind', () => [['text', 'Text behind each caption']]],
    ['trigger', 'Trigger word first', () => [['text', 'Trigger word', 'tag']]],
    ['add', 'Add tags', () => [['text', 'Tags, with commas between', 'tag'], ['first', 'In front of the others', false]]],
    ['remove', 'Remove tags', () => [['text', 'Tags, with commas between', 'tag']]],
    ['sort', 'Sort tags', () => [['by', 'By', {name: 'name', count: 'how often they occur'}]]],
    ['dedupe', 'Remove tags that are there twice', () => []],
    ['set', 'Set the whole caption', () => [['text', 'Caption']]],
    ['recode', 'Convert to UTF-8', () => []],
  ],

  change(kind = 'replace') {
    if (!BENCH.ids.length) return;
    const ids = BENCH.subject(), form = make('form', {class: 'wb-form'}), seen = make('div', {class: 'wb-seen'}), told = make('div', {});
    const choice = make('select', {name: 'kind', 'aria-label': 'What to do', onchange: () => draw()}, ...ACTS.KINDS.map(([name, words]) => make('option', {value: name, selected: name === kind}, words)));
    const fields = make('div', {class: 'wb-fields'});
    let plan = null, number = 0;
    const apply = ACTS.applying(() => plan, told, seen, () => box);
    const values = () => {
      const said = {kind: choice.value, ids};
      for (const input of fields.querySelectorAll('[name]')) said[input.name] = input.type === 'checkbox' ? input.checked : input.value;
      return said;
    };
    const look = async () => {
      const mine = ++number, said = values();
      apply.disabled = true;
      const needs = [...fields.querySelectorAll('input[data-needed]')].some((input) => !input.value);
      if (needs) return seen.replaceChildren(make('p', {class: 'quiet'}, 'What would change is shown here before anything is written.'));
      let found;
      try {
        found = await BENCH.of('preview', said, true);
      } catch (error) {
        if (mine === number) seen.replaceChildren(make('p', {class: 'problem', role: 'alert'}, error.message));
        return;
      }
      if (mine !== number) return;
      plan = found;
      ACTS.arm(apply, found);
      ACTS.showPlan(seen, found);
    };
    let waiting;
    const draw = () => {
      const [, , parts] = ACTS.KINDS.find(([name]) => name === choice.value);
      fields.replaceChildren(...parts().map(([name, words, how], place) => {
        if (typeof how === 'boolean') return make('label', {class: 'wb-check'}, make('input', {type: 'checkbox', name, checked: how}), words);
        if (typeof how === 'object') return ACTS.field(words, make('select', {name}, ...Object.entries(how).map(([value, shown]) => make('option', {value}, shown))));
        const list = how === 'tag' ? {list: 'wb-tag-list', autocomplete: 'off'} : {autocomplete: 'off'};
        return ACTS.field(words, make('input', {type: 'text', name, spellcheck: 'false', ...list, ...(place === 0 ? {'data-needed': ''} : {})}));
      }));
      look();
    };
    form.addEventListener('submit', (event) => { event.preventDefault(); if (!apply.disabled) apply.click(); });
    form.addEventListener('input', (event) => {
      clearTimeout(waiting);
      waiting = setTimeout(look, 220);
      if (event.target.getAttribute('list')) ACTS.offerTags(event.target.value);
    });
    form.append(ACTS.field('What to do', choice), fields, make('datalist', {id: 'wb-tag-list'}));
    const about = BENCH.chosen.size ? `${counted(ids.length, 'selected picture')}` : `all ${counted(ids.length, 'picture')} that are shown`;
    const box = ACTS.dialog('Change captions', make('p', {class: 'quiet'}, `Of ${about}.`), form, told, seen);
    box.classList.add('wide');
    box.querySelector('.closing').append(apply);
    draw();
    (fields.querySelector('input') || choice).focus();
  },
  // The button that writes what was shown.
  applying(plan, told, seen, box) {
    const apply = ACTS.act('Apply', async () => {
      apply.disabled = apply.pressed = true;
      let began;
      try {
        began = await BENCH.of('apply', {plan: plan().plan}, true);
      } catch (error) {
        apply.pressed = false;
        return ACTS.refuse(told, error);
      }
      const result = await ACTS.wait(began.errand, told);
      if (result && !result.conflicts.length) box().close();
      else if (result) seen.replaceChildren(ACTS.refusals(result.conflicts));
      await BENCH.again();
      await PICTURE.reload();
      if (result) BENCH.tell(result.told, {turn: result.written ? 'undo' : ''});
    }, {class: 'small primary', disabled: true});
    return apply;
  },
  async offerTags(text) {
    const word = text.split(',').pop().trim(), before = text.slice(0, text.length - text.split(',').pop().length);
    const found = await BENCH.of('tags', {find: word, most: 12}, true).catch(() => ({tags: []}));
    document.getElementById('wb-tag-list')?.replaceChildren(...found.tags.map(([tag, count]) => make('option', {value: `${before}${before ? ' ' : ''}${tag}`}, `${tag} (${count})`)));
  },

  // Changes that were made up at length and wait to be looked at; who hides that does not want them.
  offerPlan(title, plan) {
    const drop = () => BENCH.of('drop', {plan: plan.plan}, true).catch(() => {});
    BENCH.tell(`${title}: ${counted(plan.changes, 'caption')} to look at, none of them written yet.`, {offer: ['Look at them', () => ACTS.lookAt(title, plan), drop]});
  },
  lookAt(title, plan) {
    const told = make('div', {}), seen = make('div', {class: 'wb-seen'});
    const apply = ACTS.applying(() => plan, told, seen, () => box);
    const box = ACTS.dialog(title, told, seen);
    box.classList.add('wide');
    box.querySelector('.closing').append(apply);
    ACTS.showPlan(seen, plan);
    ACTS.arm(apply, plan);
    box.addEventListener('close', () => { if (!apply.pressed) ACTS.offerPlan(title, plan); });
  },
  // The button that writes says how many it would write.
  arm(apply, plan) {
    apply.disabled = !plan?.changes;
    apply.textContent = plan?.changes ? `Apply to ${counted(plan.changes, 'caption')}` : 'Apply';
  },

  // All changes of a plan, read in as they are scrolled to.
  showPlan(place, plan) {
    const rows = make('div', {class: 'wb-changes', tabIndex: 0, 'aria-label': 'What would change'});
    const left = plan.unchanged ? `, ${plan.unchanged.toLocaleString('en-US')} stay as they are` : '';
    place.replaceChildren(make('p', {role: 'status'}, make('b', {}, plan.changes ? `${counted(plan.changes, 'caption')} would change` : 'Nothing would change'), `${left}.`), ACTS.refusals(plan.refused) || '', rows);
    const add = (listed) => rows.append(...listed.map(ACTS.changeRow));
    add(plan.listed);
    let have = plan.listed.length, asking = false;
    rows.addEventListener('scroll', async () => {
      if (asking || have >= plan.changes || rows.scrollTop + rows.clientHeight < rows.scrollHeight - 400) return;
      asking = true;
      const more = await BENCH.of('plan', {plan: plan.plan, from: have}, true).catch(() => ({listed: []}));
      add(more.listed);
      have += more.listed.length;
      asking = false;
    });
    rows.hidden = !plan.changes;
  },
  changeRow(change) {
    const [before, after] = ACTS.differ(change.old ?? '', change.new);
    return make('div', {class: 'wb-change-row'}, make('b', {}, change.name, change.encoding ? make('span', {class: 'quiet'}, ` was ${change.encoding}`) : null),
      make('p', {class: 'old'}, ...(change.old === null ? [make('i', {}, 'no caption')] : before)), make('p', {class: 'new'}, ...after));
  },
  // Two texts with what differs marked: words that both have in the same order are plain.
  differ(old, now) {
    const cut = (text) => text.match(/[^\s,]+|,|\s+/g) || [];
    const [one, two] = [cut(old), cut(now)];
    if (one.length * two.length > 40000) return [[make('del', {}, old)], [make('ins', {}, now)]];
    const table = Array.from({length: one.length + 1}, () => new Uint16Array(two.length + 1));
    for (let i = one.length - 1; i >= 0; i--) for (let j = two.length - 1; j >= 0; j--) table[i][j] = one[i] === two[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
    const before = [], after = [];
    let i = 0, j = 0;
    while (i < one.length || j < two.length) {
      if (i < one.length && j < two.length && one[i] === two[j]) { before.push(one[i]); after.push(two[j]); i++; j++; }
      else if (j >= two.length || (i < one.length && table[i + 1][j] >= table[i][j + 1])) before.push(make('del', {}, one[i++]));
      else after.push(make('ins', {}, two[j++]));
    }
    return [before, after];
  },

  // --- history --------------------------------------------------------------------------------------------------------

  async history() {
    if (!BENCH.token) return;
    const list = make('ol', {class: 'wb-history'}), none = make('p', {class: 'quiet'});
    const draw = async () => {
      const {listed} = await BENCH.of('history');
      none.textContent = listed.length ? 'Each caption that was saved and each change of many, the newest first. The last 50 are kept.' : 'No caption in this folder was changed here, or all of it was taken back.';
      for (const [name, button] of Object.entries(turns)) button.disabled = !BENCH.about[name];
      list.replaceChildren(...listed.map((each) => make('li', {}, make('time', {}, new Date(each.when * 1000).toLocaleString('en-GB', {day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit'})), make('span', {}, each.title), make('b', {}, counted(each.count, 'caption')))));
    };
    const told = make('p', {role: 'status'});
    const turn = (way, words) => ACTS.act(words, async () => { await BENCH.turn(way); told.textContent = BENCH.place.querySelector('.wb-told span')?.textContent || ''; await draw(); });
    const turns = {undo: turn('undo', 'Undo'), redo: turn('redo', 'Redo')};
    const box = ACTS.dialog('Changes of captions', none, list, told);
    box.querySelector('.closing').append(turns.undo, turns.redo);
    draw().catch(() => box.close()); // why was said
  },

  // --- remarks --------------------------------------------------------------------------------------------------------

  async leaveOut() {
    const ids = BENCH.chosen.size ? BENCH.subject() : BENCH.ids.length ? [BENCH.current] : [];
    if (!ids.length) return;
    const rows = await Promise.all(ids.slice(0, 1).map((id) => BENCH.fetchRow(id)));
    const skip = !rows[0].skipped;
    const title = `${skip ? 'Left out' : 'Taken in again'}: ${ids.length === 1 ? rows[0].name : counted(ids.length, 'picture')}`;
    try {
      BENCH.remarked(await BENCH.of('remark', {ids, skip, title}));
    } catch { /* it was said */ }
  },

  use() {
    if (!BENCH.token) return;
    const as = async (key) => {
      try {
        await BENCH.of('use', {key});
        box.close();
        await BENCH.resume(); // with what the form has beside it
        BENCH.tell('The form has this folder now.');
        NEWS.ask();
      } catch { box.close(); }
    };
    const box = ACTS.dialog('Use this folder', make('p', {}, BENCH.about.path),
      make('div', {class: 'wb-line'}, ACTS.act('For training', () => as('train_data_dir'), {class: 'small primary'}), ACTS.act('As regularisation pictures', () => as('reg_data_dir'))));
  },

  // --- folders --------------------------------------------------------------------------------------------------------

  async browse() {
    const where = make('p', {class: 'where'}, make('code', {})), chips = make('div', {class: 'chips'}), list = make('ul', {class: 'entries'});
    let path = '';
    const look = async (at) => {
      let found;
      try {
        found = await BENCH.ask('browse', {at});
      } catch { return; }
      path = found.path;
      where.firstElementChild.textContent = path;
      chips.replaceChildren(...found.roots.map((root) => ACTS.act(root.name, () => look(root.path))));
      const entry = (words, to) => make('li', {}, make('button', {type: 'button', onclick: () => look(to)}, words));
      list.replaceChildren(...(found.parent ? [entry('↑ up', found.parent)] : []), ...found.folders.map((each) => entry(`${each.name}/`, each.path)),
        ...(found.more ? [make('li', {class: 'quiet'}, 'and more; type the path instead.')] : []));
      list.querySelector('button')?.focus();
    };
    const box = ACTS.dialog('Choose the folder of your pictures', chips, where, list);
    box.querySelector('.closing').append(ACTS.act('Open this folder', () => { box.close(); BENCH.openFolder(path); }, {class: 'small primary'}));
    look(BENCH.place.querySelector('.wb-path').value);
  },

  // --- keys -----------------------------------------------------------------------------------------------------------

  KEYS: [
    ['In the grid', [['← → ↑ ↓, Home, End, Page up, Page down', 'go from picture to picture'], ['Shift with these', 'select on the way'], ['Space', 'select one, or not'], ['Ctrl+A', 'select all that are shown'], ['Esc', 'select none'],
      ['Enter', 'one picture large, with its caption'], ['/', 'find in names and captions'], ['B', 'change the captions of all that are selected'], ['R', 'find and replace'], ['A', 'put before'], ['T', 'trigger word'], ['D', 'remove tags'],
      ['X', 'leave out, or take in again'], ['P', 'problems'], ['U', 'add pictures'], ['M', 'caption by a model'], ['O', 'another folder'], ['Ctrl+Z', 'take back what was done last'], ['Ctrl+Shift+Z, Ctrl+Y', 'do again what was taken back'], ['H', 'what was done to the captions']]],
    ['In the large picture', [['Enter', 'save the caption, and go to the next'], ['Shift+Enter', 'a new line'], ['Page up, Page down', 'save, and go to the one before or the next'], ['↓ ↑, then Tab or Enter', 'take a tag that is offered'],
      ['Ctrl+S', 'save'], ['Ctrl+Z', 'take back: first what was typed, then what was saved'], ['Esc', 'save, and back to the grid'], ['Tab to leave the caption, then X, C, K', 'leave out, crop, mask']]],
    ['Everywhere', [['?', 'these keys']]],
  ],
  help() {
    ACTS.dialog('Keys', ...ACTS.KEYS.flatMap(([title, keys]) => [make('h4', {}, title), make('dl', {class: 'wb-keys'}, ...keys.flatMap(([key, words]) => [make('dt', {}, make('kbd', {}, key)), make('dd', {}, words)]))]));
  },
};
