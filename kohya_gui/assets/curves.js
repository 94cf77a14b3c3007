// The curves of a run, drawn on a canvas from what the program answers, thinned to what a screen shows. Hover tells
// values, a drag zooms, a double click shows the whole run. Other runs can be laid over. Nothing is fetched elsewhere.
const CURVES = {
  LEAST: 2000, // milliseconds between two questions for numbers
  OTHERS: 5, // most runs that are laid over
  PAD: {left: 58, right: 26, top: 14, bottom: 34},
  shown: new WeakMap(), // place -> its plot

  // Called whenever the page shows news: a place that is new gets a plot, one whose run went on asks for numbers.
  look() {
    for (const place of document.querySelectorAll('[data-curves]')) {
      let plot = CURVES.shown.get(place);
      if (!plot) CURVES.shown.set(place, plot = new Plot(place));
      plot.follow();
    }
  },
};

class Plot {
  constructor(place) {
    Object.assign(this, {place, group: 'loss', low: null, high: null, found: null, asked: 0, mark: ''});
    Object.assign(this, {chosen: [], others: [], pictures: {}, marked: ''}); // the runs laid over, their numbers
    this.box = place.querySelector('.plot');
    this.below = place.querySelector('.plot-below');
    this.canvas = this.box.appendChild(document.createElement('canvas'));
    this.tip = this.box.appendChild(Object.assign(document.createElement('div'), {className: 'tip', hidden: true}));
    place.addEventListener('click', (event) => this.click(event));
    place.addEventListener('input', (event) => event.target.matches('[data-smooth], [data-log], [data-over]') && this.draw());
    place.addEventListener('change', (event) => {
      if (event.target.matches('[data-over]')) this.follow();
      if (event.target.matches('[data-compare]')) this.lay(event.target);
    });
    this.canvas.addEventListener('pointermove', (event) => this.hover(event));
    this.canvas.addEventListener('pointerleave', () => { this.at = null; this.tip.hidden = true; this.draw(); });
    this.canvas.addEventListener('pointerdown', (event) => { this.from = this.here(event); });
    this.canvas.addEventListener('pointerup', (event) => this.zoom(event));
    this.canvas.addEventListener('dblclick', () => this.whole());
    this.box.addEventListener('keydown', (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.box);
    new MutationObserver(() => this.draw()).observe(document.body, {attributes: true, attributeFilter: ['class']});
  }

  tool(name) { return this.place.querySelector(`[data-${name}]`); }

  get name() { return this.place.dataset.curves; }

  // --- numbers ------------------------------------------------------------------------------------------------------

  follow() {
    const mark = [this.name, this.place.dataset.step, this.place.dataset.validated, this.group, this.low, this.high, this.low !== null && this.tool('over').value].join('/');
    if (mark === this.mark || document.hidden || !this.box.offsetParent) return;
    const wait = this.asked + (this.found && this.found.name === this.name && this.found.group === this.group ? CURVES.LEAST : 0) - performance.now();
    clearTimeout(this.timer);
    if (wait > 0) { this.timer = setTimeout(() => this.follow(), wait); return; }
    this.mark = mark;
    this.asked = performance.now();
    this.fetch();
  }

  async fetch() {
    const ask = async (name, share) => {
      const range = this.low === null ? '' : `&low=${Math.floor(this.low * share)}&high=${Math.ceil(this.high * share)}`;
      const answer = await fetch(`curves/${encodeURIComponent(name)}?group=${this.group}${range}`);
      if (!answer.ok) throw new Error(answer.statusText);
      return answer.json();
    };
    try {
      this.found = await ask(this.name, 1);
      const over = this.tool('over').value, of = [this.group, this.low, this.high, over, ...this.chosen].join('/');
      if (of !== this.marked) { // their numbers stand still: asked for once
        const share = (name) => over === 'pictures' ? this.found.pictures / this.pictures[name] : 1;
        this.others = await Promise.all(this.chosen.map((name) => ask(name, share(name))));
        this.marked = of;
      }
      this.draw();
    } catch (error) {
      this.mark = '';
      console.warn('no curves:', error);
    }
  }

  lay(select) {
    const name = select.value;
    select.value = '';
    if (name && !this.chosen.includes(name)) this.compare([...this.chosen, name].slice(-CURVES.OTHERS));
  }

  // Lay these runs over, with a button each that takes it away, and tell in a table in what they differ.
  async compare(names) {
    this.place.querySelector('.compared').replaceChildren(...names.map((name) => {
      const chip = Object.assign(document.createElement('button'), {type: 'button', className: 'small', textContent: `${name} ×`});
      chip.dataset.drop = name;
      chip.setAttribute('aria-label', `Take ${name} away`);
      return chip;
    }));
    this.below.replaceChildren();
    let table = null;
    if (names.length) {
      const asked = names.map((name) => `with=${encodeURIComponent(name)}`).join('&');
      const answer = await fetch(`comparison/${encodeURIComponent(this.name)}?${asked}`);
      if (!answer.ok) { console.warn('no comparison:', answer.statusText); return; }
      table = await answer.json();
      Object.assign(this.pictures, table.pictures);
    }
    this.chosen = names;
    this.mark = '';
    this.asked = 0;
    if (table) this.below.replaceChildren(tableOf(table));
    this.follow();
  }

  // --- what a person does -------------------------------------------------------------------------------------------

  click(event) {
    const group = event.target.closest('[data-group]');
    if (group) {
      this.group = group.dataset.group;
      for (const each of this.place.querySelectorAll('[data-group]')) each.setAttribute('aria-pressed', String(each === group));
      this.follow();
    }
    if (event.target.closest('[data-whole]')) this.whole();
    const drop = event.target.closest('[data-drop]');
    if (drop) this.compare(this.chosen.filter((name) => name !== drop.dataset.drop));
  }

  whole() {
    this.low = this.high = null;
    this.tool('whole').hidden = true;
    this.follow();
  }

  narrow(low, high) {
    [this.low, this.high] = [Math.max(0, Math.floor(low)), Math.ceil(high)];
    this.tool('whole').hidden = false;
    this.asked = 0;
    this.follow();
  }

  key(event) {
    if (!this.frame) return;
    const {low, high} = this.frame;
    const width = high - low;
    const moves = {ArrowLeft: [-0.2, -0.2], ArrowRight: [0.2, 0.2], '+': [0.2, -0.2], '-': [-0.3, 0.3]};
    if (event.key === 'Escape') this.whole();
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [left, right] = moves[event.key];
    const scale = this.scale(this.found);
    this.narrow(Math.max(0, low + left * width) / scale, (high + right * width) / scale);
  }

  here(event) {
    const box = this.canvas.getBoundingClientRect();
    return {x: event.clientX - box.left, y: event.clientY - box.top};
  }

  hover(event) {
    this.at = this.here(event);
    this.draw();
  }

  zoom(event) {
    const from = this.from, to = this.here(event);
    this.from = null;
    if (!from || !this.frame || Math.abs(from.x - to.x) < 8) return this.draw();
    const [left, right] = [Math.min(from.x, to.x), Math.max(from.x, to.x)];
    const scale = this.scale(this.found);
    this.narrow(this.value(left) / scale, this.value(right) / scale);
  }

  // --- drawing ------------------------------------------------------------------------------------------------------

  scale(found) { return this.tool('over').value === 'pictures' ? found.pictures : 1; }

  value(x) {
    const {low, high, width} = this.frame;
    return low + (x - CURVES.PAD.left) / width * (high - low);
  }

  // Of the run itself everything; of those laid over what they are compared by, in a colour each.
  lines() {
    const lines = [], smooth = this.group === 'rate' ? 0 : Number(this.tool('smooth').value);
    [this.found, ...this.others].forEach((found, run) => {
      const scale = this.scale(found), of = run ? `${found.name}: ` : '';
      Object.entries(found.curves).forEach(([name, {x, y, low, high}], number) => {
        const steps = x.map((step) => step * scale), common = {steps, run, colour: low ? 0 : number};
        const values = low || this.group === 'rate' ? smoothed(y, smooth) : y;
        if (low && !run) lines.push({...common, name, values: y, wild: y, low, high, faint: true});
        if (low) lines.push({...common, name: `${of}${name === 'each step' ? '' : `${name}, `}smoothed`, values, wild: run ? values : y}); // of others single steps are not drawn
        else if (!run || this.group !== 'loss') lines.push({...common, name: `${of}${name}`, values, thin: this.group === 'loss' || number > 0});
      });
      const judged = found.validation;
      if (judged) {
        const steps = judged.x.map((step) => step * scale);
        lines.push({name: `${of}validation`, steps, values: judged.y, colour: 2, run, dots: true, best: judged.best && judged.best * scale});
        if (judged.base !== null && !run) lines.push({name: 'base model', steps: [0, found.total * scale], values: [judged.base, judged.base], colour: 3, run, dashed: true});
      }
    });
    return lines;
  }

  draw() {
    if (!this.found || this.found.name !== this.name || !this.box.clientWidth) return;
    const ratio = devicePixelRatio || 1, {left, right, top, bottom} = CURVES.PAD;
    const [wide, tall] = [this.box.clientWidth, this.box.clientHeight];
    if (this.canvas.width !== Math.round(wide * ratio) || this.canvas.height !== Math.round(tall * ratio)) {
      Object.assign(this.canvas, {width: Math.round(wide * ratio), height: Math.round(tall * ratio)});
    }
    const pen = this.pen = this.canvas.getContext('2d');
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, wide, tall);
    const style = getComputedStyle(this.box);
    this.colour = (name) => style.getPropertyValue(name).trim();
    const lines = this.lines(), log = this.tool('log').checked;
    const scale = this.scale(this.found);
    const last = Math.max(...[this.found, ...this.others].map((found) => found.total * this.scale(found)));
    const range = this.low === null ? [0, last] : [this.low * scale, this.high * scale];
    const frame = this.frame = {low: range[0], high: Math.max(range[1], range[0] + 1), width: wide - left - right, height: tall - top - bottom, log};
    Object.assign(frame, extent(lines, frame, log));
    frame.x = (value) => left + (value - frame.low) / (frame.high - frame.low) * frame.width;
    frame.y = (value) => {
      const place = log ? (Math.log(Math.max(value, 1e-12)) - Math.log(frame.least)) / (Math.log(frame.most) - Math.log(frame.least)) : (value - frame.least) / (frame.most - frame.least);
      return top + (1 - Math.min(1, Math.max(0, place))) * frame.height;
    };
    this.axes(wide, tall);
    this.marks(tall);
    pen.save();
    pen.beginPath();
    pen.rect(left, top - 8, frame.width, frame.height + 16);
    pen.clip();
    for (const line of lines) this.line(line);
    pen.restore();
    this.legend(lines);
    if (this.from && this.at) {
      pen.fillStyle = this.colour('--ring');
      pen.fillRect(Math.min(this.from.x, this.at.x), top, Math.abs(this.at.x - this.from.x), frame.height);
    }
    this.tell(lines, wide);
  }

