// What takes the workbench a while: problems with their remedies.
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
      if (!found.total) list.replaceChildren(make('p', {class: 'quiet'}, ACTS.searched === BENCH.token ? 'Nothing was found.' : 'Not looked for yet.'));
      list.append(...found.listed.map((each) => ACTS.finding(each, found.kinds, again, box)));
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
        return told.replaceChildren(make('p', {class: 'problem', role: 'alert'}, error.message));
      }
      search.disabled = true;
      const done = await ACTS.wait(began.errand, told);
      search.disabled = false;
      if (done) ACTS.searched = BENCH.token;
      await BENCH.again();
      await again();
    }, {class: 'small primary'});
    const box = ACTS.dialog('What is wrong with my pictures', make('div', {class: 'wb-form'}, ACTS.field('Trigger word that each caption must have', trigger),
      make('label', {class: 'wb-check'}, tokens, 'Captions over the model’s token limit'), make('div', {class: 'wb-line'}, search)), told, list, next);
    box.classList.add('wide');
    more();
  },
  finding(found, kinds, again, box) {
    const remedy = async (place, all) => {
      let answer;
      try {
        answer = await BENCH.of('remedy', {number: found.number, remedy: place, all}, true);
      } catch (error) {
        return line.append(make('p', {class: 'problem', role: 'alert'}, error.message));
      }
      if (!answer.errand?.number || answer.changed) BENCH.remarked(answer);
      else {
        const result = await ACTS.wait(answer.errand, told);
        await BENCH.again();
        if (result) BENCH.tell(result.told, {undo: true});
      }
      again();
    };
    const thumbs = make('div', {class: 'wb-thumbs'});
    if (found.ids.length) BENCH.of('rows', {ids: found.ids}, true).then(({rows}) => thumbs.replaceChildren(...rows.map((row) => make('figure', {}, make('img', {src: row.small, alt: row.name, loading: 'lazy'}), make('figcaption', {title: row.name}, `${row.skipped ? 'left out: ' : ''}${row.name}`)))), () => {});
    const fill = (place, ...inside) => { place.append(...inside.filter(Boolean)); return place; };
    const many = kinds[found.kind] > 1;
    const told = make('div', {}), line = make('div', {class: 'wb-line'});
    return make('div', {class: 'wb-finding'}, make('p', {}, make('b', {}, `${found.kind[0].toUpperCase()}${found.kind.slice(1)}. `), found.message), thumbs, told,
      fill(line,
        ...found.remedies.flatMap((each, place) => [each.done ? make('span', {class: 'badge good'}, `done: ${each.words}`) : ACTS.act(each.words, () => remedy(place, false)),
          many && !each.done && ACTS.act(`${each.words}, for all ${kinds[found.kind].toLocaleString('en-US')} of this kind`, () => remedy(place, true))]),
        found.count > 0 && ACTS.act('Show in the grid', () => { box.close(); BENCH.clear(); BENCH.filterBy({problem: found.kind}); })));
  },
});
