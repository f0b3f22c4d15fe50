'use strict';
const review = JSON.parse(document.getElementById('review').textContent);
const is_regression = review.classes.length === 0;
const count = review.keys.length, PER_PAGE = 50, LAST = 50, MOST_UNDONE = 500;
const WORDS = ['keep', 'relabel', 'drop', 'unsure'];
const by_id = id => document.getElementById(id);

// position in the lists -> {decision, label, time}, in the order in which they were made
let decisions = new Map(), undone = [], unsaved = 0;
let list = 'suspects', shown = [], page = 0, present = -1;  // a position, -1 if nothing is shown

function element(kind, name = '', text = '') {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text !== '') made.textContent = text;
  return made;
}

// What is shown of a label: a class by its number, or a number

const words = label => is_regression ? String(label) : review.shown_classes[label];
const written = label => is_regression ? String(label) : review.classes[label];
const percent = share => share === null ? '' :
  share > 0 && share < 0.01 ? '< 1 %' : share < 1 && share > 0.99 ? '> 99 %' :
  `${Math.round(100 * share)} %`;
const is_given = position => review.predicted[position] === review.given[position];
const suggestion = position =>
  is_regression || !is_given(position) ? review.predicted[position] : review.second[position];

// Decisions

function keep_in_browser() {
  try {
    const content = {decisions: [...decisions], undone: undone.slice(-MOST_UNDONE), unsaved};
    localStorage.setItem(review.storage, JSON.stringify(content));
  } catch (error) {
    say('This browser keeps nothing for this page: save decisions.csv before you leave it.', true);
  }
}

function from_browser() {
  decisions = new Map(); undone = []; unsaved = 0;
  try {
    const content = JSON.parse(localStorage.getItem(review.storage));
    if (content === null) return;
    decisions = new Map(content.decisions.filter(([position]) => position < count));
    undone = content.undone; unsaved = content.unsaved;
  } catch (error) { /* nothing is kept, or it is damaged: as if nothing had been decided */ }
}

function set(position, value) {
  decisions.delete(position);  // so that it is the last one
  if (value) decisions.set(position, value);
}

function decide(decision, label = null) {
  if (present < 0) return;
  if (decision === 'relabel' && label === review.given[present]) decision = 'keep';
  const value = {decision, time: new Date().toISOString()};
  value.label = decision === 'relabel' ? label : null;
  undone.push([present, decisions.get(present) || null]);
  set(present, value);
  unsaved += 1;
  keep_in_browser();
  draw_card(present);
  draw_progress();
  go_on();
}

function undo() {
  if (undone.length === 0) { say('There is nothing to undo.'); return; }
  const [position, before] = undone.pop();
  set(position, before);
  unsaved += 1;
  keep_in_browser();
  if (!shown.includes(position)) show(position < review.num_suspects ? 'suspects' : 'sample', true);
  draw_card(position);
  draw_progress();
  go_to(position);
}

function go_on() {  // to the next one that is undecided
  const start = shown.indexOf(present);
  const open = shown.findIndex((position, place) => place > start && !decisions.has(position));
  if (open >= 0) go_to(shown[open]);
  else if (start + 1 < shown.length) go_to(shown[start + 1]);
  else draw_panel();
}

function step(distance) {
  const next = shown.indexOf(present) + distance;
  if (next >= 0 && next < shown.length) go_to(shown[next]);
}

// Lists

function show(which, everything = false) {
  list = which;
  if (everything)
    for (const select of document.querySelectorAll('.filters select')) select.value = '';
  draw_filters();
  filter();
}

const in_list = () => {
  const {num_suspects} = review;
  const [start, end] = list === 'suspects' ? [0, num_suspects] : [num_suspects, count];
  return Array.from({length: end - start}, (_, number) => start + number);
};
const wanted = id => by_id(id) ? by_id(id).value : '';