  axes(wide, tall) {
    const {pen, frame} = this, {left, top} = CURVES.PAD;
    pen.font = '11px system-ui, sans-serif';
    pen.fillStyle = this.colour('--quiet');
    pen.strokeStyle = this.colour('--line');
    pen.lineWidth = 1;
    pen.textBaseline = 'middle';
    pen.textAlign = 'right';
    for (const value of ticks(frame.least, frame.most, frame.log)) {
      const y = Math.round(frame.y(value)) + 0.5;
      pen.beginPath();
      pen.moveTo(left, y);
      pen.lineTo(left + frame.width, y);
      pen.stroke();
      pen.fillText(short(value), left - 8, y);
    }
    pen.textBaseline = 'top';
    pen.textAlign = 'center';
    for (const value of ticks(frame.low, frame.high, false)) pen.fillText(short(value), frame.x(value), top + frame.height + 18);
  }

  // Along the lower edge: ends of epochs as ticks, saved files as triangles, samples as dots; a resume is a line.
  marks() {
    const {pen, frame, found} = this, {top} = CURVES.PAD, y = top + frame.height, scale = this.scale(found);
    const inside = (step) => step * scale >= frame.low && step * scale <= frame.high;
    const each = (steps, draw) => steps.filter(inside).forEach((step) => draw(frame.x(step * scale)));
    pen.strokeStyle = this.colour('--edge');
    pen.beginPath();
    pen.moveTo(CURVES.PAD.left, y + 0.5);
    pen.lineTo(CURVES.PAD.left + frame.width, y + 0.5);
    const epochs = found.marks.epochs.filter(inside);
    if (epochs.length * 4 < frame.width) each(epochs, (x) => { pen.moveTo(x, y); pen.lineTo(x, y + 5); });
    pen.stroke();
    pen.fillStyle = this.colour('--accent');
    each(found.marks.saves, (x) => { pen.beginPath(); pen.moveTo(x, y + 4); pen.lineTo(x - 4, y + 11); pen.lineTo(x + 4, y + 11); pen.fill(); });
    pen.fillStyle = this.colour('--warm');
    each(found.marks.samples, (x) => { pen.beginPath(); pen.arc(x, y + 14, 2, 0, 7); pen.fill(); });
    pen.setLineDash([2, 4]);
    pen.strokeStyle = this.colour('--edge');
    each(found.marks.resumes, (x) => { pen.beginPath(); pen.moveTo(x, top); pen.lineTo(x, y); pen.stroke(); });
    pen.setLineDash([]);
  }

