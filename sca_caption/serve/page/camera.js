// The camera: a picture of what it sees in a dialog, or, where the browser gives none, the phone's own camera program.

const find = (id) => document.getElementById(id);
const REASONS = {
  NotAllowedError: "the browser was told not to give this page the camera; allow it, or choose a file",
  NotFoundError: "no camera found; connect one, or choose a file",
  NotReadableError: "the camera is in use by another program; end that, or choose a file",
};

/** Let the user take a photograph: resolves to a File, or null. Throws an Error whose message can be shown. */
export async function photograph() {
  if (!navigator.mediaDevices?.getUserMedia) { // only pages of this machine and of https get one
    find("capture").click();
    return null; // the input's own event brings it
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch (error) {
    throw new Error(REASONS[error.name] ?? `no camera (${error.message}); choose a file`);
  }
  const dialog = find("camera-dialog"), video = find("video");
  try {
    find("shoot").disabled = true; // until there is a picture
    video.onloadeddata = () => { find("shoot").disabled = false; };
    video.srcObject = stream;
    dialog.showModal();
    const taken = await new Promise((resolve) => {
      find("shoot").onclick = () => resolve(true);
      find("no-camera").onclick = () => resolve(false);
      dialog.oncancel = () => resolve(false); // Escape
    });
    return taken ? await still(video) : null;
  } finally {
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    dialog.close();
  }
}

async function still(video) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return new File([blob], "camera.jpg", { type: "image/jpeg" });
}
