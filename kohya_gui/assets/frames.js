// Gradio's loading screen leaves a loop behind when it goes (the timer of its StatusTracker, in gradio 6.31): it asks for
// a frame 60 times a second and draws nothing in it, for as long as the page is open. Each frame costs the browser, and
// so the training beside it, more than all the news. A loop that measures time and began before the page was there
// ends with the loading screen; all others pass.
const nextFrame = window.requestAnimationFrame.bind(window);
let running = null; // the loop whose turn it is
window.requestAnimationFrame = (then) => {
  const loading = !document.getElementById('bar');
  const loop = running || {early: loading};
  if (loop.early && !loading && String(then).includes('performance.now()')) return 0;
  return nextFrame((now) => {
    running = loop;
    try {
      then(now);
    } finally {
      running = null;
    }
  });
};