function filter() {
  const [given, suggested, state] = ['given', 'suggested', 'state'].map(wanted);
  shown = in_list().filter(position =>
    (given === '' || review.given[position] === Number(given)) &&
    (suggested === '' || suggestion(position) === Number(suggested)) &&
    (state === '' || (decisions.get(position)?.decision ?? 'open') === state));
  by_id('clear').hidden = given === '' && suggested === '' && state === '';
  const first = shown.find(position => !decisions.has(position)) ?? shown[0] ?? -1;
  page = -1;
  go_to(first);
}

function go_to(position) {
  present = position;
  const wanted_page = position < 0 ? 0 : Math.floor(shown.indexOf(position) / PER_PAGE);
  if (wanted_page !== page) { page = wanted_page; draw_cards(); }
  for (const card of by_id('cards').children)
    card.setAttribute('aria-current', card.dataset.position === String(position));
  const card = card_of(position);
  if (card && !is_narrow()) card.scrollIntoView({block: 'nearest'});
  draw_panel();
}

const is_narrow = () => matchMedia('(max-width: 680px)').matches;  // as page.css has it

function show_panel() {  // which on a narrow window lies above the list
  if (is_narrow()) by_id('panel').scrollIntoView({block: 'nearest'});
}

// Drawing

function draw_panel() {
  by_id('panel').hidden = present < 0;
  if (present < 0) return;
  const position = present, picture = by_id('picture'), decided = decisions.get(position);
  const in_suspects = position < review.num_suspects;
  const uri = review.pictures[position];
  document.querySelector('#panel .picture').hidden = !uri;
  by_id('panel').classList.toggle('wordy', !uri);
  if (uri) {
    picture.src = uri;
    picture.classList.toggle('small', uri.startsWith('data:image/png'));
    picture.alt = review.shown[position];
    if (review.links[position]) {
      by_id('original').href = review.links[position];
      by_id('original').title = 'open the original';
    }
  }
  by_id('rank').textContent = in_suspects
    ? `suspect ${position + 1} of ${review.num_suspects.toLocaleString('en')}, ` +
      `${review.parts[position]} part`
    : `random sample, ${position - review.num_suspects + 1} of ${count - review.num_suspects}, ` +
      `${review.parts[position]} part, rank ${review.ranks[position].toLocaleString('en')}`;
  by_id('name').textContent = review.shown[position];
  by_id('labels').replaceChildren(...label_lines(position));
  const numbers = [[review.score_name, 'score'], ['quality', 'quality'], ['loss', 'loss']];
  const why = numbers.map(([name, key]) => `${name} ${review[key][position] ?? 'unknown'}`);
  if (review.flagged[position]) why.push('flagged');
  by_id('why').textContent = why.join(', ');
  const button = action => document.querySelector(`[data-action=${action}]`);
  const press = (action, on) => button(action).setAttribute('aria-pressed', on);
  button('keep').lastElementChild.textContent = `Keep ${words(review.given[position])}`;
  button('suggestion').lastElementChild.textContent = `Take ${words(suggestion(position))}`;
  for (const word of ['keep', 'drop', 'unsure']) press(word, decided?.decision === word);
  const relabelled = decided?.decision === 'relabel';
  const as_suggested = relabelled && decided.label === suggestion(position);
  press('suggestion', as_suggested);
  press('another', relabelled && !as_suggested);
  button('another').title = relabelled ? `now ${words(decided.label)}` : '';
}

function label_lines(position) {
  const line = (name, label, share, kind) => {
    const made = element('div', `label ${kind}`);
    const bar = element('div', 'share');
    bar.style.width = `${100 * (share ?? 0)}%`;
    made.append(bar, element('span', 'what', name), element('span', 'class', words(label)),
      element('span', '', is_regression ? '' : percent(share)));
    made.title = words(label);
    return made;
  };
  const lines = [line('given', review.given[position],
    is_regression ? null : review.given_probability[position], 'given')];
  if (is_regression) return [...lines, line('predicted', review.predicted[position], null, '')];
  return [...lines,
    line('most likely', review.predicted[position], review.predicted_probability[position], ''),
    line('second', review.second[position], review.second_probability[position], '')];
}

