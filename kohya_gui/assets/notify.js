// A notification of the browser when a run has ended, for whoever wants one; permission is asked for when it is wanted.
const NOTIFY = {
  KEY: 'notify', last: null,
  WORDS: {finished: 'is finished', failed: 'has failed', stopped: 'was stopped'},

  get there() { return 'Notification' in window; },
  get wanted() { return NOTIFY.there && localStorage.getItem(NOTIFY.KEY) === 'yes' && Notification.permission === 'granted'; },

  async toggle() {
    const wants = !NOTIFY.wanted;
    if (wants && Notification.permission !== 'granted') await Notification.requestPermission();
    localStorage.setItem(NOTIFY.KEY, wants ? 'yes' : 'no');
    NOTIFY.show();
  },

  show() {
    const button = document.querySelector('[data-notify]');
    if (!button) return;
    button.hidden = !NOTIFY.there;
    const refused = NOTIFY.there && Notification.permission === 'denied';
    const words = refused ? 'The browser forbids notifications of this page' : 'Notify me when a run ends';
    if (button.title !== words) button.title = words;
    if (button.disabled !== refused) button.disabled = refused;
    button.setAttribute('aria-pressed', String(NOTIFY.wanted));
  },

  // Told of each answer; only an end that was seen to come is news.
  take(run) {
    const before = NOTIFY.last;
    NOTIFY.last = run;
    NOTIFY.show();
    if (!before || !before.active || run.active || !NOTIFY.WORDS[run.status] || !NOTIFY.wanted) return;
    const said = new Notification(`${run.name || 'The run'} ${NOTIFY.WORDS[run.status]}`, {body: run.words, tag: `run ${run.name}`});
    said.onclick = () => { window.focus(); said.close(); };
  },
};
document.addEventListener('click', (event) => event.target.closest('[data-notify]') && NOTIFY.toggle());
