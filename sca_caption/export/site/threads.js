// How many threads the captioner gets, and the service worker that makes more than one possible (see isolation.js).

const MOST = 4; // more are no faster: the model's operators are small
const LONGEST = 3000; // milliseconds to wait for the service worker

/** The number of threads. isolated: whether the browser allows more than one; cores: of this device. */
export const threadCount = (isolated, cores) => (isolated ? Math.max(1, Math.min(MOST, cores || 1)) : 1);

/**
 * Install the service worker that isolates the page. Returns whether it will from the next load on; false if the page is
 * isolated, if it was loaded again and still is not, and if the browser refuses service workers.
 */
export async function willBeIsolated({ isolated, reloaded, serviceWorkers, longest = LONGEST }) {
  if (isolated || reloaded || !serviceWorkers) return false;
  try {
    await activated(await serviceWorkers.register("isolation.js"), longest);
    return true;
  } catch {
    return false;
  }
}

function activated(registration, longest) {
  return new Promise((resolve, reject) => {
    if (registration.active) return resolve();
    const worker = registration.installing ?? registration.waiting;
    worker.onstatechange = () => {
      if (worker.state === "activated") resolve();
      if (worker.state === "redundant") reject(new Error("the service worker could not be installed"));
    };
    return setTimeout(() => reject(new Error("the service worker does not start")), longest);
  });
}