  tint(line) { return this.colour(line.run ? `--run-${line.run}` : ['--warm', '--accent', '--good', '--edge', '--warn', '--bad'][line.colour % 6]); }

  line(line) {
    const {pen, frame} = this;
    pen.strokeStyle = pen.fillStyle = this.tint(line);
    pen.lineWidth = line.faint || line.thin || line.dashed ? 1.2 : 2.2;
    pen.lineJoin = 'round';
    pen.setLineDash(line.dashed ? [6, 5] : line.run && line.dots ? [3, 3] : line.run ? [10, 4] : []);
    if (line.faint) {
      pen.globalAlpha = 0.22;
      pen.beginPath();
      line.steps.forEach((step, place) => pen.lineTo(frame.x(step), frame.y(line.high[place])));
      for (let place = line.steps.length - 1; place >= 0; place -= 1) pen.lineTo(frame.x(line.steps[place]), frame.y(line.low[place]));
      pen.fill();
      pen.globalAlpha = 0.5;
    }
    if (!line.faint || line.steps.length < 400) {
      pen.beginPath();
      line.steps.forEach((step, place) => line.values[place] !== null && pen.lineTo(frame.x(step), frame.y(line.values[place])));
      pen.stroke();
    }
    pen.globalAlpha = 1;
    pen.setLineDash([]);
    if (line.dots && line.steps.length < 120) line.steps.forEach((step, place) => this.dot(step, line.values[place], 3));
    if (line.best) this.dot(line.best, line.values[line.steps.indexOf(line.best)], 6);
    // What lies above the frame is cut off there, and marked.
    const above = line.high || line.values;
    let before = -9;
    line.steps.forEach((step, place) => {
      const x = frame.x(step);
      if (above[place] <= frame.most || x - before < 7) return;
      before = x;
      pen.beginPath();
      pen.moveTo(x, CURVES.PAD.top - 7);
      pen.lineTo(x - 3.5, CURVES.PAD.top - 1);
      pen.lineTo(x + 3.5, CURVES.PAD.top - 1);
      pen.fill();
    });
  }

