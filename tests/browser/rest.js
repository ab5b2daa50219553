// Whether the page has come to rest since this turn began: its script has not run for a while (a
// click takes a moment to start it) and nothing is being drawn. A picture that never stops being
// drawn is not waited for.
turn => {
  const now = performance.now();
  if (window.rest?.turn !== turn) {
    window.rest?.watch.disconnect();
    const rest = window.rest = {turn, ran: now, drawn: now};
    rest.watch = new MutationObserver(() => { rest.drawn = performance.now(); });
    rest.watch.observe(document.body, {childList: true, subtree: true, characterData: true});
  }
  const rest = window.rest;
  const state = document.querySelector('[data-testid=stApp]')?.dataset.testScriptState;
  if (state !== 'notRunning') rest.ran = now;
  return now - rest.ran > 500 && (now - rest.drawn > 250 || now - rest.ran > 5000);
}