const card_of = position => by_id('cards').querySelector(`[data-position="${position}"]`);

function draw_cards() {
  const start = page * PER_PAGE, part = shown.slice(start, start + PER_PAGE);
  by_id('cards').classList.toggle('texts', part.length > 0 && !review.pictures[part[0]]);
  by_id('cards').replaceChildren(...part.map(made_card));
  if (part.length === 0)
    by_id('cards').append(element('p', 'nothing', 'There is nothing here with these filters.'));
  for (const position of part) draw_card(position);
  const text = part.length === 0 ? '0 of 0' : `${(start + 1).toLocaleString('en')} to ` +
    `${(start + part.length).toLocaleString('en')} of ${shown.length.toLocaleString('en')}`;
  for (const span of document.querySelectorAll('.position')) span.textContent = text;
  for (const button of document.querySelectorAll('[data-page]')) {
    const other = page + Number(button.dataset.page);
    button.disabled = other < 0 || other * PER_PAGE >= shown.length;
  }
}

function made_card(position) {
  const card = element('button', 'card');
  card.dataset.position = position;
  card.title = review.shown[position];
  const uri = review.pictures[position];
  if (uri) {
    const image = element('img', uri.startsWith('data:image/png') ? 'small' : '');
    image.src = uri;
    image.alt = '';
    card.append(image);
  } else card.append(element('div', 'text', review.shown[position]));
  const label = element('div', 'words');
  const given = element('span', 'from', words(review.given[position]));
  label.append(`#${review.ranks[position]} `, given);
  const towards = element('div', 'words'), take = suggestion(position);
  const share = is_regression ? null :
    take === review.predicted[position] ? review.predicted_probability[position]
      : review.second_probability[position];
  towards.append('→ ', element('span', 'towards', words(take)), ` ${percent(share)}`);
  card.append(label, towards);
  if (uri) {
    const path = element('div', 'path');
    path.append(element('bdi', '', review.shown[position]));
    card.append(path);
  }
  card.addEventListener('click', () => { go_to(position); show_panel(); });
  return card;
}

function draw_card(position) {
  const card = card_of(position), value = decisions.get(position);
  if (!card) return;
  card.classList.toggle('decided', value !== undefined);
  card.querySelector('.badge')?.remove();
  if (value)
    card.append(element('span', `badge ${value.decision}`,
      value.decision === 'relabel' ? `→ ${words(value.label)}` : value.decision));
}

function draw_progress() {
  const positions = in_list();
  const decided = positions.filter(position => decisions.has(position)).length;
  by_id('bar').style.width = `${positions.length ? 100 * decided / positions.length : 0}%`;
  by_id('progress').textContent = `${decided.toLocaleString('en')} of ` +
    `${positions.length.toLocaleString('en')} decided.`;
  const sure = [...decisions].filter(
    ([position, value]) => position < review.num_suspects && value.decision !== 'unsure');
  const last = sure.slice(-LAST);
  const hits = last.filter(([, value]) => value.decision !== 'keep').length;
  by_id('hits').textContent = last.length === 0 ? '' :
    `Of the last ${last.length} suspects ${hits} (${percent(hits / last.length)}) were wrong.`;
  const stop = last.length === LAST && hits / LAST < review.stop_below;
  by_id('advice').hidden = !stop;
  if (stop)
    by_id('advice').textContent = `Of the last ${LAST} suspects ${hits} had a wrong label, less ` +
      `than ${percent(review.stop_below)}: you may stop here, ` +
      (count > review.num_suspects ? 'look at the random sample, and save.' : 'and save.');
  by_id('save').title = unsaved ? `${unsaved} decisions are not saved yet` : '';
  by_id('save').textContent = unsaved ? `Save decisions.csv (${unsaved})` : 'Save decisions.csv';
}

