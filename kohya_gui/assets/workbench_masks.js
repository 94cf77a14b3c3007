// Masks of the loss, painted over the large picture: white counts, what is dark does not.
const MASK = {
  MOST: 1024, // pixels of the longer side of what is painted; the program brings it to the picture's size
  brush: 60, painting: false, before: [], dot: null,

  get canvas() { return PICTURE.place.querySelector('.wb-mask'); },

  // A mask that is there lies over its picture: what does not count is dark red.
  async show() {
    const row = PICTURE.row, canvas = MASK.canvas;
    if (EDIT.active === MASK) return;
    canvas.hidden = !row.masked;
    if (row.masked) await MASK.take(row);
  },
  async take(row) {
    const canvas = MASK.canvas, [wide, high] = row.size || [1, 1], by = Math.min(1, MASK.MOST / Math.max(wide, high));
    [canvas.width, canvas.height] = [Math.max(1, Math.round(wide * by)), Math.max(1, Math.round(high * by))];
    const draw = canvas.getContext('2d');
    if (!row.masked) return;
    const image = new Image();
    image.src = `workbench/${BENCH.token}/mask/${row.id}?${Date.now()}`;
    try {
      await image.decode();
    } catch {
      return;
    }
    if (PICTURE.row?.id !== row.id) return;
    draw.drawImage(image, 0, 0, canvas.width, canvas.height);
    // Grey to what is shown: the darker, the more red.
    const pixels = draw.getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < pixels.data.length; at += 4) MASK.colour(pixels.data, at, 255 - pixels.data[at]);
    draw.putImageData(pixels, 0, 0);
  },
  colour(data, at, covered) {
    [data[at], data[at + 1], data[at + 2], data[at + 3]] = [200, 20, 40, covered * 0.7];
  },

  async begin() {
    const row = PICTURE.row;
    if (!row?.size) return;
    const act = (words, does, more = {}) => make('button', {type: 'button', class: 'small', onclick: does, ...more}, words);
    const way = (name, words) => make('button', {type: 'button', 'data-way': name, 'aria-pressed': String(name === 'out'), class: 'small', onclick: (event) => {
      MASK.way = name;
      for (const each of event.target.parentElement.children) each.setAttribute('aria-pressed', String(each === event.target));
    }}, words);
    MASK.way = 'out';
    MASK.before = [];
    EDIT.begin(MASK, make('div', {class: 'wb-edit'},
      make('p', {}, 'Paint over what is not to count. Arrow keys move the brush, space paints, + and − change its size.'),
      make('div', {class: 'wb-line'}, make('span', {class: 'segments', role: 'group', 'aria-label': 'The brush'}, way('out', 'Does not count'), way('in', 'Counts')),
        make('label', {class: 'wb-choice'}, 'Brush', make('input', {type: 'range', min: 4, max: 300, value: MASK.brush, 'aria-label': 'Size of the brush', oninput: (event) => { MASK.brush = Number(event.target.value); MASK.point(); }}))),
      make('div', {class: 'wb-line'}, act('All counts', () => MASK.all(0)), act('Nothing counts', () => MASK.all(255)), act('Turn over', () => MASK.turn()), act('Step back', () => MASK.stepBack())),
      make('div', {class: 'wb-line'}, act('Keep this mask', () => MASK.keep(), {class: 'small primary'}), row.masked && act('Remove the mask', () => MASK.send(new Blob([]))), act('Cancel', () => EDIT.end()))));
    await MASK.take(row);
    if (EDIT.active !== MASK) return;
    MASK.canvas.hidden = false;
    MASK.dot = [MASK.canvas.width / 2, MASK.canvas.height / 2];
    EDIT.box(null);
    const frame = EDIT.frame;
    frame.addEventListener('pointerdown', MASK.down);
    frame.append(make('i', {class: 'wb-brush', hidden: true}));
  },
  over() {
    EDIT.frame.removeEventListener('pointerdown', MASK.down);
    EDIT.frame.querySelector('.wb-brush')?.remove();
    MASK.show();
  },

  at(event) {
    const [x, y] = EDIT.at(event), [wide, high] = PICTURE.row.size;
    return [x * MASK.canvas.width / wide, y * MASK.canvas.height / high];
  },
  down(event) {
    event.preventDefault();
    MASK.remember();
    const frame = EDIT.frame;
    frame.setPointerCapture(event.pointerId);
    let from = MASK.at(event);
    MASK.stroke(from, from);
    const move = (moved) => { const to = MASK.at(moved); MASK.stroke(from, to); from = MASK.dot = to; };
    frame.addEventListener('pointermove', move);
    frame.addEventListener('pointerup', () => frame.removeEventListener('pointermove', move), {once: true});
  },
  stroke(from, to) {
    const draw = MASK.canvas.getContext('2d');
    draw.globalCompositeOperation = 'destination-out';
    const line = () => { draw.beginPath(); draw.moveTo(...from); draw.lineTo(to[0] + 0.01, to[1]); draw.stroke(); };
    [draw.lineWidth, draw.lineCap, draw.lineJoin, draw.strokeStyle] = [MASK.brush * MASK.canvas.width / 1000, 'round', 'round', '#000'];
    line();
    if (MASK.way !== 'out') return;
    draw.globalCompositeOperation = 'source-over';
    draw.strokeStyle = 'rgb(200 20 40 / 70%)';
    line();
  },
  remember() {
    MASK.before = [...MASK.before, MASK.pixels()].slice(-20);
  },
  pixels() { return MASK.canvas.getContext('2d').getImageData(0, 0, MASK.canvas.width, MASK.canvas.height); },
  stepBack() {
    const last = MASK.before.pop();
    if (last) MASK.canvas.getContext('2d').putImageData(last, 0, 0);
  },
  each(change) {
    MASK.remember();
    const pixels = MASK.pixels();
    for (let at = 0; at < pixels.data.length; at += 4) MASK.colour(pixels.data, at, change(pixels.data[at + 3] / 0.7));
    MASK.canvas.getContext('2d').putImageData(pixels, 0, 0);
  },
  all(covered) { MASK.each(() => covered); },
  turn() { MASK.each((covered) => 255 - covered); },

  point() {
    const brush = EDIT.frame.querySelector('.wb-brush');
    if (!brush || !MASK.dot) return;
    brush.hidden = false;
    const part = (value, of) => `${100 * value / of}%`, size = `${MASK.brush / 10}%`;
    brush.style.cssText = `left:${part(MASK.dot[0], MASK.canvas.width)};top:${part(MASK.dot[1], MASK.canvas.height)};width:${size};aspect-ratio:1`;
  },
  key(event) {
    if (event.target.matches('input, button') && event.key !== '+' && event.key !== '-') return;
    const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!way && ![' ', '+', '-'].includes(event.key)) return;
    event.preventDefault();
    if (event.key === ' ') { MASK.remember(); MASK.stroke(MASK.dot, MASK.dot); }
    else if (!way) MASK.brush = Math.max(4, Math.min(300, MASK.brush * (event.key === '+' ? 1.25 : 0.8)));
    else MASK.dot = [0, 1].map((axis) => Math.max(0, Math.min([MASK.canvas.width, MASK.canvas.height][axis], MASK.dot[axis] + way[axis] * MASK.canvas.width / 50)));
    MASK.point();
  },

  // What is sent is grey: white counts.
  keep() {
    const pixels = MASK.pixels();
    for (let at = 0; at < pixels.data.length; at += 4) {
      const light = Math.round(255 - Math.min(255, pixels.data[at + 3] / 0.7));
      [pixels.data[at], pixels.data[at + 1], pixels.data[at + 2], pixels.data[at + 3]] = [light, light, light, 255];
    }
    const grey = make('canvas');
    [grey.width, grey.height] = [pixels.width, pixels.height];
    grey.getContext('2d').putImageData(pixels, 0, 0);
    grey.toBlob((blob) => MASK.send(blob), 'image/png');
  },
  async send(blob) {
    const answer = await fetch(`workbench/${BENCH.token}/mask/${PICTURE.row.id}`, {method: 'POST', body: blob}).catch(() => null);
    const said = answer ? await answer.json().catch(() => ({})) : {refused: 'The program does not answer.'};
    if (!answer?.ok) return BENCH.tell(said.refused || 'Refused.', {refused: true});
    EDIT.end();
    BENCH.remarked(said);
  },
};
