// A walk with the Tab key: what can be come to, where the focus is, and whether that is seen.
(() => {
  const shown = part => part.getBoundingClientRect().width > 0
    && part.checkVisibility({opacityProperty: true, visibilityProperty: true});
  const name = part => [part.tagName.toLowerCase(), part.type,
    part.ariaLabel || part.closest('label')?.textContent || part.labels?.[0]?.textContent
    || part.textContent || part.title,
    part.closest('[data-testid]')?.dataset.testid].filter(Boolean).join(' ').slice(0, 120);
  const group = part => part.closest('[role=radiogroup], [role=group], [role=toolbar]')
    ?? (part.type === 'radio' ? part.name : null);
  const SIDES = [null, '::before', '::after'];

  // How a control and what stands around it are drawn.
  const looks = part => {
    const near = [part, ...part.querySelectorAll('*')].slice(0, 12);
    for (let up = part.parentElement, far = 0; up && far < 4; up = up.parentElement, far += 1)
      near.push(up);
    return near.flatMap(one => SIDES.map(side => {
      const style = getComputedStyle(one, side);
      return [style.outlineStyle !== 'none' && style.outlineWidth + style.outlineColor,
        style.boxShadow, style.borderColor, style.backgroundColor, style.textDecorationLine].join();
    })).join(';');
  };

  const prepare = () => {
    const still = document.createElement('style');
    still.textContent = '* { transition: none !important; animation: none !important; }';
    document.head.append(still);
    document.activeElement?.blur();
    const controls = [...document.querySelectorAll(
      'a[href], button, input, select, textarea, summary, [tabindex]')].filter(part =>
        part.tabIndex >= 0 && !part.disabled && shown(part) && !part.closest('[inert]'));
    const groups = [...new Set(controls.map(group).filter(Boolean))];
    window.walk = {controls, plain: new Map(controls.map(part => [part, looks(part)]))};
    return {
      names: controls.map(name),
      groups: controls.map(part => groups.indexOf(group(part))), // -1: of none
      jumps: controls.filter(part => part.tabIndex > 0).map(name),
    };
  };

  const here = async () => {
    const part = document.activeElement;
    if (!part || part === document.body) return null;
    for (let i = 0; i < 2; i += 1) await new Promise(requestAnimationFrame);
    const {controls, plain} = window.walk;
    const inside = part.shadowRoot?.activeElement; // of a component of ours
    const seen = inside ? getComputedStyle(inside).outlineStyle !== 'none'
      : part.closest('[data-testid=stDataFrame]') // draws its focus into its own picture
        || !plain.has(part) || plain.get(part) !== looks(part);
    return {place: controls.indexOf(part), name: name(part), seen: Boolean(seen)};
  };

  window.keys = {prepare, here};
})();