  dot(step, value, size) {
    const {pen, frame} = this;
    if (value === null || value === undefined) return;
    pen.beginPath();
    pen.arc(frame.x(step), frame.y(value), size, 0, 7);
    size > 4 ? pen.stroke() : pen.fill();
  }

  legend(lines) {
    const names = lines.filter((line) => !line.faint).map((line) => `<span><i class="${line.run || line.dashed ? line.dots ? 'dots' : 'dashes' : ''}" style="color:${this.tint(line)}"></i>${escaped(line.name)}</span>`);
    const marks = this.found.marks;
    if (marks.saves.length) names.push('<span><b class="saved">▲</b> saved</span>');
    if (marks.samples.length) names.push('<span><b class="samples">●</b> samples</span>');
    if (marks.resumes.length) names.push('<span><b class="resumed">┆</b> resumed</span>');
    const markup = names.join('');
    const legend = this.place.querySelector('.legend-line');
    if (legend.innerHTML !== markup) legend.innerHTML = markup;
  }

  tell(lines, wide) {
    const {pen, frame, at} = this, {left, top} = CURVES.PAD;
    if (!at || at.x < left || at.x > left + frame.width) { this.tip.hidden = true; return; }
    const wanted = this.value(at.x), rows = [];
    let told = null;
    for (const line of lines) {
      if (line.dashed || !line.steps.length) continue;
      const place = nearest(line.steps, wanted);
      if (Math.abs(frame.x(line.steps[place]) - at.x) > 40) continue;
      if (told === null) told = line.steps[place];
      const [low, high] = line.low ? [line.low[place], line.high[place]] : [0, 0]; // of the steps that a point stands for
      const more = low < high ? `${short(low)} to ${short(high)}` : line.dots && line.steps[place] !== told ? `at ${Math.round(line.steps[place]).toLocaleString('en')}` : '';
      rows.push(`<span><i style="color:${this.tint(line)}"></i>${escaped(line.name)} <b>${short(line.values[place], 4)}</b> ${more}</span>`);
    }
    if (told === null) { this.tip.hidden = true; return; }
    const over = this.tool('over').value === 'pictures' ? 'pictures' : 'step';
    pen.strokeStyle = this.colour('--edge');
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(frame.x(told), top);
    pen.lineTo(frame.x(told), top + frame.height);
    pen.stroke();
    this.tip.innerHTML = `<b>${over} ${Math.round(told).toLocaleString('en')}</b>${rows.join('')}`;
    this.tip.hidden = false;
    this.tip.style.left = `${Math.min(at.x + 14, wide - this.tip.offsetWidth - 8)}px`;
    this.tip.style.top = `${top + 6}px`;
  }
}

