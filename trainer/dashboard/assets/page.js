'use strict';
// Asks for the page again while it is looked at, shows numbers under the pointer, and copies commands. Nothing needs it.
(() => {
  const tip = document.createElement('div');
  tip.id = 'tip';
  tip.hidden = true;
  tip.setAttribute('aria-hidden', 'true'); // the tables say the same
  document.body.append(tip);
  let cursor = null;

  const hide = () => { tip.hidden = true; if (cursor) { cursor.remove(); cursor = null; } };

  const nearest = (places, x) => places.reduce((a, b) => Math.abs(b.x - x) < Math.abs(a.x - x) ? b : a);

  document.addEventListener('pointermove', (event) => {
    const plot = event.target.closest ? event.target.closest('svg[data-tips]') : null;
    if (!plot) { hide(); return; }
    const lines = (plot.tips || (plot.tips = JSON.parse(plot.dataset.tips))).filter((line) => line && line.length);
    if (!lines.length) { hide(); return; }
    const box = plot.getBoundingClientRect(), view = plot.viewBox.baseVal;
    const x = (event.clientX - box.left) / box.width * view.width;
    const found = lines.map((line) => nearest(line, x));
    const at = nearest(found, x);
    tip.textContent = [at.at].concat(found.filter((f) => Math.abs(f.x - at.x) < view.width / 20).map((f) => f.t)).join('\n');
    if (!cursor || cursor.parentNode !== plot) {
      if (cursor) cursor.remove();
      cursor = document.createElementNS('http://www.w3.org/2000/svg', 'path');
      cursor.setAttribute('class', 'cursor');
      plot.append(cursor);
    }
    cursor.setAttribute('d', 'M' + at.x + ' 10V' + (view.height - 30));
    tip.hidden = false;
    const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
    const top = event.clientY + 16 + tip.offsetHeight > window.innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 16;
    tip.style.left = Math.max(4, left) + 'px';
    tip.style.top = top + 'px';
  });
  document.addEventListener('pointerleave', hide);

  const ago = (then) => {
    const s = Math.max(0, (Date.now() - then) / 1000);
    for (const [n, unit] of [[86400, 'day'], [3600, 'hour'], [60, 'minute']]) {
      const k = Math.floor(s / n);
      if (k >= 1) return k + ' ' + unit + (k > 1 ? 's' : '') + ' ago';
    }
    return 'just now';
  };

  const dress = () => {
    for (const time of document.querySelectorAll('time')) {
      const then = Date.parse(time.dateTime);
      if (then > 0) { time.title = time.title || time.textContent; time.textContent = ago(then); }
    }
    if (!navigator.clipboard) return;
    for (const code of document.querySelectorAll('code.line')) {
      if (code.querySelector('button')) continue;
      const line = code.textContent, button = document.createElement('button');
      button.type = 'button';
      button.textContent = 'copy';
      button.addEventListener('click', () => navigator.clipboard.writeText(line).then(() => { button.textContent = 'copied'; }, () => {}));
      code.append(button);
    }
  };
  dress();

  const refresh = Number(document.body.dataset.refresh || 0);
  if (!refresh) return;
  let tag = document.body.dataset.tag, pause = refresh;

  const kept = () => ({
    checked: [...document.querySelectorAll('input:checked')].map((i) => i.id),
    open: [...document.querySelectorAll('details')].map((d) => d.open),
    focus: document.activeElement && document.activeElement.id,
  });
  const restore = (was) => {
    for (const id of was.checked) { const i = document.getElementById(id); if (i) i.checked = true; }
    document.querySelectorAll('details').forEach((d, i) => { d.open = Boolean(was.open[i]); });
    const focus = was.focus && document.getElementById(was.focus);
    if (focus) focus.focus({ preventScroll: true });
  };

  const look = async () => {
    try {
      if (!document.hidden) {
        const answer = await fetch(location.href, { cache: 'no-store', headers: tag ? { 'If-None-Match': tag } : {} });
        if (answer.status === 200) {
          tag = answer.headers.get('ETag');
          const next = new DOMParser().parseFromString(await answer.text(), 'text/html');
          const page = next.getElementById('page');
          pause = Number(next.body.dataset.refresh || refresh);
          if (page) {
            const was = kept();
            hide();
            document.getElementById('page').replaceWith(document.adoptNode(page));
            document.title = next.title;
            restore(was);
            dress();
          }
        }
      } else { dress(); }
    } catch (e) { pause = Math.min(pause * 2, 60); } // the dashboard has ended, or cannot be reached just now
    setTimeout(look, pause * 1000);
  };
  setTimeout(look, refresh * 1000);
})();
