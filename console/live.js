/**
 * The one stream of what happens: snapshots of the cluster and events, and whether they still come.
 *
 * @typedef {import("./types").Listener} Listener
 */

/** A snapshot comes each second; after so long without one the node is not heard, in milliseconds. */
const SILENCE_MS = 3_500;
/** Between two tries, where the browser does not try by itself. */
const AGAIN_MS = 2_000;

/** Follows the stream for as long as the page is open. @param {Listener} listener */
export function listen(listener) {
  const seen = new Set();
  let source, silence;

  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(lost, SILENCE_MS);
    listener.connection("live");
  };
  // A connection that is open and silent is given up: the node may hang.
  const lost = () => {
    listener.connection("lost");
    open();
  };

  function open() {
    source?.close();
    clearTimeout(silence);
    silence = setTimeout(lost, SILENCE_MS + AGAIN_MS);
    source = new EventSource("/cluster/events");
    source.addEventListener("cluster", message => {
      heard();
      listener.snapshot(JSON.parse(message.data));
    });
    source.addEventListener("event", message => {
      if (seen.has(message.lastEventId)) return;
      seen.add(message.lastEventId);
      listener.event(JSON.parse(message.data));
    });
    source.addEventListener("error", () => {
      listener.connection("lost");
      if (source.readyState !== EventSource.CLOSED) return;
      clearTimeout(silence);
      silence = setTimeout(open, AGAIN_MS);
    });
  }

  listener.connection("connecting");
  open();
}
