// Decode a file into an image at model size, as sca_caption/images.py does, and into a small preview.

import { cropBox, draftFactor, fit, reduce } from "./resize.js";

const MAX_PIXELS = 179e6; // Pillow's limit
const PREVIEW = 720; // pixels of the preview's longer side

/** A file cannot be used; the message is shown to the user. */
export class PhotographError extends Error {}

/**
 * Read a file: {pixels: Uint8Array (3, S, S), preview: Blob, width, height, region}. Throws PhotographError.
 *
 * region: left, top, width and height of the part that the model sees, as fractions of the image.
 */
export async function readPhotograph(file, transform) {
  if (!file.size) throw new PhotographError("empty file (0 bytes); get the file again");
  const head = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  let picture;
  try {
    // As Pillow reads it: rotated as EXIF says, without colour management.
    picture = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new PhotographError(
      String.fromCharCode(...head.subarray(4, 8)) === "ftyp" || /tiff|heic|heif|svg/.test(file.type)
        ? "a file type that this browser cannot open; convert it to JPEG"
        : "not an image, or damaged; get it again or convert it",
    );
  }
  try {
    const { width, height } = picture;
    if (width * height > MAX_PIXELS) {
      throw new PhotographError(`more than ${MAX_PIXELS / 1e6} million pixels; make it smaller first`);
    }
    const isJpeg = head[0] === 0xff && head[1] === 0xd8;
    const factor = isJpeg ? draftFactor(width, height, transform.size) : 1;
    const whole = { rows: rowsOf(picture), width, height };
    const { rows, ...small } = factor > 1 ? reduce(whole.rows, width, height, factor) : whole;
    const pixels = fit(rows, small.width, small.height, transform);
    const [left, top, right, bottom] = cropBox(width, height, transform.mode);
    const region = [left / width, top / height, (right - left) / width, (bottom - top) / height];
    return { pixels, preview: await previewOf(picture), width, height, region };
  } finally {
    picture.close();
  }
}

/** rows(top, count): RGBA of some rows of an image; transparent pixels are put on white. */
function rowsOf(picture) {
  const { width } = picture;
  let canvas;
  return (top, count) => {
    if (canvas?.height !== count) canvas = new OffscreenCanvas(width, count);
    const context = canvas.getContext("2d", { willReadFrequently: true }); // keeps it out of graphics memory, as it is read back
    context.fillStyle = "white";
    context.fillRect(0, 0, width, count);
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, 0, top, width, count, 0, 0, width, count);
    return context.getImageData(0, 0, width, count).data;
  };
}

function previewOf(picture) {
  const scale = Math.min(1, PREVIEW / Math.max(picture.width, picture.height));
  const side = (length) => Math.max(1, Math.round(length * scale));
  const canvas = new OffscreenCanvas(side(picture.width), side(picture.height));
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.86 });
}