function draw_filters() {
  for (const button of document.querySelectorAll('[data-list]'))
    button.setAttribute('aria-pressed', button.dataset.list === list);
  const size = list === 'suspects' ? review.num_suspects : count - review.num_suspects;
  by_id('about').textContent = list === 'suspects'
    ? `The ${size.toLocaleString('en')} most suspicious samples, the most suspicious first.`
    : `${size} samples drawn at random from the ${review.num_unsuspected.toLocaleString('en')} ` +
      'that are neither listed nor flagged: what is wrong among them says how much is left.';
  if (is_regression) return;
  const positions = in_list();
  for (const [id, label_of] of [['given', position => review.given[position]],
    ['suggested', suggestion]]) {
    const counts = new Map(), select = by_id(id), before = select.value;
    for (const position of positions)
      counts.set(label_of(position), (counts.get(label_of(position)) || 0) + 1);
    const option = (value, text) => {
      const made = element('option', '', text);
      made.value = value;
      return made;
    };
    const labels = [...counts.keys()].sort((a, b) => a - b);
    select.replaceChildren(option('', 'all'),
      ...labels.map(label => option(label, `${words(label)} (${counts.get(label)})`)));
    select.value = counts.has(Number(before)) && before !== '' ? before : '';
  }
  draw_confusion(positions);
}

const MOST_CLASSES = 30;  // in the table of classes

function draw_confusion(positions) {
  const counts = new Map(), sizes = new Map();
  for (const position of positions) {
    const pair = [review.given[position], suggestion(position)], key = pair.join(' ');
    counts.set(key, (counts.get(key) || 0) + 1);
    for (const label of new Set(pair)) sizes.set(label, (sizes.get(label) || 0) + 1);
  }
  const most = [...sizes.keys()].sort((a, b) => sizes.get(b) - sizes.get(a)).slice(0, MOST_CLASSES);
  const labels = most.sort((a, b) => a - b), largest = Math.max(1, ...counts.values());
  by_id('cut').textContent = sizes.size <= MOST_CLASSES ? '' :
    `Of ${sizes.size} classes the ${MOST_CLASSES} with the most samples; the filters have all.`;
  const head = element('tr');
  head.append(element('th', 'quiet', 'given \\ suggested'),
    ...labels.map(label => element('th', '', words(label))));
  const rows = labels.map(given => {
    const row = element('tr');
    row.append(element('th', '', words(given)));
    for (const suggested of labels) {
      const number = counts.get(`${given} ${suggested}`), cell = element('td');
      if (number) {
        const button = element('button', '', String(number));
        button.title = `given ${words(given)}, suggested ${words(suggested)}`;
        button.addEventListener('click', () => {
          by_id('given').value = given;
          by_id('suggested').value = suggested;
          filter();
          show_panel();
        });
        cell.style.background = `rgb(213 94 0 / ${0.08 + 0.5 * number / largest})`;
        cell.append(button);
      }
      row.append(cell);
    }
    return row;
  });
  const top = element('thead'), body = element('tbody');
  top.append(head);
  body.append(...rows);
  document.querySelector('#confusion table').replaceChildren(top, body);
}

function say(text, wrong = false) {
  by_id('message').textContent = text;
  by_id('message').classList.toggle('wrong', wrong);
  by_id('message').hidden = text === '';
}

// Another class, or another number

let found = [], chosen = 0;

function open_chooser() {
  if (present < 0) return;
  by_id('search').value = '';
  search();
  by_id('chooser').showModal();
  by_id('search').focus();
}

function search() {
  const text = by_id('search').value.trim().toLocaleLowerCase();
  chosen = 0;
  if (is_regression) { found = []; return; }
  const likely = [review.predicted[present], review.second[present], review.given[present]];
  const order = [...new Set([...likely, ...review.classes.keys()])];
  const matches = order.filter(label => words(label).toLocaleLowerCase().includes(text));
  const rank = label => {
    const name = words(label).toLocaleLowerCase();
    return name === text ? 0 : name.startsWith(text) ? 1 : 2;
  };
  found = (text ? matches.sort((a, b) => rank(a) - rank(b)) : matches).slice(0, 100);
  by_id('found').replaceChildren(...found.map((label, number) => {
    const button = element('button');
    button.type = 'button';
    button.setAttribute('role', 'option');
    button.append(element('span', '', words(label)));
    const note = ['most likely', 'second', 'given'].filter((_, kind) => likely[kind] === label);
    button.append(element('span', 'quiet', note.join(', ')));
    button.addEventListener('click', () => take(label));
    return button;
  }));
  if (found.length === 0) by_id('found').append(element('p', 'quiet', 'No class is called so.'));
  mark();
}

