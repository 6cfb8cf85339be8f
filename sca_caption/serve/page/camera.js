// Takes a photograph in a dialog that shows the camera, or with the camera application if pages have no access to the camera.

const find = (id) => document.getElementById(id);
const REASONS = {
  NotAllowedError: "the browser denied access to the camera; allow it, or choose a file",
  NotFoundError: "no camera found; connect one, or choose a file",
  NotReadableError: "the camera is used by another program; close the program, or choose a file",
};

/** Let the user take a photograph. Resolves to a File, or null if cancelled. Throws an Error with a message for the user. */
export async function photograph() {
  if (!navigator.mediaDevices?.getUserMedia) { // available to pages of the same machine and of https only
    find("capture").click();
    return null; // the file arrives by the input's change event
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch (error) {
    throw new Error(REASONS[error.name] ?? `no camera (${error.message}); choose a file`);
  }
  const dialog = find("camera-dialog"), video = find("video");
  try {
    find("shoot").disabled = true; // until the video has loaded
    video.onloadeddata = () => { find("shoot").disabled = false; };
    video.srcObject = stream;
    dialog.showModal();
    const taken = await new Promise((resolve) => {
      find("shoot").onclick = () => resolve(true);
      find("no-camera").onclick = () => resolve(false);
      dialog.oncancel = () => resolve(false); // Escape
    });
    return taken ? await captureFrame(video) : null;
  } finally {
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    dialog.close();
  }
}

async function captureFrame(video) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return new File([blob], "camera.jpg", { type: "image/jpeg" });
}