// The exponential mean as TensorBoard draws it, without the pull of its first value.
function smoothed(values, weight) {
  let mean = 0, share = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return mean / share;
  });
}

// What the frame holds: of single steps, also smoothed, all but the wildest, and all else.
function extent(lines, frame, log) {
  const values = [];
  for (const line of lines) {
    const found = (line.wild || line.values).filter((value, place) => value !== null && line.steps[place] >= frame.low && line.steps[place] <= frame.high && !(log && value <= 0));
    found.sort((a, b) => a - b);
    const [first, last] = line.wild ? [0.01, 0.99] : [0, 1];
    if (found.length) values.push(...[first, last].map((share) => found[Math.min(found.length - 1, Math.floor(share * found.length))]));
  }
  if (!values.length) return {least: log ? 0.1 : 0, most: 1};
  const least = Math.min(...values), most = Math.max(...values);
  if (log) return least < most ? {least: least / 1.1, most: most * 1.1} : {least: least / 2, most: most * 2};
  const margin = (most - least) * 0.06 || Math.abs(most) * 0.1 || 1;
  return {least: least >= 0 ? Math.max(0, least - margin) : least - margin, most: most + margin};
}

function ticks(low, high, log) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const each of [1, 2, 5]) found.push(each * 10 ** power);
    }
    const inside = found.filter((value) => value >= low && value <= high);
    if (inside.length > 2) return inside; // over a part of a decade, as on a plain scale
  }
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  return found;
}

function short(value, digits = 3) {
  if (value === null || value === undefined) return '–';
  if (Number.isInteger(value)) return value.toLocaleString('en');
  if (value && Math.abs(value) < 1e-3) return value.toExponential(1).replace('e-0', 'e-');
  return String(Number(value.toPrecision(digits)));
}

function nearest(steps, wanted) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low && wanted - steps[low - 1] < steps[low] - wanted ? low - 1 : low;
}

function tableOf({names, rows}) {
  const table = document.createElement('table');
  table.className = 'comparison';
  for (const [kind, row] of [['th', ['', ...names]], ...rows.map((each) => ['td', each])]) {
    const line = table.insertRow();
    row.forEach((text, place) => line.appendChild(Object.assign(document.createElement(place ? kind : 'th'), {textContent: text})));
  }
  const scroll = Object.assign(document.createElement('div'), {className: 'compared-in'});
  scroll.append(table);
  return scroll;
}

function escaped(text) {
  return text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
}