function mark() {
  [...by_id('found').querySelectorAll('button')].forEach((button, number) => {
    button.setAttribute('aria-selected', number === chosen);
    if (number === chosen) button.scrollIntoView({block: 'nearest'});
  });
}

function take(label) {
  by_id('chooser').close();
  decide('relabel', label);
}

function take_chosen() {
  if (!is_regression) { if (found.length) take(found[chosen]); return; }
  const text = by_id('search').value.trim().replace(',', '.');
  if (text !== '' && Number.isFinite(Number(text))) take(Number(text));
  else by_id('search').select();
}

by_id('search').addEventListener('input', search);
by_id('chooser').addEventListener('keydown', event => {
  const moves = {ArrowDown: 1, ArrowUp: -1};
  if (event.key in moves && found.length) {
    chosen = (chosen + moves[event.key] + found.length) % found.length;
    mark();
  } else if (event.key === 'Enter' && event.target === by_id('search') && !event.isComposing)
    take_chosen();
  else return;
  event.preventDefault();
});

// Files of decisions

// A spreadsheet would compute these; the command takes the apostrophe off again.
const FORMULA = /^'*[=+\-@\t\r\n\uff0b\uff0d\uff1d\uff20]/;
const NUMBER = /^[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?$/i;
const safe = text => FORMULA.test(text) && !NUMBER.test(text) ? `'${text}` : text;
const quoted = text => /[",;\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
const cell = text => quoted(safe(text));
const COLUMNS = ['path', 'given', 'decision', 'label', 'time'];

function as_csv() {
  const lines = [...decisions.keys()].sort((a, b) => a - b).map(position => {
    const {decision, label, time} = decisions.get(position);
    return [review.keys[position], written(review.given[position]), decision,
      decision === 'relabel' ? written(label) : '', time].map(cell).join(',');
  });
  return [COLUMNS.join(','), ...lines].map(line => `${line}\n`).join('');
}

function save() {
  const link = element('a');
  link.href = URL.createObjectURL(new Blob([as_csv()], {type: 'text/csv'}));
  link.download = 'decisions.csv';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  unsaved = 0;
  keep_in_browser();
  draw_progress();
}

function parse_csv(text) {
  const rows = [];
  text = text.replace(/^\ufeff/, '');
  const head = text.split(/\r?\n/, 1)[0];
  const comma = !head.includes(',') && head.includes(';') ? ';' : ',';
  let row = [], value = '', in_quotes = false;
  for (let place = 0; place < text.length; place++) {
    const letter = text[place];
    if (in_quotes) {
      if (letter !== '"') value += letter;
      else if (text[place + 1] === '"') { value += '"'; place++; }
      else in_quotes = false;
    } else if (letter === '"' && value === '') in_quotes = true;
    else if (letter === comma) { row.push(value); value = ''; }
    else if (letter === '\n') { row.push(value); rows.push(row); row = []; value = ''; }
    else if (letter !== '\r' || text[place + 1] !== '\n') value += letter;
  }
  if (value !== '' || row.length) rows.push([...row, value]);
  const used = rows.filter(cells => cells.some(text => text.trim() !== ''));
  return [used, comma];
}

function load(text) {
  const [[head, ...rows], comma] = parse_csv(text);
  const number_in = text => Number(comma === ';' ? text.replace(',', '.') : text);
  const columns = COLUMNS.map(name => (head || []).map(text => text.trim()).indexOf(name));
  if (columns.slice(0, 4).includes(-1)) throw `it needs the columns ${COLUMNS.join(', ')}`;
  const plain = text => FORMULA.test(text) && text.startsWith("'") ? text.slice(1) : text;
  const saved = text => text.replace(/\p{Surrogate}/gu, '\ufffd');  // as a file has them
  const positions = new Map();
  review.keys.forEach((key, position) =>
    positions.set(JSON.stringify([key, written(review.given[position])].map(saved)), position));
  const numbers = new Map(review.classes.map((name, number) => [saved(name), number]));
  const read = [];
  let others = 0;
  rows.forEach((cells, number) => {
    const [path, given, decision, label, time] = columns.map(column => plain(cells[column] ?? ''));
    const word = decision.trim().toLowerCase();
    if (word === '') return;
    if (!WORDS.includes(word)) throw `row ${number + 2} has the decision "${decision}"`;
    const label_given = is_regression ? String(number_in(given)) : given;
    const position = positions.get(JSON.stringify([path, label_given]));
    if (position === undefined) { others++; return; }
    let value = null;
    if (word === 'relabel') {
      value = is_regression ? number_in(label) : numbers.get(label);
      if (value === undefined || label.trim() === '' || Number.isNaN(value))
        throw `row ${number + 2} has the label "${label}"`;
    }
    read.push([position, {decision: word, label: value, time: time || new Date().toISOString()}]);
  });
  for (const [position, value] of read) {
    undone.push([position, decisions.get(position) || null]);
    set(position, value);
  }
  keep_in_browser();
  draw_filters();
  filter();
  draw_progress();
  const more = others
    ? ` ${others} are of samples that are not listed here, and were left out.` : '';
  say(`${read.length} decisions loaded.${more}`, read.length === 0);
}

by_id('file').addEventListener('change', async event => {
  const [file] = event.target.files;
  event.target.value = '';
  if (!file) return;
  try { load(await file.text()); } catch (error) {
    say(`${file.name} cannot be loaded: ${error}. Nothing has changed.`, true);
  }
});

// What the keys and buttons do

const ACTIONS = {
  keep: () => decide('keep'),
  suggestion: () => present >= 0 && decide('relabel', suggestion(present)),
  another: open_chooser,
  drop: () => decide('drop'),
  unsure: () => decide('unsure'),
  undo,
  previous: () => step(-1),
  next: () => step(1),
  first: () => shown.length && go_to(shown[0]),
  earlier: () => turn(-1),
  later: () => turn(1),
};
const KEYS = {k: 'keep', s: 'suggestion', a: 'another', d: 'drop', u: 'unsure', z: 'undo',
  arrowleft: 'previous', arrowright: 'next', home: 'first', pageup: 'earlier', pagedown: 'later'};

function turn(distance) {
  const place = (page + distance) * PER_PAGE;
  if (place >= 0 && place < shown.length) go_to(shown[place]);
}

document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || by_id('chooser').open) return;
  if (event.target.matches('input, select, textarea')) return;
  const action = KEYS[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  say('');
  ACTIONS[action]();
});
for (const button of document.querySelectorAll('[data-action]'))
  button.addEventListener('click', () => { say(''); ACTIONS[button.dataset.action](); });
for (const button of document.querySelectorAll('[data-list]'))
  button.addEventListener('click', () => { show(button.dataset.list, true); draw_progress(); });
for (const button of document.querySelectorAll('[data-page]'))
  button.addEventListener('click', () => turn(Number(button.dataset.page)));
for (const select of document.querySelectorAll('.filters select'))
  select.addEventListener('change', () => { filter(); select.blur(); });
by_id('clear').addEventListener('click', () => show(list, true));
by_id('save').addEventListener('click', save);
by_id('load').addEventListener('click', () => by_id('file').click());
addEventListener('storage', event => {  // the same page in another tab
  if (event.key !== review.storage) return;
  from_browser();
  draw_cards();
  draw_progress();
  go_to(present);
});

from_browser();
if (count === review.num_suspects) document.querySelector('[data-list=sample]').hidden = true;
show('suspects');
draw_progress();
