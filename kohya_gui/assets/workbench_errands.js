// What takes the workbench a while: problems with their remedies, captions by a model, files that are sent, folders.
Object.assign(ACTS, {
  // --- problems -------------------------------------------------------------------------------------------------------

  problems() {
    if (!BENCH.token) return;
    const told = make('div', {}), list = make('div', {class: 'wb-findings'});
    const trigger = make('input', {type: 'text', value: ACTS.trigger || '', placeholder: BENCH.about.folders[0]?.class_tokens.split(' ')[0] || '', spellcheck: 'false'});
    const tokens = make('input', {type: 'checkbox', checked: false});
    let from = 0;
    const more = async () => {
      const found = await BENCH.of('findings', {from});
      if (!from) list.replaceChildren();
      if (!found.total) list.replaceChildren(make('p', {class: 'quiet'}, ACTS.searched?.token === BENCH.token ? `Nothing was found.${ACTS.searched.left}` : 'Not looked for yet.'));
      for (const each of found.listed) {
        const last = list.lastElementChild;
        const group = last?.dataset?.kind === each.kind ? last : ACTS.kindOfFinding(each, found.kinds[each.kind], again, box);
        if (group !== last) list.append(group);
        group.append(ACTS.finding(each, again));
      }
      from += found.listed.length;
      next.hidden = from >= found.total;
    };
    const again = async () => { from = 0; await more(); };
    const next = ACTS.act('More', () => more(), {hidden: true});
    const search = ACTS.act('Look for problems', async () => {
      ACTS.trigger = trigger.value;
      let began;
      try {
        began = await BENCH.of('search', {trigger: trigger.value, tokens: tokens.checked}, true);
      } catch (error) {
        return ACTS.refuse(told, error);
      }
      search.disabled = true;
      const done = await ACTS.wait(began.errand, told, {looks: true});
      search.disabled = false;
      if (done) {
        const left = [...(trigger.value.trim() ? [] : ['a trigger word']), ...(tokens.checked && !done.uncounted ? [] : ['the token limit'])];
        ACTS.searched = {token: BENCH.token, left: left.length ? ` Not looked for: ${left.join(', ')}.` : ''};
        if (done.uncounted) told.replaceChildren(make('p', {class: 'problem', role: 'alert'}, done.uncounted));
      }
      await BENCH.again();
      await again();
    }, {class: 'small primary'});
    const box = ACTS.dialog('What is wrong with my pictures', make('div', {class: 'wb-form'}, ACTS.field('Trigger word that each caption must have', trigger),
      make('label', {class: 'wb-check'}, tokens, 'Captions over the model’s token limit'), make('div', {class: 'wb-line'}, search)), told, list, next);
    box.classList.add('wide');
    more();
  },
  // What is done about one finding, or about all of its kind: `remedy(place, all)`.
  remedies(found, again, told) {
    return async (place, all) => {
      let answer;
      try {
        answer = await BENCH.of('remedy', {number: found.number, remedy: place, all}, true);
      } catch (error) {
        return ACTS.refuse(told, error);
      }
      if (!answer.errand?.number || answer.changed) BENCH.remarked(answer);
      else {
        const result = await ACTS.wait(answer.errand, told);
        await BENCH.again();
        if (result) BENCH.tell(result.told, {turn: result.written ? 'undo' : ''});
        await again();
        const left = [...answer.left, ...(result?.conflicts || [])];
        return left.length && BENCH.tell(`${left[0][0]}: ${left[0][1]}${left.length > 1 ? `, and ${left.length - 1} more captions left as they are` : ''}`, {refused: true});
      }
      again();
    };
  },
  kindOfFinding(found, count, again, box) {
    const told = make('div', {}), remedy = ACTS.remedies(found, again, told);
    const name = `${found.kind[0].toUpperCase()}${found.kind.slice(1)}`;
    const all = found.remedies.map((each, place) => each.alike > 1 && ACTS.act(`${each.for_all}: all ${each.alike.toLocaleString('en-US')}`, () => remedy(place, true)));
    const shown = found.count > 0 && ACTS.act('Show in the grid', () => { box.close(); BENCH.clear(); BENCH.filterBy({problem: found.kind}); });
    return make('section', {class: 'wb-kind', 'data-kind': found.kind, 'aria-label': name},
      make('div', {class: 'wb-line'}, make('h4', {}, name, ' ', make('span', {class: 'quiet'}, count.toLocaleString('en-US'))), all, shown), told);
  },
  finding(found, again) {
    const thumbs = make('div', {class: 'wb-thumbs'}), told = make('div', {});
    if (found.ids.length) BENCH.of('rows', {ids: found.ids}, true).then(({rows}) => thumbs.replaceChildren(...rows.map((row) => {
      const gone = (event) => event.target.replaceWith(make('span', {class: 'wb-gone'}, 'cannot be shown'));
      const name = `${row.folder_name}/${row.name}`;
      return make('figure', {}, make('img', {src: row.small, alt: row.name, loading: 'lazy', onerror: gone}), make('figcaption', {title: name}, `${row.skipped ? 'left out: ' : ''}${row.name}`));
    })), () => {});
    const remedy = ACTS.remedies(found, again, told);
    return make('div', {class: 'wb-finding'}, thumbs, make('div', {}, make('p', {}, found.message),
      make('div', {class: 'wb-line'}, found.remedies.map((each, place) => each.done ? make('span', {class: 'badge good'}, `done: ${each.words}`) : ACTS.act(each.words, () => remedy(place, false)))), told));
  },

  // --- captions by a model --------------------------------------------------------------------------------------------

  async captioners() {
    if (!BENCH.token || !BENCH.ids.length) return;
    const missing = await BENCH.of('captioners').catch(() => null);
    if (!missing) return;
    const ids = BENCH.subject(), kept = ACTS.model || (ACTS.model = {kind: 'tagger'});
    const told = make('div', {}), seen = make('div', {class: 'wb-seen'}), fields = make('div', {class: 'wb-fields'});
    let plan = null;
    const PARTS = {
      tagger: [['general_threshold', 'Threshold for tags', 0.35], ['character_threshold', 'Threshold for characters', 0.85], ['unwanted', 'Unwanted tags, with commas between', ''], ['underscores', 'Keep underscores', false], ['rating', 'The rating too', false]],
      describer: [['prompt', 'What to ask of the model (if it takes a question)', ''], ['max_new_tokens', 'Most tokens of a caption', 128]],
    };
    const kind = make('select', {name: 'kind', onchange: () => draw()}, ...[['tagger', 'Tags (WD14-style ONNX tagger)'], ['describer', 'Sentences (BLIP, Florence-2, Qwen-VL)']].map(([value, words]) => make('option', {value, selected: kept.kind === value}, words)));
    const model = make('input', {type: 'text', name: 'model', value: kept.model || '', spellcheck: 'false', placeholder: 'a folder, or a name at the hub such as SmilingWolf/wd-vit-tagger-v3'});
    const mode = make('select', {name: 'mode'}, ...[['missing', 'only where there is none'], ['append', 'behind what is there'], ['replace', 'in place of what is there']].map(([value, words]) => make('option', {value, selected: kept.mode === value}, words)));
    const draw = () => {
      fields.replaceChildren(...PARTS[kind.value].map(([name, words, value]) => {
        const now = kept[name] ?? value;
        if (typeof value === 'boolean') return make('label', {class: 'wb-check'}, make('input', {type: 'checkbox', name, checked: now}), words);
        const number = typeof value === 'number';
        return ACTS.field(words, make('input', {type: number ? 'number' : 'text', name, value: now, step: number && value < 1 ? 0.05 : undefined, min: number ? 0 : undefined, spellcheck: 'false'}), name === 'prompt' || name === 'unwanted' ? 'wide' : '');
      }));
      told.replaceChildren(missing[kind.value] ? make('p', {class: 'problem'}, missing[kind.value]) : '');
      begin.disabled = Boolean(missing[kind.value]);
    };
    const begin = ACTS.act('Write captions, to look at', async () => {
      const said = {kind: kind.value, model: model.value, mode: mode.value};
      for (const input of fields.querySelectorAll('[name]')) said[input.name] = input.type === 'checkbox' ? input.checked : input.type === 'number' ? Number(input.value) : input.value;
      Object.assign(kept, said);
      let began;
      try {
        began = await BENCH.of('captioned', {...said, ids}, true);
      } catch (error) {
        return ACTS.refuse(told, error);
      }
      begin.disabled = true;
      seen.replaceChildren();
      plan = await ACTS.wait(began.errand, told, {looks: true});
      begin.disabled = false;
      if (plan?.plan) ACTS.showPlan(seen, plan);
      ACTS.arm(apply, plan);
    });
    const apply = ACTS.applying(() => plan, told, seen, () => box);
    const about = BENCH.chosen.size ? counted(ids.length, 'selected picture') : `all ${counted(ids.length, 'picture')} that are shown`;
    const box = ACTS.dialog('Captions by a model', make('p', {class: 'quiet'}, `Of ${about}. Nothing is written before you have seen it.`),
      make('div', {class: 'wb-form'}, ACTS.field('What it writes', kind), ACTS.field('Model', model, 'wide'), ACTS.field('Write', mode), fields), make('div', {class: 'wb-line'}, begin), told, seen);
    box.classList.add('wide');
    box.querySelector('.closing').append(apply);
    box.addEventListener('close', () => { if (plan?.changes && !apply.pressed) ACTS.offerPlan('Captions by a model', plan); });
    draw();
  },

  // --- uploads --------------------------------------------------------------------------------------------------------

  // Pictures, captions and zips that are dropped on the workbench are asked about first: where they are to go.
  drops(place) {
    place.addEventListener('drop', (event) => {
      const files = [...(event.dataTransfer?.files || [])];
      if (files.length) ACTS.upload(files);
    });
  },
  upload(files = []) {
    const folders = BENCH.about?.folders || [], chosen = [...files];
    const first = folders[BENCH.filter.folder ?? 0]?.path || BENCH.place.querySelector('.wb-path').value;
    const into = make('input', {type: 'text', value: first, spellcheck: 'false', list: 'wb-into'});
    const known = make('datalist', {id: 'wb-into'}, ...folders.map((each) => make('option', {value: each.path})));
    const listed = make('div', {class: 'wb-files', role: 'status'}), bar = make('i', {}), progress = make('div', {class: 'progress', hidden: true}, bar);
    const picker = make('input', {type: 'file', multiple: true, hidden: true, onchange: () => add([...picker.files])});
    const area = make('div', {class: 'wb-drop'}, make('p', {}, 'Drop pictures, captions (.txt) or zip archives here.'), ACTS.act('Choose files', () => picker.click()), picker);
    const say = () => {
      const bytes = chosen.reduce((sum, file) => sum + file.size, 0);
      listed.replaceChildren(chosen.length ? make('p', {}, make('b', {}, `${counted(chosen.length, 'file')}, ${(bytes / 1e6).toFixed(1)} MB`)) : '');
      send.disabled = !chosen.length;
    };
    const add = (more) => { chosen.push(...more); say(); };
    area.addEventListener('drop', (event) => { event.preventDefault(); event.stopPropagation(); document.body.classList.remove('dropping'); add([...event.dataTransfer.files]); });
    area.addEventListener('dragover', (event) => event.preventDefault());
    let sending = false;
    const send = ACTS.act('Add', async () => {
      if (sending) return;
      sending = true;
      send.disabled = true;
      progress.hidden = false;
      const waiting = [...chosen], refused = [];
      let done = 0, written = 0, folder = '';
      const one = async () => {
        while (waiting.length && sending) {
          const file = waiting.shift();
          const said = await fetch(`workbench/upload?into=${encodeURIComponent(into.value)}&name=${encodeURIComponent(file.name)}`, {method: 'POST', body: file}).then((answer) => answer.json(), () => ({refused: 'The program does not answer.'}));
          if (typeof said.refused === 'string') refused.push([file.name, said.refused]);
          else {
            written += said.written.length;
            refused.push(...said.refused);
            folder = said.folder;
          }
          bar.style.width = `${100 * ++done / chosen.length}%`;
          listed.replaceChildren(make('p', {}, `${done.toLocaleString('en-US')} of ${chosen.length.toLocaleString('en-US')} sent`));
        }
      };
      await Promise.all([one(), one(), one()]);
      sending = false;
      chosen.length = 0;
      progress.hidden = true;
      listed.replaceChildren(make('p', {}, make('b', {}, `${counted(written, 'file')} added.`)), ACTS.refusals(refused) || '');
      if (folder) await BENCH.openFolder(BENCH.about?.path && (folder === BENCH.about.path || folder.startsWith(`${BENCH.about.path}/`)) ? BENCH.about.path : folder);
      if (!refused.length && written) { box.close(); BENCH.tell(`${counted(written, 'file')} added.`); }
    }, {class: 'small primary', disabled: true});
    const box = ACTS.dialog('Add pictures', area, ACTS.field('Into the folder (made where it is missing; name it REPEATS_trigger class, such as 10_sks dog)', into, 'wide'), known, progress, listed);
    box.addEventListener('close', () => { sending = false; });
    box.querySelector('.closing').append(send);
    say();
  },

  // --- folders --------------------------------------------------------------------------------------------------------

  folder(folder) {
    const repeats = make('input', {type: 'number', min: 1, step: 1, value: folder.repeats}), words = make('input', {type: 'text', value: folder.class_tokens, spellcheck: 'false'}), told = make('div', {role: 'status'});
    const side = make('select', {}, ...[['', 'pictures to learn'], ['reg', 'regularisation pictures']].map(([value, shown]) => make('option', {value, selected: Boolean(value) === folder.regularisation}, shown)));
    let sure = false;
    const rename = ACTS.act('Rename', async () => {
      const said = {number: folder.number, repeats: Number(repeats.value) || 0, class_tokens: words.value, regularisation: Boolean(side.value), sure};
      try {
        const answer = await BENCH.of('folder', said, true);
        if (!sure) {
          sure = true;
          const named = answer.old === answer.new ? null : ['named ', make('code', {}, answer.new)];
          const moved = answer.into ? ['moved into ', make('code', {}, answer.into), side.value ? ', the form’s regularisation pictures' : ', the form’s pictures to learn'] : null;
          const becomes = named && moved ? [' will be ', ...named, ' and ', ...moved] : named || moved ? [' will be ', ...(named || moved)] : [' keeps its name'];
          told.replaceChildren(make('p', {}, 'The folder ', make('code', {}, answer.old), ...becomes, '.'));
          rename.textContent = answer.into ? 'Yes, move it' : 'Yes, rename it';
          return;
        }
        box.close();
        BENCH.took(answer);
      } catch (error) {
        told.replaceChildren(make('p', {class: 'problem', role: 'alert'}, error.message));
      }
    }, {class: 'small primary'});
    const anew = () => { sure = false; rename.textContent = 'Rename'; told.replaceChildren(); };
    for (const input of [repeats, words, side]) input.addEventListener('input', anew);
    const box = ACTS.dialog('Repeats and class', make('p', {class: 'quiet'}, 'The folder’s name says how often each of its pictures is seen in an epoch, and what they are of.'),
      make('div', {class: 'wb-fields'}, ACTS.field('Repeats', repeats), ACTS.field('Trigger and class', words), BENCH.about.own && ACTS.field('What they are', side)), told);
    box.querySelector('.closing').append(rename);
    repeats.focus();
  },
});
