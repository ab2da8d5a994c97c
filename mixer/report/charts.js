// Draws the charts of the page with uPlot, over the static ones: hover values, zoom (drag; a double
// click resets it), smoothing, x axis, and which runs are shown. Without this script the static
// charts stay.
(() => {
  'use strict';
  const {runs, charts} = JSON.parse(document.getElementById('curves').textContent);
  const figures = [...document.querySelectorAll('figure.curves')];
  const controls = document.getElementById('controls');
  const state = {axis: 'step', smoothing: 0, hidden: new Set()};
  const axes = {step: 'step', epoch: 'epoch', hours: 'hours in the training loop'};
  let plots = [];

  const element = (tag, properties, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };

  // A colour of the page's style, which may be a variable, as a canvas needs it.
  const resolved = (colour, alpha) => {
    const probe = document.body.appendChild(element('i'));
    probe.style.color = colour;
    const value = getComputedStyle(probe).color;
    probe.remove();
    return alpha ? value.replace('rgb(', 'rgba(').replace(')', `, ${alpha})`) : value;
  };

  const number = value => value == null ? '-' : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-4)
    ? value.toExponential(3) : value.toLocaleString('en', {maximumSignificantDigits: 5});

  // Ticks of a logarithmic axis: 1, 2 and 5 of each power of ten, or the powers alone.
  const decades = (plot, axis, low, high) => {
    const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const wide = high > 1e3 * low, step = Math.ceil((last - first) / 8);
    const found = [];
    for (let power = first; power <= last; power += wide ? step : 1)
      for (const digit of wide ? [1] : [1, 2, 5]) found.push(+`${digit}e${power}`);
    const inside = found.filter(value => low <= value && value <= high);
    return inside.length > 1 ? inside : [low, high];
  };

  const positions = curve => {
    const perStep = runs[curve.run].epoch;
    if (state.axis === 'hours') return curve.hours;
    return state.axis === 'step' ? curve.step : perStep && curve.step.map(step => step * perStep);
  };

  // The mean of the values before, with a weight that falls by e over `width` of the x axis.
  const smooth = (xs, ys, width) => {
    let sum = 0, weight = 0;
    return ys.map((y, i) => {
      const gap = i ? xs[i] - xs[i - 1] : xs.length > 1 ? xs[1] - xs[0] : 1;
      const kept = Math.exp(-gap / width);
      sum = sum * kept + y * (1 - kept);
      weight = weight * kept + 1 - kept;
      return weight ? sum / weight : y;
    });
  };

  // The nearest point of each line to the cursor: the lines share an x axis, not their points.
  const nearest = (plot, line, index, x) => {
    const [xs, ys] = [plot.data[0], plot.data[line]];
    if (ys[index] != null) return index;
    let [left, right] = [index, index];
    while (left >= 0 && ys[left] == null) left--;
    while (right < ys.length && ys[right] == null) right++;
    if (left < 0) return right < ys.length ? right : null;
    if (right >= ys.length) return left;
    return x - xs[left] < xs[right] - x ? left : right;
  };

  const draw = (chart, figure) => {
    const curves = chart.curves.filter(curve => !state.hidden.has(curve.run) && positions(curve));
    const place = figure.querySelector('.plot');
    place.replaceChildren();
    if (!curves.length) {
      place.append(element('p', {className: 'soft', textContent: 'Nothing to show.'}));
      return null;
    }
    const reach = Math.max(...curves.map(curve => positions(curve).at(-1)));
    const series = [{label: axes[state.axis], value: (_, x) => number(x)}];
    const tables = [], bands = [];
    for (const curve of curves) {
      const xs = positions(curve), table = [xs];
      const base = {spanGaps: true, points: {show: xs.length === 1, size: 7}};
      const add = (values, options) => {
        table.push(values);
        series.push({...base, label: curve.label, value: (_, y) => number(y), ...options});
      };
      const aside = {class: 'aside', width: 0, points: {show: false}};
      const stroke = alpha => () => resolved(curve.colour, alpha);
      if (curve.band) {
        const at = series.length;
        curve.band.forEach(edge => add(edge, {...aside, stroke: stroke(0.01)}));
        bands.push({series: [at + 1, at], fill: stroke(0.18)});
      }
      if (state.smoothing) {
        add(curve.values, {...aside, stroke: stroke(0.25), width: 1});
        add(smooth(xs, curve.values, reach * state.smoothing / 100),
          {stroke: stroke(), width: 2, dash: curve.dash});
      } else {
        add(curve.values, {stroke: stroke(), width: 1.8, dash: curve.dash});
      }
      tables.push(table);
    }
    const text = () => resolved('var(--soft)'), lines = {stroke: () => resolved('var(--line)'), width: 1};
    const font = '12px system-ui, sans-serif';
    const axis = {stroke: text, font, grid: lines, ticks: {...lines, size: 4}};
    return new uPlot({
      width: place.clientWidth, height: 280, padding: [12, 28, 0, 0], series, bands,
      scales: {
        x: {time: false},
        y: chart.log ? {distr: 3, range: (_, low, high) => [low / 1.1, high * 1.1]} : {},
      },
      axes: [
        {...axis, grid: {show: false}},
        {...axis, ...(chart.log ? {splits: decades, filter: (_, splits) => splits} : {}), size: 64, values: (_, values) => values.map(value => value == null ? '' : number(value))},
      ],
      cursor: {
        sync: {key: 'step', scales: ['x', null]}, drag: {x: true, y: false, dist: 6},
        dataIdx: nearest, focus: {prox: 24},
      },
      focus: {alpha: 0.35},
      legend: {markers: {
        width: 3, dash: (plot, i) => (plot.series[i].dash || []).length ? 'dashed' : 'solid',
      }},
    }, uPlot.join(tables), place);
  };

  const redraw = () => {
    plots.forEach(plot => plot && plot.destroy());
    plots = charts.map((chart, i) => draw(chart, figures[i]));
  };

  // Without a way to draw, the static charts stay.
  if (!document.createElement('canvas').getContext('2d')) return;
  for (const figure of figures) {
    figure.querySelector('.static').remove();
    figure.append(element('div', {className: 'plot'}));
  }
  const known = Object.keys(axes).filter(axis => axis === 'step' || charts.some(chart =>
    chart.curves.some(curve => axis === 'hours' ? curve.hours : runs[curve.run].epoch)));
  const choice = element('select', {onchange: () => { state.axis = choice.value; redraw(); }},
    ...known.map(axis => element('option', {value: axis, textContent: axis})));
  const shown = element('output', {textContent: 'off'});
  const slider = element('input', {
    type: 'range', min: 0, max: 20, step: 0.5, value: 0,
    oninput: () => {
      state.smoothing = +slider.value;
      shown.textContent = state.smoothing ? `${slider.value} % of the axis` : 'off';
      redraw();
    },
  });
  controls.append(
    element('label', {}, 'x axis ', choice), element('label', {}, 'smoothing ', slider, ' ', shown));
  runs.length > 1 && runs.forEach((run, i) => {
    const box = element('input', {
      type: 'checkbox', checked: true,
      onchange: () => { state.hidden[box.checked ? 'delete' : 'add'](i); redraw(); },
    });
    box.style.accentColor = run.colour;
    controls.append(element('label', {}, box, ' ', run.label));
  });
  controls.append(element('span', {className: 'soft', textContent: 'Drag to zoom, double-click to reset.'}));
  controls.hidden = false;
  redraw();
  addEventListener('resize', () => plots.forEach((plot, i) =>
    plot && plot.setSize({width: figures[i].querySelector('.plot').clientWidth, height: 280})));
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
})();
