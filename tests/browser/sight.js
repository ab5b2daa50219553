// What a person would see to be wrong with a page, measured on what the browser has drawn.
// Put into the page once; then `sight.menu(words)` and so on answer with what is wrong.
(() => {
  const shown = part => {
    const box = part.getBoundingClientRect();
    return box.width > 1 && box.height > 1 && part.checkVisibility(
      {opacityProperty: true, visibilityProperty: true, contentVisibilityAuto: true});
  };
  const say = part => (part.textContent || part.value || '').trim().slice(0, 60);
  const everywhere = () => ['stHeader', 'stSidebar', 'stMain']
    .map(name => document.querySelector(`[data-testid=${name}]`)).filter(Boolean);

  const unnamed = () => [...document.querySelectorAll(
    '[data-testid=stVegaLiteChart], [data-testid=stMain] canvas, [data-testid=stMain] svg[role=img], '
    + '[data-testid=stMain] img')].filter(drawn => {
      const hidden = drawn.closest('[aria-hidden=true], [data-testid=stDataFrame]');
      const chart = drawn.closest('[data-testid=stVegaLiteChart]') ?? drawn;
      return !hidden && !(chart.getAttribute('aria-label') || chart.getAttribute('alt'));
    }).map(drawn => drawn.outerHTML.slice(0, 200));

  const tooWide = () => [document.documentElement, document.querySelector('[data-testid=stMain]'),
      document.querySelector('[data-testid=stSidebarContent]')]
    .filter(Boolean).map(part => part.scrollWidth - part.clientWidth);

  const isPainted = scheme => {
    const paint = getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor;
    const [red, green, blue] = paint.match(/\d+/g).map(Number);
    return (red + green + blue < 384) === (scheme === 'dark');
  };

  const menu = words => {
    const links = [...document.querySelectorAll('[data-testid=stHeader] a')].filter(shown);
    const right = document.documentElement.clientWidth;
    return words.filter(word => !links.some(link => say(link) === word
      && link.getBoundingClientRect().right <= right && link.scrollWidth <= link.clientWidth + 1));
  };

  const cutOff = () => {
    const places = everywhere(), wrong = [];
    const scrolls = part => { // a person can get at what is not in sight
      for (let up = part; up && !up.matches('[data-testid=stMain]'); up = up.parentElement)
        if (/auto|scroll/.test(getComputedStyle(up).overflowX)
            && up.scrollWidth > up.clientWidth + 1) return true;
      return false;
    };
    const clipped = part => { // by itself or by one of those around it
      const letters = document.createRange();
      letters.selectNodeContents(part);
      const right = Math.max(...[...letters.getClientRects()].map(box => box.right), -Infinity);
      for (let up = part, far = 0; up && far < 5; up = up.parentElement, far += 1)
        if (/hidden|clip/.test(getComputedStyle(up).overflowX)
            && (right > up.getBoundingClientRect().right + 1
              || (up === part && up.scrollWidth > up.clientWidth + 1))) return true;
      return false;
    };
    for (const place of places) {
      for (const part of place.querySelectorAll('*')) {
        if (part instanceof SVGElement || part.matches('input, textarea, canvas')) continue;
        const own = [...part.childNodes].some(one => one.nodeType === 3 && one.data.trim());
        if (!own || !shown(part)) continue;
        if (part.closest('[data-testid=stIconMaterial]')) continue;
        if (getComputedStyle(part).clipPath !== 'none' || scrolls(part)) continue;
        if (clipped(part)) wrong.push(`cut off: ${say(part)}`);
        else if (part.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
          wrong.push(`out of the window: ${say(part)}`);
      }
      for (const chart of place.querySelectorAll('[data-testid=stVegaLiteChart] svg')) {
        const frame = chart.getBoundingClientRect();
        const outer = chart.closest('[data-testid=stVegaLiteChart]').getBoundingClientRect();
        if (frame.right > outer.right + 2) wrong.push('a chart is wider than its place');
        for (const text of chart.querySelectorAll('text')) {
          const box = text.getBoundingClientRect();
          if (text.textContent.trim() && shown(text)
              && (box.left < frame.left - 5 || box.right > frame.right + 5 // boxes pass the ink
                  || box.top < frame.top - 5 || box.bottom > frame.bottom + 5))
            wrong.push(`outside its chart: ${say(text)}`);
        }
      }
    }
    return [...new Set(wrong)];
  };

  const pale = least => {
    const places = everywhere();

    const pen = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
    const known = new Map();
    const rgba = paint => {
      if (!known.has(paint)) {
        pen.clearRect(0, 0, 1, 1);
        pen.fillStyle = paint;
        pen.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
        known.set(paint, [r, g, b, a / 255]);
      }
      return known.get(paint);
    };
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
    const light = paint => {
      const [r, g, b] = paint.slice(0, 3).map(one => {
        const part = one / 255;
        return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (one, other) => {
      const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05);
    };
    const behind = (part, x, y) => { // only what lies where the text is
      const layers = [];
      for (let up = part; up; up = up.parentElement) {
        const box = up.getBoundingClientRect(), whole = up.clientHeight >= innerHeight - 100;
        if (!whole && (x < box.left || x > box.right || y < box.top || y > box.bottom)) continue;
        const paint = rgba(getComputedStyle(up).backgroundColor);
        if (paint[3] > 0) layers.push(paint);
        if (paint[3] === 1) break;
      }
      return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    const faded = part => {
      let share = 1;
      for (let up = part; up; up = up.parentElement) share *= getComputedStyle(up).opacity;
      return share;
    };
    const underMark = text => { // the last shape of its chart that was drawn below its middle
      const box = text.getBoundingClientRect();
      const x = (box.left + box.right) / 2, y = (box.top + box.bottom) / 2;
      const shapes = [...text.ownerSVGElement.querySelectorAll('path, rect')].filter(shape => {
        const place = shape.getBoundingClientRect();
        const paint = getComputedStyle(shape).fill;
        return paint !== 'none' && rgba(paint)[3] > 0 && getComputedStyle(shape).opacity > 0
          && place.left <= x && x <= place.right && place.top <= y && y <= place.bottom
          && shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING;
      });
      return shapes.length ? shapes[shapes.length - 1] : null;
    };
    const pale = [];
    for (const place of places) {
      const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) {
        const part = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !part || !shown(part)) continue;
        if (part.closest('style, script, noscript, title, desc')) continue;
        if (part.closest('[disabled], [aria-disabled=true], [data-disabled=true]')) continue;
        const style = getComputedStyle(part), drawn = part instanceof SVGElement;
        if (style.clipPath !== 'none' && !drawn) continue;
        const letters = document.createRange();
        letters.selectNode(walker.currentNode);
        const box = letters.getBoundingClientRect();
        let below = behind(part, (box.left + box.right) / 2, (box.top + box.bottom) / 2);
        if (drawn) {
          const shape = underMark(part);
          if (shape) {
            const paint = [...rgba(getComputedStyle(shape).fill)];
            paint[3] *= faded(shape);
            below = over(paint, below);
          }
        }
        const ink = [...rgba(drawn ? style.fill : style.color)];
        ink[3] *= faded(part);
        const size = parseFloat(style.fontSize), bold = style.fontWeight >= 700;
        const picture = part.matches('[data-testid=stIconMaterial]');
        const enough = picture || size >= 24 || (bold && size >= 18.66) ? Math.min(3, least) : least;
        const found = contrast(over(ink, below), below);
        if (found < enough - 0.005)
          pale.push(`${found.toFixed(2)} ${say(part)} (${part.closest('[data-testid]')?.dataset.testid}`
            + ` ${drawn ? style.fill : style.color} on ${below.map(Math.round)})`);
      }
    }
    return [...new Set(pale)];
  };

  const view = () => {
    const parts = ['stSidebar', 'stMain']
      .map(name => document.querySelector(`[data-testid=${name}]`)).filter(Boolean);
    const all = choice => parts.flatMap(part => [...part.querySelectorAll(choice)]);
    const value = one => /radio|checkbox/.test(one.type) ? one.checked : one.value;
    return [
      ...parts.flatMap(part => part.innerText.split('\n').filter(line => line.trim())),
      ...all('input, textarea').map(one => `${one.ariaLabel || one.labels?.[0]?.innerText}: ${value(one)}`),
      ...all('[role=slider]').map(one => `${one.ariaLabel}: ${one.ariaValueText ?? one.ariaValueNow}`),
      ...all('[aria-checked], [aria-pressed]')
        .map(one => `${one.textContent}: ${one.ariaChecked ?? one.ariaPressed}`),
    ];
  };

  window.sight = {view, unnamed, tooWide, isPainted, menu, cutOff, pale};
})();
